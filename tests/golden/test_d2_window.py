"""Golden d2: a window of past blocks, with and without a pinned block 0, masked and through the ring cache."""

import functools
import re

import golden_network as net
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import Case, list_variants, needs_golden

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.model.cache import commit, empty_cache, past_masks
from omniforcing_jax.model.positions import shift_phases, shift_rotations
from omniforcing_jax.model.view import Sigmas, masked, one_sigma, streaming, token_spans
from omniforcing_jax.nn.attention import NO_PAST
from omniforcing_jax.nn.mask import visible_tokens
from omniforcing_jax.streams import Streams

pytestmark = [needs_golden, pytest.mark.usefixtures("strict")]
NAME, INPUTS_FROM = "d2_rolling_window_derived", "b_causal_v2_masked"
TABLES = pytest.mark.parametrize("own_tables", [False, True], ids=["recorded_tables", "own_tables"])
VARIANT = pytest.mark.parametrize("variant", list_variants(NAME))

run_commit = jax.jit(commit)


@functools.cache
def inputs() -> Case:
    return Case(INPUTS_FROM)


def find_window(case: Case, variant: str) -> tuple[int, bool]:
    """Read from a variant's words how many blocks are seen, the current one included, and whether 0 is pinned."""
    meaning = case.meta["tensors"][f"out.{variant}.video_velocity"]["meaning"]
    past, kept = re.fullmatch(r"window of (\d+) past block\(s\), sink block 0 kept: (True|False)", meaning).groups()
    return int(past) + 1, kept == "True"


def prepare(case: Case, variant: str, own_tables: bool):
    """Return config, weights, text, blocks, rotary tables, and the window and whether block 0 is pinned."""
    config = net.config_of(case, inputs().config)
    frames, audio_frames, grid = (inputs().config[name] for name in ("frames", "audio_frames", "grid"))
    own = net.own_rotaries(config, frames, audio_frames, grid)
    params = net.load_params(case.config["weights"], config)
    text = net.run_text_kv(
        params,
        inputs()["in.video_context"],
        inputs()["in.audio_context"],
        jnp.asarray(inputs()["in.text_mask"], jnp.int32),
    )
    blocks = net.LAYOUTS[inputs().config["layout"]].blocks(frames)
    np.testing.assert_array_equal(np.array(blocks), case.config["blocks"])
    tables = own if own_tables else net.masked_rotaries(inputs(), config)
    return config, params, text, blocks, tables, find_window(case, variant)


def compare_velocities(case: Case, variant: str, video, audio, own_tables: bool) -> None:
    name = f"out.{variant}.video_velocity"
    case.compare(name, net.as_latents(video, case[name]), own_tables)
    case.compare(f"out.{variant}.audio_velocity", audio, own_tables)
    case.assert_all_compared(f"out.{variant}.*")


@TABLES
@VARIANT
def test_a_banded_mask_is_the_reference_with_fewer_blocks(variant, own_tables):
    case = Case(NAME)
    config, params, text, blocks, tables, (window, pinned) = prepare(case, variant, own_tables)
    sigmas = Sigmas(jnp.asarray(inputs()["in.video_sigma"]), jnp.asarray(inputs()["in.audio_sigma"]))
    view = masked(config, tables, sigmas, blocks, window=window, pinned=int(pinned))
    noisy = Streams(net.as_tokens(inputs()["in.video_latent"]), inputs()["in.audio_latent"])
    velocity = net.run_predict(params, config, noisy, view, text).velocity
    compare_velocities(case, variant, velocity.video, velocity.audio, own_tables)


@TABLES
@VARIANT
def test_the_ring_cache_is_the_reference_with_fewer_blocks(variant, own_tables):
    case = Case(NAME)
    config, params, text, blocks, tables, (window, pinned) = prepare(case, variant, own_tables)
    layout, grid = net.LAYOUTS[inputs().config["layout"]], tuple(inputs().config["grid"])
    horizon = layout.start_seconds(len(blocks))
    sampler = SamplerConfig(
        layout=layout, sigmas=(1.0, 0.0), horizon_seconds=horizon, window=window, pinned=int(pinned)
    )
    video, audio = net.as_tokens(inputs()["in.video_latent"]), inputs()["in.audio_latent"]
    cache, made = empty_cache(config, sampler, grid, len(video)), []
    still = shift_rotations(config, shift_phases(config, 0))
    for k, block in enumerate(blocks):
        tokens = slice(*(frame * grid[0] * grid[1] for frame in (block.video_start, block.video_end)))
        latents = slice(block.audio_start, block.audio_end)
        rotaries = net.cut_rotaries(tables, tokens, latents)
        view = streaming(
            config,
            rotaries,
            one_sigma(jnp.asarray(inputs()["in.block_sigma"][:, k])),
            past_masks(cache, still) if k else None,
        )
        past = cache.past if k else NO_PAST
        noisy = Streams(video[:, tokens], audio[:, latents])
        velocity, fresh = net.run_predict(params, config, noisy, view, text, past=past)
        made.append(velocity)
        cache = run_commit(cache, fresh)
    velocity = jax.tree.map(lambda *pieces: jnp.concatenate(pieces, axis=1), *made)
    compare_velocities(case, variant, velocity.video, velocity.audio, own_tables)


@VARIANT
def test_the_four_banded_masks_are_the_reference_s(variant):
    case = Case(NAME)
    config, _, _, blocks, tables, (window, pinned) = prepare(case, variant, own_tables=True)
    video, audio = token_spans(config, tables, blocks, int(pinned))
    sites = {"video_self": (video, video), "audio_self": (audio, audio), "a2v": (video, audio), "v2a": (audio, video)}
    for site, (queries, keys) in sites.items():
        case.compare(f"mask.{variant}.{site}", visible_tokens(queries, keys, window).astype(np.uint8))
    case.assert_all_compared(f"mask.{variant}.*")
