"""The players of every stage on a tiny pair of networks: what they need, and that each pulls where it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill import dmd, generator_critic
from omniforcing_jax.distill.generator_critic import SelfForcing, SelfForcingConfig, WholeClip
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.positions import rotaries
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.parallel.spec import path_name
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

ROWS = 4
STUDENT, TEACHER = tiny.SINKS, tiny.TINY
SAMPLER = SamplerConfig(sigmas=(1.0, 0.6, 0.0), horizon_seconds=2, context_noise=0.1)
STATIC = StaticConfig(STUDENT, SAMPLER, (1, 2))
PLAYERS = SelfForcing(STATIC, TEACHER, SelfForcingConfig(seconds=2))

CUBE = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
BLOCKS = PREFIX.blocks(4)
WHOLE = {"scorer": TEACHER, "blocks": BLOCKS, "grid": tiny.GRID}
CLIPS = Streams(*tiny.random_latents(TEACHER, 4, 26, batch=ROWS))
MAKERS = {
    "stage 1": (TEACHER, generator_critic.from_simulation(TEACHER, SAMPLER.sigmas, BLOCKS, tiny.GRID), None),
    "causal DMD": (STUDENT, generator_critic.from_clips(STUDENT, SAMPLER.sigmas, BLOCKS, tiny.GRID), CLIPS),
}


def contexts(seed: int) -> TextContexts:
    rng = np.random.default_rng(seed)
    video, audio = (jnp.asarray(rng.normal(size=(ROWS, 4, TEACHER.caption_channels)), jnp.float32) for _ in "va")
    return TextContexts(video, audio, jnp.ones((ROWS, 4), jnp.int32))


@pytest.fixture(scope="module")
def networks():
    return tiny.random_params(STUDENT), tiny.random_params(TEACHER, 1), tiny.random_params(TEACHER, 2)


@pytest.fixture(scope="module", params=MAKERS)
def whole_clip(request, networks):
    """A generator whose clip is one graph: its program, networks and clean clips, and what one device makes of them."""
    model, make_clip, clips = MAKERS[request.param]
    program = jax.jit(WholeClip(make_clip=make_clip, **WHOLE).generator)
    trained = networks[0] if model is STUDENT else tiny.random_params(TEACHER, 3)
    made = program(trained, contexts(0), contexts(1), jax.random.key(3), *networks[1:], clips)
    return program, (trained, *networks[1:]), clips, made


@pytest.fixture(scope="module")
def generator():
    return jax.jit(PLAYERS.generator)


@pytest.fixture(scope="module")
def critic_loss():
    return jax.jit(jax.value_and_grad(PLAYERS.critic, has_aux=True))


def on_mesh(mesh, networks, *batches):
    """Cut networks and batches over a mesh."""
    positions = {id(net): meshes.param_shardings(transformer_spec(net), mesh) for net in (STUDENT, TEACHER)}
    put = [jax.device_put(p, positions[id(STUDENT if p.sinks is not None else TEACHER)]) for p in networks]
    return put, [meshes.place_batch(jax.tree.map(np.asarray, batch), ROWS, mesh) for batch in batches]


def assert_same(one, other):
    """Compare losses, metrics and gradients within the noise of float32."""
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-5 * np.abs(y).max() + 1e-7, err_msg=path_name(path))


def test_the_clip_is_as_long_as_the_horizon():
    assert (PLAYERS.blocks[-1].video_end, PLAYERS.blocks[-1].audio_end) == (7, 51)
    with pytest.raises(ValueError, match="seconds=3: the student's horizon is 2 s"):
        SelfForcing(STATIC, TEACHER, SelfForcingConfig(seconds=3))


def test_a_generator_step_reaches_every_weight_and_depends_on_its_key_alone(networks, generator):
    student, critic, teacher = networks
    step = [generator(student, contexts(0), contexts(1), jax.random.key(i), critic, teacher) for i in (3, 3, 4)]
    (loss, metrics, gradient), again, other = step
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(np.testing.assert_array_equal, gradient, again[2])
    assert float(loss) != float(other[0])
    assert {"dmd_video", "dmd_audio", "push_video", "gap_audio"} <= metrics.keys()


def test_a_critic_that_is_the_teacher_pulls_nowhere_but_where_guidance_does(networks):
    _, _, teacher = networks
    turned = rotaries(TEACHER, PLAYERS.positions)
    clip = Streams(*tiny.random_latents(TEACHER, 7, 51, batch=ROWS))
    clip = Streams(clip.video[:, : 7 * 2], clip.audio)

    @jax.jit
    def push(teacher, negative):
        scorer = dmd.Scorer(teacher=teacher, critic=teacher, rotaries=turned, model=TEACHER)
        return dmd.dmd_gradient(clip, scorer, contexts(0), negative, jax.random.key(3), dmd.DmdConfig())[0]

    same, other = push(teacher, contexts(0)), push(teacher, contexts(1))
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 0, atol=1e-4), same)
    assert all(float(jnp.abs(x).max()) > 1e-2 for x in other)


def test_the_generator_on_a_mesh_equals_one_device(networks, generator):
    expected = generator(networks[0], contexts(0), contexts(1), jax.random.key(3), *networks[1:])
    with jax.set_mesh(CUBE):
        (student, *others), batches = on_mesh(CUBE, networks, contexts(0), contexts(1))
        found = generator(student, *batches, jax.random.key(3), *others)
    assert_same(found, expected)
    for path, leaf in jax.tree_util.tree_flatten_with_path(found[2].layers)[0]:  # a gradient lies as its weight does
        if leaf.ndim == 3 and path_name(path).endswith("/w"):
            assert leaf.size // leaf.addressable_shards[0].data.size == 4, path_name(path)


def test_the_critic_on_a_mesh_equals_one_device(networks, critic_loss):
    expected = critic_loss(networks[1], contexts(0), jax.random.key(5), networks[0])
    with jax.set_mesh(CUBE):
        (student, critic, _), (batch,) = on_mesh(CUBE, networks, contexts(0))
        assert_same(critic_loss(critic, batch, jax.random.key(5), student), expected)


def test_the_critic_learns_from_clips_that_it_cannot_change(networks, critic_loss):
    student, critic, _ = networks
    (value, metrics), gradient = critic_loss(critic, contexts(0), jax.random.key(5), student)
    assert float(value) == pytest.approx(float(metrics["video"] + metrics["audio"]))
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
    through = jax.grad(lambda generator: PLAYERS.critic(critic, contexts(0), jax.random.key(5), generator)[0])
    blank = jax.jit(through)(student)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(blank))


def test_every_clip_of_a_batch_is_rolled_out_from_noise_of_its_own():
    _, _, draw = PLAYERS._draws(jax.random.key(3), contexts(0))
    video, audio = draw(jnp.int32(0), 0, PLAYERS.tables.first)
    assert all(len(np.unique(x[:, 0, 0])) == ROWS for x in (video, audio))


def test_a_clip_in_one_graph_on_a_mesh_equals_one_device(whole_clip):
    program, networks, clips, expected = whole_clip
    with jax.set_mesh(CUBE):
        (params, *others), (*rows, clips) = on_mesh(CUBE, networks, contexts(0), contexts(1), clips)
        assert_same(program(params, *rows, jax.random.key(3), *others, clips), expected)


def test_a_clip_in_one_graph_reaches_every_weight(whole_clip):
    _, (params, *_), _, (loss, metrics, gradient) = whole_clip
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert float(loss) == pytest.approx(float(metrics["dmd_video"] + metrics["dmd_audio"]))


def test_the_critic_of_a_whole_clip_cannot_change_it(networks):
    _, critic, generator = networks
    whole = WholeClip(make_clip=MAKERS["stage 1"][1], **WHOLE)
    pull = jax.jit(jax.grad(whole.critic, argnums=(0, 3), has_aux=True))
    (gradient, through), _ = pull(critic, contexts(0), jax.random.key(5), generator)
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(through))


def test_causal_dmd_needs_clips_to_begin_from(networks):
    with pytest.raises(ValueError, match="clips=None"):
        MAKERS["causal DMD"][1](networks[0], contexts(0), None, jax.random.key(0))


def test_weights_of_blocks_and_streams_reach_the_gradient_on_the_clip():
    clip = Streams(*(jnp.ones((1, 2 * b, 3)) for b in (7, 51)))
    clip = Streams(clip.video, clip.audio[:, :51])
    ramp = dmd.DmdConfig(block_weights=dmd.BlockWeights.LINEAR_RAMP, audio_weight=0.5)
    slope = dmd.clip_cotangent(clip, PLAYERS.blocks, ramp)
    assert slope.video[0, 0, 0] * clip.video.size == pytest.approx(0.5)
    assert slope.video[0, -1, 0] * clip.video.size == pytest.approx(1.0)
    assert slope.audio[0, -1, 0] * clip.audio.size == pytest.approx(0.5)
