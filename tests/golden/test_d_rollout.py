"""Golden d: the cached rollout with every noise draw recorded, through the real rollout and ring cache."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from golden_case import Case, list_variants, needs_golden
from golden_network import (
    LAYOUTS,
    as_latents,
    as_tokens,
    config_of,
    cut_rotaries,
    load_params,
    masked_rotaries,
    own_rotaries,
)

from omniforcing_jax import rollout
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.model.positions import Positions, Rotaries
from omniforcing_jax.schedule import ltx2_schedule, snap
from omniforcing_jax.streams import Streams

pytestmark = [needs_golden, pytest.mark.usefixtures("strict")]
NAME, TABLES_FROM = "d_rollout_v2", "b_causal_v2_masked"  # the limits name the case whose tables are injected
SITES = ("video_self", "audio_self", "a2v", "v2a")

run_denoise = jax.jit(rollout.denoise, static_argnames="static")
run_clean_pass = jax.jit(rollout.clean_pass, static_argnames="static")


@struct.dataclass
class GivenPositions(Positions):
    """Positions that carry the rotations to use."""

    given: Rotaries | None = None


@pytest.fixture
def given_tables(monkeypatch):
    """Let the rollout rotate by the tables that its positions carry."""
    monkeypatch.setattr(rollout, "rotaries", lambda config, positions: positions.given)


def make_setting(case: Case, run: str) -> rollout.StaticConfig:
    """A sampler whose ring has room for the whole clip, the last block included."""
    layout, blocks = LAYOUTS[case.config["layout"]], case.config["blocks"]
    np.testing.assert_array_equal(np.array(layout.blocks(blocks[-1][1])), blocks)
    sampler = SamplerConfig(
        layout=layout,
        sigmas=tuple(case.config["sigmas"]),
        horizon_seconds=layout.start_seconds(len(blocks) + 1),
        context_noise=case.config["runs"][run].get("context_sigma", 0.0),
    )
    tables_case = Case(TABLES_FROM)
    return rollout.StaticConfig(config_of(case, tables_case.config), sampler, tuple(tables_case.config["grid"]))


def make_tables(static: rollout.StaticConfig, k: int, whole_clip: Rotaries) -> rollout.BlockPositions:
    """Tables of block k that rotate by the rows of a whole clip's tables."""
    positions, block = rollout.block_positions(static, k), static.sampler.layout.block(k)
    per_frame = static.grid[0] * static.grid[1]
    video = slice(block.video_start * per_frame, block.video_end * per_frame)
    given = cut_rotaries(whole_clip, video, slice(block.audio_start, block.audio_end))
    return positions.replace(tokens=GivenPositions(**vars(positions.tokens), given=given))


def read_latents(case: Case, *names: str) -> Streams:
    """Stack recorded draws of both streams as tokens."""
    return Streams(
        video=jnp.stack([as_tokens(case[f"{name}.video"]) for name in names]),
        audio=jnp.stack([case[f"{name}.audio"] for name in names]),
    )


def compare_latents(case: Case, name: str, video, audio, own_tables: bool) -> None:
    case.compare(f"{name}.video", as_latents(video, case[f"{name}.video"]), own_tables)
    case.compare(f"{name}.audio", audio, own_tables)


def history(cache, site):
    """Keys and values of a site, those of block 0 in front of the ring's."""
    past = getattr(cache.past, site)
    return jax.tree.map(
        lambda *x: jnp.concatenate(x, axis=2), *(kv for kv in (past.pinned, past.ring) if kv is not None)
    )


def compare_caches(case: Case, run: str, cache, prompt, own_tables: bool) -> None:
    for name in case.names(f"{run}.cache.*"):
        layer, site, part = re.fullmatch(rf"{run}\.cache\.layer(\d+)\.(\w+)\.([kv])", name).groups()
        kv = history(cache, site) if site in SITES else getattr(prompt.clean.kv, site.removesuffix("_text"))
        value = getattr(kv, part)[int(layer)]
        if site not in SITES and case.config["text_mask"]:  # tokens that may be seen come first
            order = np.argsort(case["in.text_mask"] == 0, axis=1, kind="stable")
            value = np.take_along_axis(np.asarray(value), np.argsort(order, axis=1)[:, :, None, None], axis=1)
        case.compare(name, value if site in SITES else value.reshape(*value.shape[:2], -1), own_tables)


@pytest.mark.parametrize("own_tables", [False, True], ids=["recorded_tables", "own_tables"])
@pytest.mark.parametrize("run", list_variants(NAME, "runs"))
def test_every_step_and_cache_of_a_rollout_is_the_reference_s(run, own_tables, given_tables):
    case = Case(NAME)
    static = make_setting(case, run)
    without_noise = make_setting(case, next(r for r, v in case.config["runs"].items() if not v["context_noise"]))
    params = load_params(case.config["weights"], static.model)
    end = static.sampler.layout.block(len(case.config["blocks"]) - 1)
    whole_clip = masked_rotaries(Case(TABLES_FROM), static.model)
    if own_tables:
        whole_clip = own_rotaries(static.model, end.video_end, end.audio_end, static.grid)
    mask = jnp.asarray(case["in.text_mask"], jnp.int32) if case.config["text_mask"] else None
    prompt = rollout.make_prompt_kv(params, case["in.video_context"], case["in.audio_context"], mask, static=static)
    cache = rollout.make_cache(static, len(case["in.video_context"]))
    steps, made = static.sampler.steps, []
    for k in range(len(case.config["blocks"])):
        block = f"{run}.block{k}"
        noise = read_latents(case, f"{block}.init_noise", *(f"{block}.step{i}.renoise" for i in range(steps - 1)))
        positions = make_tables(static, k, whole_clip)
        estimates, cache = run_denoise(params, cache, prompt, noise, positions, static=without_noise)
        for i in range(steps):
            compare_latents(case, f"{block}.step{i}.x0", estimates.video[i], estimates.audio[i], own_tables)
        made.append(jax.tree.map(lambda x: x[-1], estimates))
        context = None
        if static.sampler.context_noise:
            context = jax.tree.map(lambda x: x[0], read_latents(case, f"{block}.ctx_noise"))
        cache = run_clean_pass(params, cache, prompt, made[-1], context, positions, static=static)
    video, audio = (jnp.concatenate(pieces, axis=1) for pieces in zip(*made, strict=True))
    compare_latents(case, f"{run}.final", video, audio, own_tables)
    compare_caches(case, run, cache, prompt, own_tables)
    case.assert_all_compared(f"{run}.*")


def test_the_recorded_sigmas_are_the_snapped_step_list():
    case = Case(NAME)
    _, sigmas = snap(case.config["denoising_step_list"], ltx2_schedule(case.config["num_inference_steps"]))
    limit = Case("e_sigmas").find_limit("snap.sigma")["atol"]
    np.testing.assert_allclose(case["in.sigmas"], sigmas, atol=limit, rtol=0)
    np.testing.assert_allclose(case.config["sigmas"], sigmas, atol=limit, rtol=0)
