"""Cameras of a stream: keys and paths, and what is refused; streamed equals masked. A whole walk: test_echowm.py."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import fill
from tiny import GRID, MODERN, TOKENS, random_latents, random_params, random_text

from omniforcing_jax.config import CameraConfig, CameraMotion, CrossTimestep, SamplerConfig
from omniforcing_jax.layout import PREFIX2
from omniforcing_jax.model.cache import commit, empty_cache, past_masks
from omniforcing_jax.model.cameras import Shots, cameras_of_block, cameras_of_clip, lens_matrix
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries, shift_phases, shift_rotations
from omniforcing_jax.model.transformer import list_layers, predict, transformer_spec
from omniforcing_jax.model.view import Sigmas, masked, one_sigma, streaming
from omniforcing_jax.nn.attention import NO_PAST
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.pipeline.pipeline import abstract_pipeline
from omniforcing_jax.pipeline.presets import TINY_CLIP, TINY_STREAM
from omniforcing_jax.rollout import (
    StaticConfig,
    block_positions,
    commit_block,
    denoise_block,
    make_cache,
    make_prompt_kv,
)
from omniforcing_jax.sample.clip import sample_clip
from omniforcing_jax.stream.camera.motion import Segment, parse_camera
from omniforcing_jax.stream.camera.path import (
    CameraPath,
    advance_path,
    begin_path,
    change_path,
    check_path,
    next_positions,
)
from omniforcing_jax.stream.conditioning.compress import compress_frames
from omniforcing_jax.stream.conditioning.condition import Condition
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

CAMERA = dataclasses.replace(MODERN, camera=CameraConfig(heads=2, head_size=16), cross_timestep=CrossTimestep.CROSS)
SAMPLER = SamplerConfig(layout=PREFIX2, sigmas=(1.0, 0.7, 0.0), horizon_seconds=4, window=2, pinned=2, scalar_sigma=1.0)
QUICK = {"xla_backend_optimization_level": 0}
KEYS = "w-24,wd-48,j-24"

run_predict = jax.jit(predict, static_argnames="config", compiler_options=QUICK)


@cache
def weights():
    """A student with cameras that must begin with a picture."""
    sampler = dataclasses.replace(SAMPLER, horizon_seconds=3, needs_picture=True)
    return fill(abstract_pipeline(dataclasses.replace(TINY_STREAM, model=CAMERA, sampler=sampler, words=None)))


def contexts():
    return TextContexts(jnp.ones((1, 3, 64)), jnp.ones((1, 3, 32)), jnp.ones((1, 3), jnp.int32))


@pytest.mark.parametrize("is_listed", [False, pytest.param(True, marks=pytest.mark.long)], ids=["stacked", "listed"])
def test_a_stream_through_cameras_is_the_masked_clip(is_listed):
    """Two pinned blocks and one more: a block leaves the window before the clip ends, within the horizon."""
    blocks = PREFIX2.blocks(13)
    frames, audio_frames = blocks[-1].video_end, blocks[-1].audio_end
    params, noisy = random_params(CAMERA), random_latents(CAMERA, frames, audio_frames)
    path, poses = begin_path(KEYS), []
    for k in range(len(blocks)):
        path = advance_path(path, CameraMotion(), SAMPLER, k)
        rows = np.array(path.seen[-1].poses).reshape(-1, 3, 4)
        poses.append(np.concatenate([rows, np.tile([[[0, 0, 0, 1.0]]], (len(rows), 1, 1))], axis=1)[None])
    shots = {k: Shots(each, np.broadcast_to(lens_matrix(70.0, *GRID), each.shape)) for k, each in enumerate(poses)}
    whole = Shots(*(np.concatenate(each, axis=1) for each in zip(*shots.values(), strict=True)))
    levels = np.random.default_rng(1).uniform(0.1, 1, (2, len(blocks))).astype(np.float32)
    one = jnp.ones(2)
    text = random_text(CAMERA, params, sigma=one)
    sigmas = Sigmas(
        jnp.asarray(np.repeat(levels, [b.video_frames for b in blocks], axis=1)),
        jnp.asarray(np.repeat(levels, [b.audio_frames for b in blocks], axis=1)),
        one,
        one,
    )
    clip = make_positions(CAMERA, clip_block(frames, audio_frames), GRID, cameras=cameras_of_clip(whole))
    view = masked(CAMERA, rotaries(CAMERA, clip), sigmas, blocks, window=2, pinned=2)
    expected = run_predict(params, CAMERA, noisy, view, text).velocity
    if is_listed:
        params = list_layers(params)
        text = random_text(CAMERA, params, sigma=one)
    cache, static = empty_cache(CAMERA, SAMPLER, GRID, 2, has_list=is_listed), StaticConfig(CAMERA, SAMPLER, GRID)
    still, made = shift_rotations(CAMERA, shift_phases(CAMERA, 0)), []
    for k, block in enumerate(blocks):
        own = block_positions(static, k, cameras_of_block(SAMPLER, cache.video, shots, k))
        level = dataclasses.replace(one_sigma(jnp.asarray(levels[:, k])), scalar_video=one, scalar_audio=one)
        view = streaming(CAMERA, rotaries(CAMERA, own.tokens), level, past_masks(cache, still) if k else None)
        tokens = Streams(
            noisy.video[:, block.video_start * TOKENS : block.video_end * TOKENS],
            noisy.audio[:, block.audio_start : block.audio_end],
        )
        past = cache.past if k else NO_PAST
        velocity, fresh = run_predict(params, CAMERA, tokens, view, text, past=past)
        cache = commit(cache, fresh)
        made.append(velocity)
    streamed = jax.tree.map(lambda *pieces: jnp.concatenate(pieces, axis=1), *made)
    for ours, other in zip(streamed, expected, strict=True):
        np.testing.assert_allclose(ours, other, atol=2e-4)


@pytest.mark.long
def test_a_stream_through_cameras_on_a_mesh_equals_one_device():
    config, sampler = dataclasses.replace(CAMERA, sinks=0), dataclasses.replace(SAMPLER, horizon_seconds=3)
    static, params = StaticConfig(config, sampler, (1, 2)), random_params(config)
    mesh = make_mesh(MeshConfig.parse("2,2,2"))
    expected = roll_out(params, static)
    with jax.set_mesh(mesh):
        cut = roll_out(jax.device_put(params, meshes.param_shardings(transformer_spec(config), mesh)), static, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), cut, expected)


def roll_out(params, static, mesh=None):
    """Four blocks of four rows along one path: two are pinned, and the ring has one."""
    rows, path, clip = 4, begin_path(KEYS), []
    text = TextContexts(jnp.ones((rows, 3, 64)), jnp.ones((rows, 3, 32)), jnp.ones((rows, 3), jnp.int32))
    prompt = make_prompt_kv(params, *meshes.replicate(text, mesh), static=static)
    cache, keys = make_cache(static, rows), jax.random.split(jax.random.key(0), rows)
    for k in range(4):
        positions, path = next_positions(static, path, cache.video, k)
        latents, cache = denoise_block(params, cache, prompt, keys, positions, static=static)
        cache = commit_block(params, cache, prompt, keys, latents, positions, static=static)
        clip.append(latents)
    return jax.device_get(clip)


def test_what_a_stream_with_cameras_needs_is_refused_without_it(no_work):
    with pytest.raises(ValueError, match="from-image=None: these weights make no first picture"):
        open_stream(weights(), "", 3, contexts=contexts())
    with pytest.raises(ValueError, match="camera='w-24': 'tiny' has no camera attention"):
        open_stream(fill(abstract_pipeline(TINY_STREAM)), "a red ball", 3, camera="w-24")


@pytest.mark.parametrize("text", ["", "w", "w-0", "w-x", "q-3", "w-24,", "none", "wnone-3", "w--3", "-3"])
def test_keys_that_cannot_be_read_are_refused_by_their_segment(text):
    with pytest.raises(ValueError, match=r"^camera=.*is no segment, must be KEYS-FRAMES"):
        parse_camera(text)


@pytest.mark.long
def test_a_teacher_s_clip_follows_the_camera():
    """The tiny network as a teacher: standing is the default, and keys change the clip."""
    config = dataclasses.replace(TINY_CLIP, model=CAMERA, words=None)
    teacher = fill(abstract_pipeline(config))
    how = {"seconds": 1, "steps": 2, "guidance": 1.0, "contexts": contexts()}
    still, moved = (sample_clip(teacher, [""], camera=camera, **how)[0] for camera in (None, "wl-24"))
    assert not np.array_equal(still.video, moved.video)
    with pytest.raises(ValueError, match="camera='w-24': 'tiny-teacher' has no camera attention"):
        sample_clip(fill(abstract_pipeline(TINY_CLIP)), ["a red ball"], camera="w-24")


def test_keys_are_read_in_any_order_and_case():
    expected = (Segment(keys="wd", frames=24), Segment(keys="", frames=3))
    assert parse_camera(" DWd - 24，none-3") == parse_camera("wd-24,none-3") == expected


def test_a_path_in_pieces_is_the_whole_path_and_stands_at_its_end():
    motion = CameraMotion()
    whole, pieces = begin_path("w-8,d-20"), change_path(CameraPath(), "w-8,d-20")
    for k in range(3):
        whole, pieces = (advance_path(path, motion, SAMPLER, k) for path in (whole, pieces))
    assert whole == pieces
    check_path(whole, SAMPLER, 3)
    with pytest.raises(ValueError, match=r"camera.seen=\[0, 1, 2\]: must be the frames of blocks"):
        check_path(whole, SAMPLER, 5)
    stood = advance_path(advance_path(whole, motion, SAMPLER, 3), motion, SAMPLER, 4)
    assert len(set(stood.seen[-1].poses)) == 1
    assert stood.state.velocity == (0.0, 0.0, 0.0, 0.0)


def test_a_compressed_picture_is_the_picture_to_a_few_levels():
    smooth = np.linspace(40, 200, 64 * 96 * 3).reshape(1, 64, 96, 3).astype(np.uint8)
    back = compress_frames(smooth, 33)
    assert back.shape == smooth.shape
    assert 0 < np.abs(back.astype(int) - smooth).mean() < 12
    with pytest.raises(ValueError, match="compress=52: must be between 0 and 51"):
        Condition(picture=smooth, compress=52)
