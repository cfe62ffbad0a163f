import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.layout import FUSED, PREFIX, PREFIX2
from omniforcing_jax.model.positions import make_positions, rotaries, shift_phases, shift_rotations
from omniforcing_jax.model.view import on_context, one_sigma, streaming
from omniforcing_jax.nn.attention import KV, NO_PAST, Past, Sites, as_past
from omniforcing_jax.nn.mask import PastMask, mask_bias
from omniforcing_jax.nn.rope import rotate
from omniforcing_jax.streams import Streams
from tests.properties.clips import SITES, Clip, assert_close, build, forward, horizon, run_block, run_masked, run_stream
from tests.tiny import GRID, INTERLEAVED, MODERN, NEWEST, SINKS, TINY, TOKENS, random_text

LIMIT = 2e-5
SUNK = Clip(SINKS)  # five blocks behind three sinks
FORMS = pytest.mark.parametrize("has_list", [False, True], ids=["stacked", "list"])  # of the network's layers


@FORMS
@pytest.mark.parametrize(("window", "pin"), [(1, 1), (1, 0), (2, 1), (2, 0), (5, 0), (1, 2), (2, 3)])
def test_streamed_equals_masked_before_and_after_the_ring_wraps(window, pin, has_list):
    expected, _ = run_masked(SUNK, window=window, pinned=pin, dense=True)
    assert_close(run_stream(SUNK, horizon(SUNK, window=window, pinned=pin), has_list=has_list), expected, LIMIT)


def test_an_open_window_streams_the_whole_past():
    expected, _ = run_masked(SUNK, dense=True)
    assert_close(run_stream(SUNK, horizon(SUNK)), expected, LIMIT)


@pytest.mark.parametrize(("layout", "pinned"), [(FUSED, 0), (PREFIX2, 2)])
def test_streamed_equals_masked_in_the_layouts_of_the_releases(layout, pinned):
    clip = Clip(INTERLEAVED, layout=layout)
    expected, _ = run_masked(clip, window=2, pinned=pinned, dense=True)
    assert_close(run_stream(clip, horizon(clip, window=2, pinned=pinned)), expected, LIMIT)


@pytest.mark.parametrize(("window", "pin"), [(None, 0), (2, 1), (2, 2)])
def test_key_prefixes_equal_the_dense_mask(window, pin):
    fast, slow = (run_masked(SUNK, window=window, pinned=pin, dense=dense) for dense in (False, True))
    assert_close(fast[0], slow[0], LIMIT)


def test_log_ratio_scaling_is_the_same_in_both_forms_and_changes_the_result():
    scaled = Clip(dataclasses.replace(SINKS, log_ratio=True))
    fast, slow = (run_masked(scaled, dense=dense)[0] for dense in (False, True))
    assert_close(fast, slow, LIMIT)
    assert np.abs(fast[0] - run_masked(SUNK)[0][0]).max() > 1e-2


def test_a_stream_refuses_log_ratio_scaling():
    config = dataclasses.replace(TINY, log_ratio=True)
    with pytest.raises(ValueError, match="log_ratio=True"):
        streaming(config, rotaries(config, make_positions(config, PREFIX.block(1), GRID)), one_sigma(jnp.ones(1)), None)


def test_a_prefix_of_blocks_gives_the_same_values_alone():
    (video, audio), _ = run_masked(SUNK)
    short = Clip(SINKS, frames=7).with_values(
        latents=Streams(SUNK.latents[0][:, : 7 * TOKENS], SUNK.latents[1][:, :51]),
        block_sigmas=SUNK.block_sigmas[:, :3],
        text=SUNK.text,
    )
    assert_close(run_masked(short)[0], (video[:, : 7 * TOKENS], audio[:, :51]), LIMIT)


def test_blocks_on_the_context_of_the_same_clip_are_the_masked_clip():
    expected, fresh = run_masked(SUNK)
    view = build(SINKS, functools.partial(on_context, blocks=SUNK.blocks), SUNK.positions, SUNK.sigmas)
    assert_close(forward(SINKS, SUNK.params, SUNK.latents, view, SUNK.text, as_past(fresh))[0], expected, LIMIT)


@FORMS
@pytest.mark.parametrize(("window", "pin"), [(1, 1), (2, 1), (3, 1), (2, 0), (2, 2), (1, 3)])
def test_before_at_and_after_the_horizon_the_stream_reads_its_window_and_the_pinned_keys_moved_along(
    window, pin, has_list
):
    clip = Clip(SINKS, frames=19)  # seven blocks, the horizon has three
    sampler = dataclasses.replace(horizon(clip, window=window, pinned=pin), horizon_seconds=2)
    assert [sampler.shift_seconds(k) for k in range(7)] == [0, 0, 0, 1, 2, 3, 4]
    assert_close(run_stream(clip, sampler, has_list=has_list), explicit_stream(clip, sampler), LIMIT)


LAYOUTS = {"1 + 1": PREFIX, "1 + 2": PREFIX2, "4 + 26": FUSED}


@pytest.mark.long
@pytest.mark.parametrize("pinned", [0, 1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_with_every_count_of_pinned_blocks_streams_its_masked_clip_also_beyond_the_horizon(layout, pinned):
    clip = Clip(SINKS, layout=LAYOUTS[layout], frames=19)  # 7 blocks, or 6 of "4 + 26"; the ring of one block wraps
    sampler = horizon(clip, window=2, pinned=pinned)
    assert_close(run_stream(clip, sampler), run_masked(clip, window=2, pinned=pinned, dense=True)[0], LIMIT)
    short = dataclasses.replace(sampler, horizon_seconds=3)
    shifts = [short.shift_seconds(k) for k in range(len(clip.blocks))]
    assert shifts == [*[0] * (len(shifts) - 3), 1, 2, 3]
    assert_close(run_stream(clip, short), explicit_stream(clip, short), LIMIT)


def test_moving_the_pinned_keys_along_shows_only_beyond_the_horizon():
    clip = Clip(SINKS, frames=19)
    sampler = dataclasses.replace(horizon(clip, window=2), horizon_seconds=2)
    moved, still = explicit_stream(clip, sampler), explicit_stream(clip, sampler, moves=False)
    within = clip.blocks[2].video_end * TOKENS
    assert_close([moved[0][:, :within]], [still[0][:, :within]], 0)
    assert np.abs(moved[0][:, within:] - still[0][:, within:]).max() > 1e-3


def test_without_anchoring_anew_the_stream_reads_pinned_keys_where_they_were():
    clip = Clip(SINKS, frames=19)
    sampler = dataclasses.replace(horizon(clip, window=2), horizon_seconds=2, reanchor=False)
    assert [sampler.shift_seconds(k) for k in range(7)] == [0] * 7
    assert_close(run_stream(clip, sampler), explicit_stream(clip, sampler, moves=False), LIMIT)


def explicit_stream(clip, sampler, *, moves=True):
    """Keep the keys of all blocks as they were made, and write out for every block what it reads: the slow truth."""
    history, pieces = [], []
    for k, block in enumerate(clip.blocks):
        shift = sampler.shift_seconds(k) if moves else 0
        past, bias = recall(clip, sampler, history, shift) if k else (NO_PAST, None)
        positions, sigma = make_positions(clip.config, block, GRID), clip.block_sigmas[:, k]
        out, fresh = run_block(clip.config, clip.params, clip.block_of(k), positions, sigma, clip.text, past, bias)
        history.append(fresh)
        pieces.append(out)
    return jax.tree.map(lambda *blocks: jnp.concatenate(blocks, axis=1), *pieces)


def recall(clip, sampler, history, shift):
    """Room for the keys of the whole clip at each site, so that one program does; unseen keys are hidden."""
    k, shift = len(history), shift_rotations(clip.config, shift_phases(clip.config, shift))
    past, bias = {}, {}
    for name in SITES:
        is_audio = name in ("audio_self", "a2v")
        sinks = clip.config.sinks if is_audio else 0
        sizes = [block.audio_frames if is_audio else block.video_frames * TOKENS for block in clip.blocks]
        block_of = np.repeat(np.arange(len(sizes)), [sinks + sizes[0], *sizes[1:]])
        is_pinned = (block_of < sampler.pinned) | (np.arange(len(block_of)) < sinks)
        made = join(getattr(entry, name) for entry in history)
        room = ((0, 0), (0, 0), (0, len(block_of) - made.k.shape[2]), (0, 0), (0, 0))
        keys, values = (jnp.pad(x, room) for x in (made.k, made.v))
        keys = jnp.where(is_pinned[:, None, None], rotate(keys, getattr(shift, name)), keys)
        is_seen = (block_of < k) & ((k - block_of < sampler.past_blocks + 1) | is_pinned)
        past[name], bias[name] = Past(KV(keys, values)), PastMask(mask_bias(jnp.asarray(is_seen))[None, None, None])
    return Sites(**past), Sites(**bias)


def join(entries):
    entries = list(entries)
    return KV(*(jnp.concatenate([getattr(e, leaf) for e in entries], axis=2) for leaf in ("k", "v")))


def test_a_network_of_the_next_generation_streams_too():
    clip = Clip(MODERN, frames=7)
    clip = clip.with_values(text=random_text(MODERN, clip.params, sigma=jnp.array([0.2, 0.7])))
    expected, _ = run_masked(clip)
    assert_close(run_stream(clip, horizon(clip)), expected, LIMIT)


@pytest.mark.parametrize("has_list", [False, pytest.param(True, marks=pytest.mark.long)], ids=["stacked", "list"])
def test_a_network_of_ltx_2_5_streams_too_and_marks_the_first_latent_frame_only(has_list):
    clip = Clip(NEWEST, frames=7)
    expected, _ = run_masked(clip, window=1, pinned=1)
    assert_close(run_stream(clip, horizon(clip, window=1), has_list=has_list), expected, LIMIT)
    blank = dataclasses.replace(clip.params, keyframe=jnp.zeros_like(clip.params.keyframe))
    unmarked, _ = run_masked(clip.with_values(params=blank), window=1, pinned=1)
    assert np.abs(expected.video - unmarked.video)[:, :TOKENS].max() > 1e-2
