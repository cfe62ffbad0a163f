"""Golden a: the bidirectional teacher, both rotary kinds, per-token sigmas, two generations of code."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import Case, list_variants, needs_golden
from golden_network import (
    compare_rotary,
    config_of,
    level_per_token,
    load_params,
    own_rotaries,
    recorded_rotary,
    run_predict,
    run_text_kv,
)

from converters.rotary_rows import interleaving
from omniforcing_jax.config import CrossTimestep, GridPrecision, RotaryConfig
from omniforcing_jax.model.positions import Rotaries
from omniforcing_jax.model.view import Sigmas, bidirectional
from omniforcing_jax.nn.rope import frequencies
from omniforcing_jax.schedule import to_x0
from omniforcing_jax.streams import Streams

pytestmark = [needs_golden, pytest.mark.usefixtures("strict")]
TEACHER, BUNDLED = "a_teacher_core100", "a_teacher_bundled"
SITES = {"video_self": "video", "audio_self": "audio", "video_cross": "cross_video", "audio_cross": "cross_audio"}
GRIDS = {"f32": GridPrecision.FLOAT32, "f64": GridPrecision.FLOAT64}


@functools.cache
def teacher():
    return Case(TEACHER)


def pick_sigmas(case: Case, words: str) -> Sigmas:
    """Read a variant's noise levels from its words: per token, one per stream, or one for both."""
    scalar_v, scalar_a = case["in.sigma_video"], case["in.sigma_audio"]
    if "both" in words:
        scalar_a = scalar_v
    if "token" in words:
        video, audio = case["in.token_sigma_video"][..., 0], case["in.token_sigma_audio"][..., 0]
    else:
        assert "both" in words or "scalar" in words or "sigma_video[" in words, words
        video, audio = scalar_v[:, None], scalar_a[:, None]
    return Sigmas(*(jnp.asarray(x) for x in (video, audio, scalar_v, scalar_a)))


def recorded_tables(case: Case, variant: dict, config) -> Rotaries:
    grid = {"float32": "f32grid", "float64": "f64grid"}[variant["freq_grid"]]
    names = {ours: f"rope.{theirs}.{variant['rope']}_{grid}" for theirs, ours in SITES.items()}
    return Rotaries(**{ours: recorded_rotary(case, name, config) for ours, name in names.items()})


def run(variant: dict, semantics: CrossTimestep, own_tables: bool):
    case = teacher()
    config = config_of(case, variant, cross_timestep=semantics)
    frames, audio_frames, grid = case.config["frames"], case.config["audio_frames"], case.config["grid"]
    tables = own_rotaries(config, frames, audio_frames, grid) if own_tables else recorded_tables(case, variant, config)
    sigmas = pick_sigmas(case, variant["timesteps"])
    params = load_params(case.config["weights"], config)
    mask = jnp.asarray(case["in.text_mask"], jnp.int32) if variant["text_mask"] else None
    text = run_text_kv(params, case["in.video_context"], case["in.audio_context"], mask)
    view = level_per_token(bidirectional(config, tables, sigmas))
    config = config_of(case, variant)  # whose levels drive what is in the view: one program for all semantics
    noisy = Streams(case["in.video_latent"], case["in.audio_latent"])
    return run_predict(params, config, noisy, view, text).velocity, sigmas


@pytest.mark.parametrize("own_tables", [False, True], ids=["recorded_tables", "own_tables"])
@pytest.mark.parametrize("name", list_variants(TEACHER))
def test_the_teacher_is_ltx_core_1_0_0(name, own_tables):
    case = teacher()
    velocities, sigmas = run(case.config["variants"][name], CrossTimestep.CROSS, own_tables)
    for stream, velocity, sigma in (
        ("video", velocities.video, sigmas.video),
        ("audio", velocities.audio, sigmas.audio),
    ):
        x = jnp.asarray(case[f"in.{stream}_latent"])
        levels = jnp.broadcast_to(sigma, x.shape[:2])
        case.compare(f"out.{name}.{stream}_velocity", velocity, own_tables)
        case.compare(f"out.{name}.{stream}_x0", to_x0(x, velocity, levels), own_tables)
    case.assert_all_compared(f"out.{name}.*")


@pytest.mark.parametrize("own_tables", [False, True], ids=["recorded_tables", "own_tables"])
@pytest.mark.parametrize("name", list_variants(BUNDLED))
def test_with_own_sigmas_it_is_the_bundled_core(name, own_tables):
    case = Case(BUNDLED)
    prediction, _ = run(teacher().config["variants"][name], CrossTimestep.OWN, own_tables)
    case.compare(f"out.{name}.video_velocity", prediction.video, own_tables)
    case.compare(f"out.{name}.audio_velocity", prediction.audio, own_tables)
    case.assert_all_compared(f"out.{name}.*")


def test_every_recorded_table_is_ours():
    case = teacher()
    for variant in case.config["variants"].values():
        config = config_of(case, variant)
        tables = own_rotaries(config, case.config["frames"], case.config["audio_frames"], case.config["grid"])
        grid = {"float32": "f32grid", "float64": "f64grid"}[variant["freq_grid"]]
        for theirs, ours in SITES.items():
            compare_rotary(case, f"rope.{theirs}.{variant['rope']}_{grid}", getattr(tables, ours))
    case.assert_all_compared("rope.*")


def test_every_recorded_frequency_is_ours():
    case = teacher()
    config = config_of(case, next(iter(case.config["variants"].values())))
    for name in case.names("freq_grid.*"):
        _, site, precision = name.split(".")
        axes, width = (3, config.video.width) if site == "video_self" else (1, config.audio.width)
        rotary = RotaryConfig(theta=config.rotary.theta, grid=GRIDS[precision])
        case.compare(name, frequencies(rotary, axes, width))
    case.assert_all_compared("freq_grid.*")


def test_split_rows_become_interleaved_by_the_recorded_permutation():
    case = teacher()
    config = config_of(case, next(iter(case.config["variants"].values())))
    for stream in ("video", "audio"):
        sizes = getattr(config, stream)
        case.compare(f"perm.{stream}", interleaving(sizes.heads, sizes.head_size).astype(np.int64))
    case.assert_all_compared("perm.*")
