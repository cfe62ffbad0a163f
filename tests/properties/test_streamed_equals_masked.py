import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.layout import FUSED, PREFIX
from omniforcing_jax.model.place import place, rotaries, turn_by, turning
from omniforcing_jax.model.view import on_context, one_sigma, streaming
from omniforcing_jax.nn.attention import KV, NO_PAST, Sites
from omniforcing_jax.nn.rope import rotate
from tests.properties.clips import Clip, assert_close, build, forward, horizon, run_block, run_masked, run_stream
from tests.tiny import GRID, INTERLEAVED, MODERN, SINKS, TINY, TOKENS, random_text

LIMIT = 2e-5
SUNK = Clip(SINKS)  # five blocks behind three sinks


@pytest.mark.parametrize(("window", "pin"), [(1, True), (1, False), (2, True), (2, False), (5, False)])
def test_streamed_equals_masked_before_and_after_the_ring_wraps(window, pin):
    expected, _ = run_masked(SUNK, window=window, pin_prefix=pin, dense=True)
    assert_close(run_stream(SUNK, horizon(SUNK, window=window, pin_prefix=pin)), expected, LIMIT)


def test_an_open_window_streams_the_whole_past():
    expected, _ = run_masked(SUNK, dense=True)
    assert_close(run_stream(SUNK, horizon(SUNK)), expected, LIMIT)


def test_streamed_equals_masked_in_the_fused_layout():
    clip = Clip(INTERLEAVED, layout=FUSED)
    expected, _ = run_masked(clip, window=2, dense=True)
    assert_close(run_stream(clip, horizon(clip, window=2, pin_prefix=False)), expected, LIMIT)


@pytest.mark.parametrize(("window", "pin"), [(None, False), (2, True)])
def test_key_prefixes_equal_the_dense_mask(window, pin):
    fast, slow = (run_masked(SUNK, window=window, pin_prefix=pin, dense=dense) for dense in (False, True))
    assert_close(fast[0], slow[0], LIMIT)


def test_log_ratio_scaling_is_the_same_in_both_forms_and_changes_the_result():
    scaled = Clip(dataclasses.replace(SINKS, log_ratio=True))
    fast, slow = (run_masked(scaled, dense=dense)[0] for dense in (False, True))
    assert_close(fast, slow, LIMIT)
    assert np.abs(fast[0] - run_masked(SUNK)[0][0]).max() > 1e-2


def test_a_stream_refuses_log_ratio_scaling():
    config = dataclasses.replace(TINY, log_ratio=True)
    with pytest.raises(ValueError, match="log_ratio=True"):
        streaming(config, rotaries(config, place(config, PREFIX.block(1), GRID)), one_sigma(jnp.ones(1)), None)


def test_a_prefix_of_blocks_gives_the_same_values_alone():
    (video, audio), _ = run_masked(SUNK)
    short = Clip(SINKS, frames=7).with_values(
        latents=(SUNK.latents[0][:, : 7 * TOKENS], SUNK.latents[1][:, :51]),
        block_sigmas=SUNK.block_sigmas[:, :3],
        text=SUNK.text,
    )
    assert_close(run_masked(short)[0], (video[:, : 7 * TOKENS], audio[:, :51]), LIMIT)


def test_blocks_on_the_context_of_the_same_clip_are_the_masked_clip():
    expected, fresh = run_masked(SUNK)
    view = build(SINKS, functools.partial(on_context, blocks=SUNK.blocks), SUNK.places, SUNK.sigmas)
    assert_close(forward(SINKS, SUNK.params, *SUNK.latents, view, SUNK.text, fresh)[0], expected, LIMIT)


def test_beyond_the_horizon_the_stream_reads_its_window_and_the_pinned_keys_moved_along():
    clip = Clip(SINKS, frames=19)  # seven blocks, the horizon has three
    sampler = dataclasses.replace(horizon(clip), horizon_seconds=2)
    assert [sampler.shift_seconds(k) for k in range(7)] == [0, 0, 0, 1, 2, 3, 4]
    assert_close(run_stream(clip, sampler), explicit_stream(clip, sampler), LIMIT)


def explicit_stream(clip, sampler):
    """Keep every block's keys in a list and write out, per block, what it reads."""
    config, history, pieces = clip.config, [], []
    for k, block in enumerate(clip.blocks):
        bias, past = None, NO_PAST
        if k:
            turn = turning(config, turn_by(config, sampler.shift_seconds(k)))
            read = [moved(history[0], turn), *history[max(1, k - sampler.past_blocks) : k]]
            past = Sites(*(join(getattr(entry, name) for entry in read) for name in NAMES))
            bias = Sites(*(jnp.zeros((1, 1, 1, getattr(past, name).k.shape[2])) for name in NAMES))
        places, sigma = place(config, block, GRID), clip.block_sigmas[:, k]
        out, fresh = run_block(config, clip.params, clip.block_of(k), places, sigma, clip.text, past, bias)
        history.append(fresh)
        pieces.append(out)
    return tuple(jnp.concatenate(stream, axis=1) for stream in zip(*pieces, strict=True))


NAMES = ("video_self", "audio_self", "a2v", "v2a")


def moved(sites, turn):
    return Sites(*(KV(rotate(getattr(sites, n).k, getattr(turn, n)), getattr(sites, n).v) for n in NAMES))


def join(entries):
    entries = list(entries)
    return KV(*(jnp.concatenate([getattr(e, leaf) for e in entries], axis=2) for leaf in ("k", "v")))


def test_a_network_of_the_next_generation_streams_too():
    clip = Clip(MODERN, frames=7)
    clip = clip.with_values(text=random_text(MODERN, clip.params, sigma=jnp.array([0.2, 0.7])))
    expected, _ = run_masked(clip)
    assert_close(run_stream(clip, horizon(clip)), expected, LIMIT)
