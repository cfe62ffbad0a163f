"""On any mesh the trainings and the stream compute what one device computes, with nothing whole that should be cut."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from omniforcing_jax.config import EightBitKind, SamplerConfig
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.generator_critic import (
    BackwardSimulation,
    CausalDmd,
    Frozen,
    SelfForcingConfig,
    self_forcing_of,
)
from omniforcing_jax.distill.ode import OdeConfig, Prompts, Trajectory, ode_loss
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.eight_bits import EightBitCache
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.model.transformer import keep_projections, text_kv, transformer_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.parallel.spec import path_name
from omniforcing_jax.rollout import (
    StaticConfig,
    block_positions,
    commit_block,
    denoise_block,
    make_cache,
    make_prompt_kv,
)
from omniforcing_jax.text.contexts import TextContexts

ROWS = 8
VIDEO, AUDIO = (dataclasses.replace(s, heads=8, head_size=h) for s, h in ((tiny.TINY.video, 8), (tiny.TINY.audio, 4)))
TEACHER = dataclasses.replace(tiny.TINY, video=VIDEO, audio=AUDIO)
STUDENT = dataclasses.replace(TEACHER, sinks=2)
SPECS = transformer_spec(STUDENT)
SAMPLER = SamplerConfig(sigmas=(1.0, 0.6, 0.0), horizon_seconds=2, context_noise=0.1, window=2)
STATIC = StaticConfig(STUDENT, SAMPLER, (1, 2))
STAGE_3 = self_forcing_of(STATIC, TEACHER, SelfForcingConfig(seconds=2))
BLOCKS = PREFIX.blocks(4)
CUBE = "2,2,2"
MORE = ("8,1,1", "1,8,1", "1,1,8")


def contexts(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    video, audio = (rng.normal(size=(rows, 4, STUDENT.caption_channels)).astype(np.float32) for _ in "va")
    return TextContexts(video, audio, np.ones((rows, 4), np.int32))


def features(batch):
    """Contexts as a batch has them."""
    return {f"context_{name}": value for name, value in batch._asdict().items()}


def generator(params, batch, key, critic, teacher, negative):
    return STAGE_3.generator(params, features(batch), key, critic, Frozen(teacher, negative))


def critic(params, batch, key, student, *_):
    return STAGE_3.critic(params, features(batch), key, student, None)


def draw(key, *leading):
    """Draw a clip for every row, or several."""
    shapes = ((4 * 2, VIDEO.latent_channels), (26, AUDIO.latent_channels))
    return [
        jax.random.normal(k, (*leading, ROWS, *shape)) for k, shape in zip(jax.random.split(key), shapes, strict=True)
    ]


def one_graph(params, batch, key, critic, teacher, negative, *, method):
    """Stage 1 and causal DMD, the latter on clips that the key draws."""
    for_clips, for_step = jax.random.split(key)
    clips = dict(zip(("video", "audio"), (x[:, None] for x in draw(for_clips)), strict=True))
    return method.generator(params, {**features(batch), **clips}, for_step, critic, Frozen(teacher, negative))


def ode(params, batch, key, *_):
    """Stage 2, on trajectories that the key draws."""

    def loss(params):
        for_clips, for_loss = jax.random.split(key)
        video, audio = draw(for_clips, 3)
        trajectory = Trajectory(video=video, audio=audio, sigmas=jnp.asarray(SAMPLER.sigmas, jnp.float32))
        network = clip_network(STUDENT, make_positions(STUDENT, clip_block(4, 26), STATIC.grid), remat=keep_projections)
        text = Prompts(prompt=text_kv(params, *batch))
        return ode_loss(params, trajectory, text, for_loss, BLOCKS, network, OdeConfig())

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, metrics, gradient


WHOLE = {"scorer": TEACHER, "blocks": BLOCKS, "grid": STATIC.grid}
STAGES = {
    "stage 1": partial(one_graph, method=BackwardSimulation(model=TEACHER, sigmas=SAMPLER.sigmas, **WHOLE)),
    "stage 2": ode,
    "stage 3 generator": generator,
    "stage 3 critic": critic,
    "causal DMD": partial(one_graph, method=CausalDmd(model=STUDENT, sampler=SAMPLER, **WHOLE)),
}
NETWORKS = {  # in training, beside it
    "stage 1": (TEACHER, (TEACHER, TEACHER)),
    "stage 2": (STUDENT, ()),
    "stage 3 generator": (STUDENT, (TEACHER, TEACHER)),
    "stage 3 critic": (TEACHER, (STUDENT,)),
    "causal DMD": (STUDENT, (TEACHER, TEACHER)),
}


def arguments(stage, mesh=None):
    """Networks, batch and key of a stage, on a mesh or on one device."""
    trained, beside = NETWORKS[stage]

    def network(config, seed):
        params = tiny.random_params(config, seed)
        return (
            params if mesh is None else jax.device_put(params, meshes.param_shardings(transformer_spec(config), mesh))
        )

    negative = meshes.replicate(contexts(1, rows=1), mesh)
    others = [network(config, 1 + i) for i, config in enumerate(beside)]
    batch = meshes.place_batch(contexts(0), ROWS, mesh)
    return network(trained, 0), batch, jax.random.key(3), *others, negative


def cut(leaf):
    """Say into how many parts a leaf is cut."""
    return leaf.size // leaf.addressable_shards[0].data.size


def stream(params, mesh=None, static=STATIC):
    """Four blocks with a window of two: the ring wraps. Returns the clip and the last cache."""
    rows = 4
    prompt = make_prompt_kv(params, *meshes.replicate(contexts(0, rows), mesh), static=static)
    cache, keys = make_cache(static, rows), jax.random.split(jax.random.key(0), rows)
    denoise = jax.jit(partial(denoise_block, static=static))
    commit = jax.jit(partial(commit_block, static=static), donate_argnums=1)
    clip = []
    for k in range(4):
        positions = block_positions(static, k)
        latents, cache = denoise(params, cache, prompt, keys, positions)
        clip.append(latents)
        cache = commit(params, cache, prompt, keys, clip[-1], positions)
    return clip, cache, (denoise._cache_size(), commit._cache_size())


@functools.cache
def one_device(stage):
    return jax.device_get(jax.jit(STAGES[stage])(*arguments(stage)))


# The other stages on 2,2,2, which cuts along every axis at once: tests/distill/test_generator_critic.py, beside the
# programs that they are held against. Here each stage is cut along one axis by all eight, and stage 2 along any.
ALONG = {"stage 1": "8,1,1", "stage 3 generator": "1,8,1", "stage 3 critic": "1,1,8", "causal DMD": "1,8,1"}


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("stage 2", CUBE),
        *(pytest.param("stage 2", text, marks=pytest.mark.long) for text in MORE),
        *(pytest.param(stage, text, marks=pytest.mark.long) for stage, text in ALONG.items()),
    ],
)
def test_a_training_on_a_mesh_equals_one_device(stage, text):
    mesh = make_mesh(MeshConfig.parse(text))
    with jax.set_mesh(mesh):
        loss, metrics, gradient = jax.jit(STAGES[stage])(*arguments(stage, mesh))
    expected = one_device(stage)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), metrics, expected[1])
    for (path, leaf), wanted in zip(
        jax.tree_util.tree_flatten_with_path(gradient)[0], jax.tree.leaves(expected[2]), strict=True
    ):
        np.testing.assert_allclose(leaf, wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=path_name(path))


@pytest.mark.parametrize("text", [CUBE, *(pytest.param(text, marks=pytest.mark.long) for text in MORE)])
def test_a_stream_on_a_mesh_equals_one_device_and_cuts_its_cache_by_rows_and_heads(text):
    mesh, params = make_mesh(MeshConfig.parse(text)), tiny.random_params(STUDENT)
    expected, _, programs = stream(params)
    with jax.set_mesh(mesh):
        clip, cache, programs_on_mesh = stream(jax.device_put(params, meshes.param_shardings(SPECS, mesh)), mesh)
    assert programs == programs_on_mesh == (2, 2)
    jax.tree.map(partial(np.testing.assert_allclose, atol=3e-5), clip, expected)
    rows = mesh.shape["replica"] * mesh.shape["fsdp"] if text != "8,1,1" and text != "1,8,1" else 1
    parts = rows * mesh.shape["tensor"]  # four rows: not cut by eight
    assert {cut(leaf) for leaf in jax.tree.leaves(cache.past)} == {parts}


@pytest.mark.long
def test_a_cache_in_eight_bits_is_cut_over_a_mesh_too():
    mesh, params = make_mesh(MeshConfig.parse(CUBE)), tiny.random_params(STUDENT)
    static = STATIC._replace(cache=EightBitCache(EightBitKind.INT8))
    expected, _, programs = stream(params, static=static)
    with jax.set_mesh(mesh):
        cut_params = jax.device_put(params, meshes.param_shardings(SPECS, mesh))
        clip, cache, programs_on_mesh = stream(cut_params, mesh, static)
    assert programs == programs_on_mesh == (2, 2)
    # A last bit may round a value to the next of 255.
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-3), clip, expected)
    assert {cut(leaf) for leaf in jax.tree.leaves(cache.past)} == {8}
