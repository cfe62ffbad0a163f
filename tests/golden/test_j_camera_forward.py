"""Golden j: a 2.3 network with camera attention, as a teacher, with held scalars, and block-causal on layout (1, 2)."""

import dataclasses

import golden_network as net
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from echowm import (
    compared_by_check,
    convert,
    echo_case,
    echo_variants,
    lenses_of,
    load_network,
    needs_echowm,
    network_of,
)

from omniforcing_jax.layout import Block
from omniforcing_jax.model.cameras import Shots, cameras_of_clip
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.view import Sigmas, bidirectional, masked, token_spans
from omniforcing_jax.nn.mask import visible_tokens
from omniforcing_jax.schedule import to_x0
from omniforcing_jax.streams import Streams

pytestmark = [needs_echowm, pytest.mark.usefixtures("strict")]
NAME = "j_camera_forward"
VARIANTS = echo_variants(NAME)
SITES = {"video_self": "video", "audio_self": "audio", "video_cross": "cross_video", "audio_cross": "cross_audio"}


def make_rotaries(case, config, variant, own_tables):
    """Our tables of the clip, or the recorded ones; with cameras where the variant has them."""
    frames, audio_frames = case.config["frames"], case.config["audio_frames"]
    grid = tuple(case.config["grid"])
    size = tuple(side * config.spatial_compression for side in grid)
    cameras = cameras_of_clip(Shots(case["in.viewmats"], lenses_of(case["in.Ks"], size)))
    tables = rotaries(config, make_positions(config, clip_block(frames, audio_frames), grid, cameras=cameras))
    if not own_tables:
        recorded = {ours: net.recorded_rotary(case, f"rope.{theirs}", config) for theirs, ours in SITES.items()}
        tables = dataclasses.replace(tables, **recorded)
    return tables if case.config["variants"][variant]["camera"] else dataclasses.replace(tables, camera=None)


def make_sigmas(case, variant):
    """A variant's noise levels, and the scalars of both streams, from its description."""
    words = case.config["variants"][variant]
    scalars = [case["in.sigma_video"], case["in.sigma_audio"]]
    if "both" in words["scalar_sigmas"]:
        scalars[1] = scalars[0]
    elif words["scalar_sigmas"] == "1":
        scalars = [np.ones_like(each) for each in scalars]
    names = [name.strip(",") for name in words["timesteps"].split() if name.startswith("in.")]
    if "by block" in words["timesteps"]:
        blocks = np.array(case.config["blocks"])
        lengths = blocks[:, 1] - blocks[:, 0], blocks[:, 3] - blocks[:, 2]
        levels = [np.repeat(case[names[0]], each, axis=1) for each in lengths]
    else:
        levels = [case[name] for name in (names * 2)[:2]]
        levels = [each[:, None] if each.ndim == 1 else each for each in levels]
    return Sigmas(*map(jnp.asarray, (*levels, *scalars)))


def make_view(case, config, variant, own_tables):
    tables, sigmas = make_rotaries(case, config, variant, own_tables), make_sigmas(case, variant)
    if not variant.startswith("masked"):
        return bidirectional(config, tables, sigmas), sigmas
    return masked(config, tables, sigmas, tuple(Block(*each) for each in case.config["blocks"])), sigmas


def read_noisy(case):
    return Streams(jnp.asarray(case["in.video_latent"]), jnp.asarray(case["in.audio_latent"]))


def make_text(case, params, variant, sigmas):
    """Text keys of each stream at its own scalar."""
    mask = jnp.asarray(case["in.text_mask"], jnp.int32) if case.config["variants"][variant]["text_mask"] else None
    contexts = case["in.video_context"], case["in.audio_context"]
    scalars = sigmas.scalar_video, sigmas.scalar_audio
    video, audio = (net.run_text_kv(params, *contexts, mask, sigma=each) for each in scalars)
    return dataclasses.replace(video, kv=Streams(video.kv.video, audio.kv.audio))


@pytest.mark.parametrize("own_tables", [False, True], ids=["recorded_tables", "own_tables"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_forward_is_the_reference_s(variant, own_tables):
    case = echo_case(NAME)
    config = network_of(case)
    params, (view, sigmas) = load_network(case.config["weights"], config), make_view(case, config, variant, own_tables)
    text, noisy = make_text(case, params, variant, sigmas), read_noisy(case)
    view = net.level_per_token(view)
    velocity = net.run_predict(params, config, noisy, view, text).velocity
    spread = Streams(sigmas.video, sigmas.audio)
    spread = jax.tree.map(lambda s, x: jnp.repeat(s, x.shape[1] // s.shape[1], axis=1), spread, noisy)
    x0 = jax.tree.map(to_x0, noisy, velocity, spread)
    for stream in ("video", "audio"):
        case.compare(f"out.{variant}.{stream}_velocity", getattr(velocity, stream), own_tables)
        if f"out.{variant}.{stream}_x0" in case:
            case.compare(f"out.{variant}.{stream}_x0", getattr(x0, stream), own_tables)
    if variant == "token":
        states = net.run_layer_states(params, config, noisy, view, text)
        for i in range(config.layers):
            case.compare(f"hidden.layer{i}.video", states.video[i], own_tables)
            case.compare(f"hidden.layer{i}.audio", states.audio[i], own_tables)
        case.assert_all_compared("hidden.*")
    case.assert_all_compared(f"out.{variant}.*")


def test_the_tables_and_the_masks_are_the_reference_s():
    case = echo_case(NAME)
    config = network_of(case)
    tables = make_rotaries(case, config, "camera", own_tables=True)
    for theirs, ours in SITES.items():
        net.compare_rotary(case, f"rope.{theirs}", getattr(tables, ours))
    blocks = tuple(Block(*each) for each in case.config["blocks"])
    video, audio = token_spans(config, tables, blocks, 0)
    pairs = {"video_self": (video, video), "audio_self": (audio, audio), "a2v": (video, audio), "v2a": (audio, video)}
    for name, (queries, keys) in (pairs | {"camera": (video, video)}).items():
        case.compare(f"mask.{name}", visible_tokens(queries, keys, len(blocks)).astype(np.uint8))
    case.assert_all_compared("rope.*", "mask.*")


@pytest.mark.long
def test_the_command_check_compares_every_forward(tmp_path, capsys):
    case = echo_case(NAME)
    convert(case, tmp_path / "ours")
    capsys.readouterr()
    assert compared_by_check(tmp_path / "ours", NAME, capsys) == set(case.names("out.*"))
