"""Golden b and c: the masked student, fused and prefix layout, sinks, log ratios, a partial block."""

import functools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import Case, list_variants, needs_golden
from golden_network import (
    LAYOUTS,
    as_latents,
    as_tokens,
    compare_rotary,
    config_of,
    cut_rotaries,
    load_params,
    masked_rotaries,
    own_rotaries,
    run_layer_states,
    run_predict,
    run_text_kv,
)
from partial_blocks import blocks_with_rest

from omniforcing_jax.model.view import Sigmas, bidirectional, masked, one_sigma, token_spans
from omniforcing_jax.nn.mask import visible_tokens
from omniforcing_jax.schedule import to_x0
from omniforcing_jax.streams import Streams

pytestmark = [needs_golden, pytest.mark.usefixtures("strict")]
CASES = ("b_causal_v2_masked", "c_causal_v1_masked")
FORMS = [(case, variant, False) for case in CASES for variant in list_variants(case)]
FORMS += [(case, "block_sigma", True) for case in CASES]
TABLES = pytest.mark.parametrize("own_tables", [False, True], ids=["recorded_tables", "own_tables"])


@functools.cache
def load(name: str) -> Case:
    return Case(name)


def find_blocks(case: Case, variant: str):
    """Cut the clip by our layout, and check that the case cuts it the same way."""
    recorded = case.config["partial_blocks" if variant == "partial" else "blocks"]
    frames = recorded[-1][1]
    blocks = blocks_with_rest(LAYOUTS[case.config["layout"]], frames)
    np.testing.assert_array_equal(np.array(blocks), recorded)
    return blocks


def find_inputs(case: Case, variant: str, blocks):
    """Read latents and noise levels of a variant."""
    video, audio = case["in.video_latent"][:, : blocks[-1].video_end], case["in.audio_latent"]
    if variant == "partial":
        audio, prefix = case["in.partial.audio_latent"], "in.partial"
    else:
        prefix = "in"
    if variant == "scalar":
        return video, audio, one_sigma(jnp.asarray(case["in.scalar_sigma"]))
    levels = Sigmas(jnp.asarray(case[f"{prefix}.video_sigma"]), jnp.asarray(case[f"{prefix}.audio_sigma"]))
    return video, audio, levels


def make_view(case: Case, variant: str, config, tables, sigmas, blocks, written_out: bool):
    """Build the regime of a variant; words of an unknown one fail here."""
    assert variant in ("block_sigma", "scalar", "log_rescale", "no_mask", "partial"), variant
    if variant == "no_mask":
        return bidirectional(config, tables, sigmas)
    return masked(config, tables, sigmas, blocks, dense=written_out)


def prepare(name: str, variant: str, own_tables: bool, written_out: bool):
    case = load(name)
    blocks = find_blocks(case, variant)
    plain = config_of(case)
    config = replace(plain, log_ratio=variant == "log_rescale")
    end = blocks[-1]
    if own_tables:
        tables = own_rotaries(config, end.video_end, end.audio_end, case.config["grid"])
    else:
        tokens = end.video_end * case.config["tokens_per_frame"]
        tables = cut_rotaries(masked_rotaries(case, config), slice(tokens), slice(end.audio_end))
    video, audio, sigmas = find_inputs(case, variant, blocks)
    params = load_params(case.config["weights"], plain)
    mask = jnp.asarray(case["in.text_mask"], jnp.int32) if case.config["text_mask"] else None
    text = run_text_kv(params, case["in.video_context"], case["in.audio_context"], mask)
    view = make_view(case, variant, config, tables, sigmas, blocks, written_out)
    return case, (params, config, Streams(as_tokens(video), audio), view, text), video, sigmas


@TABLES
@pytest.mark.parametrize(("name", "variant", "written_out"), FORMS)
def test_the_masked_student_is_the_reference(name, variant, own_tables, written_out):
    case, arguments, video, sigmas = prepare(name, variant, own_tables, written_out)
    velocity = run_predict(*arguments).velocity
    velocity_v, velocity_a = as_latents(velocity.video, video), velocity.audio
    case.compare(f"out.{variant}.video_velocity", velocity_v, own_tables)
    case.compare(f"out.{variant}.audio_velocity", velocity_a, own_tables)
    if f"out.{variant}.video_x0" in case:
        x0_v = to_x0(jnp.asarray(video), jnp.asarray(velocity_v), sigmas.video)
        case.compare(f"out.{variant}.video_x0", x0_v, own_tables)
        x0_a = to_x0(jnp.asarray(arguments[2].audio), velocity_a, sigmas.audio)
        case.compare(f"out.{variant}.audio_x0", x0_a, own_tables)
    case.assert_all_compared(f"out.{variant}.*")


@TABLES
@pytest.mark.parametrize("name", CASES)
def test_states_after_every_layer_are_the_reference_s(name, own_tables):
    case, arguments, _, _ = prepare(name, "block_sigma", own_tables, written_out=False)
    states_v, states_a = run_layer_states(*arguments)
    for layer, (state_v, state_a) in enumerate(zip(states_v, states_a, strict=True)):
        case.compare(f"hidden.layer{layer}.video", state_v, own_tables)
        case.compare(f"hidden.layer{layer}.audio", state_a, own_tables)
    case.assert_all_compared("hidden.*")


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_table_is_ours(name):
    case = load(name)
    config = config_of(case)
    frames, audio_frames = case.config["frames"], case.config["audio_frames"]
    tables = own_rotaries(config, frames, audio_frames, case.config["grid"])
    per_frame = own_rotaries(config, frames, audio_frames, (1, 1)).cross_video
    ours = {
        "rope.video_self": tables.video,
        "rope.audio_self": tables.audio,
        "rope.audio_self_without_sinks": tables.audio,
        "rope.audio_cross": tables.cross_audio,
        "rope.video_cross_per_frame": per_frame,
    }
    for table in {recorded.removesuffix(".cos") for recorded in case.names("rope.*.cos")}:
        compare_rotary(case, table, ours[table])
    case.assert_all_compared("rope.*")


@pytest.mark.parametrize(
    "name", [name for name in CASES if needs_golden.args[0] is False and load(name).names("mask.*")]
)
def test_the_four_masks_are_the_reference_s(name):
    case = load(name)
    config = config_of(case)
    tables = own_rotaries(config, case.config["frames"], case.config["audio_frames"], case.config["grid"])
    blocks = find_blocks(case, "block_sigma")
    video, audio = token_spans(config, tables, blocks, pinned=0)
    sites = {"video_self": (video, video), "audio_self": (audio, audio), "a2v": (video, audio), "v2a": (audio, video)}
    for recorded in case.names("mask.*"):
        queries, keys = sites[recorded.removeprefix("mask.")]
        case.compare(recorded, visible_tokens(queries, keys, len(blocks)).astype(np.uint8))
    case.assert_all_compared("mask.*")
