"""Generator and critic of every stage on tiny networks: what they need, and that each is pulled where it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill import dmd, self_forcing, self_gradient
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.generator_critic import (
    BackwardSimulation,
    CausalDmd,
    Frozen,
    SelfForcingConfig,
    contexts_of,
    self_forcing_of,
)
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.parallel.spec import path_name
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.streams import Streams

ROWS = 4
STUDENT, TEACHER = tiny.SINKS, tiny.TINY
SAMPLER = SamplerConfig(sigmas=(1.0, 0.6, 0.0), horizon_seconds=2, context_noise=0.1)
STATIC = StaticConfig(STUDENT, SAMPLER, (1, 2))
STAGE_3 = self_forcing_of(STATIC, TEACHER, SelfForcingConfig(seconds=2))

CUBE = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
WHOLE = {"scorer": TEACHER, "blocks": PREFIX.blocks(4), "grid": tiny.GRID}
ONE_GRAPH = {
    "stage 1": (TEACHER, BackwardSimulation(model=TEACHER, sigmas=SAMPLER.sigmas, **WHOLE)),
    "causal DMD": (STUDENT, CausalDmd(model=STUDENT, sampler=SAMPLER, **WHOLE)),
}


def features(seed: int, rows: int = ROWS) -> dict:
    """Text features as a batch has them."""
    rng = np.random.default_rng(seed)
    video, audio = (jnp.asarray(rng.normal(size=(rows, 4, TEACHER.caption_channels)), jnp.float32) for _ in "va")
    return {"context_video": video, "context_audio": audio, "context_mask": jnp.ones((rows, 4), bool)}


PROMPTS, NEGATIVE = features(0), contexts_of(features(1, rows=1))
CLIPS = dict(
    zip(("video", "audio"), (x[:, None] for x in tiny.random_latents(TEACHER, 4, 26, batch=ROWS)), strict=True)
)


@pytest.fixture(scope="module")
def networks():
    return tiny.random_params(STUDENT), tiny.random_params(TEACHER, 1), tiny.random_params(TEACHER, 2)


@pytest.fixture(scope="module", params=ONE_GRAPH)
def one_graph(request, networks):
    """A generator whose clip is one graph: its program, networks and batch, and what one device makes of them."""
    model, method = ONE_GRAPH[request.param]
    program = jax.jit(method.generator)
    trained = networks[0] if model is STUDENT else tiny.random_params(TEACHER, 3)
    batch = {**PROMPTS, **CLIPS} if model is STUDENT else PROMPTS
    made = program(trained, batch, jax.random.key(3), networks[1], Frozen(networks[2], NEGATIVE))
    return program, (trained, *networks[1:]), batch, made


@pytest.fixture(scope="module")
def generator():
    return jax.jit(STAGE_3.generator)


@pytest.fixture(scope="module")
def critic():
    return jax.jit(STAGE_3.critic)


def test_a_cache_gradient_is_refused_where_text_changes_with_the_noise_level():
    static = STATIC._replace(model=tiny.MODERN)
    with pytest.raises(ValueError, match="cache_gradient=True: must be false"):
        self_forcing_of(static, TEACHER, SelfForcingConfig(seconds=2, cache_gradient=True))


def test_stage_3_is_differentiated_through_its_cache_if_it_is_asked_to(monkeypatch, networks):
    asked = []
    for module, name in ((self_forcing, "two_pass_gradient"), (self_gradient, "replayed_gradient")):

        def noted(params, *_, name=name):
            asked.append(name)
            return params, None, {"dmd": jnp.zeros(())}

        monkeypatch.setattr(module, name, noted)
    for through_cache in (False, True):
        method = self_forcing_of(STATIC, TEACHER, SelfForcingConfig(seconds=2, cache_gradient=through_cache))
        method.generator(networks[0], PROMPTS, jax.random.key(3), networks[1], Frozen(networks[2], NEGATIVE))
    assert asked == ["two_pass_gradient", "replayed_gradient"]


def on_mesh(mesh, networks, *batches):
    """Cut networks and batches over a mesh."""
    places = {id(net): meshes.param_shardings(transformer_spec(net), mesh) for net in (STUDENT, TEACHER)}
    put = [jax.device_put(p, places[id(STUDENT if p.sinks is not None else TEACHER)]) for p in networks]
    return put, [meshes.place_batch(jax.tree.map(np.asarray, batch), ROWS, mesh) for batch in batches]


def assert_same(one, other):
    """Compare losses, metrics and gradients within the noise of float32."""
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-5 * np.abs(y).max() + 1e-7, err_msg=path_name(path))


def test_the_clip_is_as_long_as_the_horizon():
    assert (STAGE_3.blocks[-1].video_end, STAGE_3.blocks[-1].audio_end) == (7, 51)
    assert STAGE_3.plan.blocks == STAGE_3.blocks
    with pytest.raises(ValueError, match="seconds=3: the student's horizon is 2 s"):
        self_forcing_of(STATIC, TEACHER, SelfForcingConfig(seconds=3))


def test_a_generator_step_reaches_every_weight_and_depends_on_its_key_alone(networks, generator):
    student, critic, teacher = networks
    step = [generator(student, PROMPTS, jax.random.key(i), critic, Frozen(teacher, NEGATIVE)) for i in (3, 3, 4)]
    (loss, metrics, gradient), again, other = step
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(np.testing.assert_array_equal, gradient, again[2])
    assert float(loss) != float(other[0])
    assert {"dmd_video", "dmd_audio", "push_video", "gap_audio"} <= metrics.keys()


def test_a_critic_that_is_the_teacher_pulls_nowhere_but_where_guidance_does(networks):
    _, _, teacher = networks
    clip = Streams(*tiny.random_latents(TEACHER, 7, 51, batch=ROWS))
    clip = Streams(clip.video[:, : 7 * 2], clip.audio)

    @jax.jit
    def push(teacher, negative):
        network = clip_network(TEACHER, STAGE_3.positions(TEACHER))
        scorer = dmd.Scorer(teacher=teacher, critic=teacher, network=network)
        prompt = contexts_of(PROMPTS)
        return dmd.dmd_gradient(clip, scorer, prompt, negative, jax.random.key(3), dmd.DmdConfig())[0]

    same, other = (push(teacher, contexts_of(features(seed))) for seed in (0, 1))
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 0, atol=1e-4), same)
    assert all(float(jnp.abs(x).max()) > 1e-2 for x in other)


@pytest.mark.long
def test_the_generator_on_a_mesh_equals_one_device(networks, generator):
    expected = generator(networks[0], PROMPTS, jax.random.key(3), networks[1], Frozen(networks[2], NEGATIVE))
    with jax.set_mesh(CUBE):
        (student, critic, teacher), (batch,) = on_mesh(CUBE, networks, PROMPTS)
        frozen = Frozen(teacher, meshes.replicate(NEGATIVE, CUBE))
        found = generator(student, batch, jax.random.key(3), critic, frozen)
    assert_same(found, expected)
    for path, leaf in jax.tree_util.tree_flatten_with_path(found[2].layers)[0]:  # a gradient lies as its weight does
        if leaf.ndim == 3 and path_name(path).endswith("/w"):
            assert leaf.size // leaf.addressable_shards[0].data.size == 4, path_name(path)


@pytest.mark.long
def test_the_critic_on_a_mesh_equals_one_device(networks, critic):
    expected = critic(networks[1], PROMPTS, jax.random.key(5), networks[0], None)
    with jax.set_mesh(CUBE):
        (student, params, _), (batch,) = on_mesh(CUBE, networks, PROMPTS)
        assert_same(critic(params, batch, jax.random.key(5), student, None), expected)


def test_the_critic_learns_from_clips_that_it_cannot_change(networks, critic):
    student, params, _ = networks
    value, metrics, gradient = critic(params, PROMPTS, jax.random.key(5), student, None)
    assert float(value) == pytest.approx(float(metrics["video"] + metrics["audio"]))
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
    through = jax.grad(lambda generator: STAGE_3.critic(params, PROMPTS, jax.random.key(5), generator, None)[0])
    blank = jax.jit(through)(student)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(blank))


@pytest.mark.long
def test_a_clip_in_one_graph_on_a_mesh_equals_one_device(one_graph):
    program, networks, batch, expected = one_graph
    with jax.set_mesh(CUBE):
        (params, critic, teacher), (batch,) = on_mesh(CUBE, networks, batch)
        frozen = Frozen(teacher, meshes.replicate(NEGATIVE, CUBE))
        assert_same(program(params, batch, jax.random.key(3), critic, frozen), expected)


def test_a_clip_in_one_graph_reaches_every_weight(one_graph):
    _, (params, *_), _, (loss, metrics, gradient) = one_graph
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert float(loss) == pytest.approx(float(metrics["dmd_video"] + metrics["dmd_audio"]))


def test_the_critic_of_a_clip_in_one_graph_cannot_change_it(networks):
    _, params, generator = networks
    method = ONE_GRAPH["stage 1"][1]

    def loss(generator):
        value, _, gradient = method.critic(params, PROMPTS, jax.random.key(5), generator, None)
        return value, gradient

    through, gradient = jax.jit(jax.grad(loss, has_aux=True))(generator)
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(through))


def test_causal_dmd_needs_clips_to_begin_from(networks):
    with pytest.raises(ValueError, match="causal DMD begins from clips"):
        ONE_GRAPH["causal DMD"][1].make_clip(networks[0], PROMPTS, jax.random.key(0))


def test_causal_dmd_of_a_network_with_text_adaln_needs_a_scalar_sigma(networks):
    method = CausalDmd(model=tiny.MODERN, sampler=SAMPLER, **WHOLE)
    with pytest.raises(ValueError, match="text_adaln=True: a masked clip has several noise levels"):
        method.make_clip(networks[0], {**PROMPTS, **CLIPS}, jax.random.key(0))


def test_weights_of_blocks_and_streams_reach_the_gradient_on_the_clip():
    clip = Streams(*(jnp.ones((1, 2 * b, 3)) for b in (7, 51)))
    clip = Streams(clip.video, clip.audio[:, :51])
    ramp = dmd.DmdConfig(block_weights=dmd.BlockWeights.LINEAR_RAMP, audio_weight=0.5)
    slope = dmd.clip_cotangent(clip, STAGE_3.blocks, ramp)
    assert slope.video[0, 0, 0] * clip.video.size == pytest.approx(0.5)
    assert slope.video[0, -1, 0] * clip.video.size == pytest.approx(1.0)
    assert slope.audio[0, -1, 0] * clip.audio.size == pytest.approx(0.5)
