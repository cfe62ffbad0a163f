"""Golden f: guided clean estimates, both meanings of STG, the Euler trajectory and its sub-sampled entries."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import Case, needs_golden
from golden_network import as_latents, as_tokens, config_of, cut_rotaries, load_params, own_rotaries, recorded_rotary

from omniforcing_jax import guidance
from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.model.positions import Rotaries
from omniforcing_jax.model.transformer import predict, text_kv
from omniforcing_jax.model.view import bidirectional, one_sigma
from omniforcing_jax.schedule import ltx2_schedule, snap, to_x0
from omniforcing_jax.streams import Streams

pytestmark = [needs_golden, pytest.mark.usefixtures("strict")]
CASES = {
    "f_guided_core100": (guidance.Stg.VALUES, CrossTimestep.CROSS),
    "f_guided_bundled": (guidance.Stg.DROP, CrossTimestep.OWN),
}
INPUTS_FROM, TABLES_FROM = "f_guided_core100", "a_teacher_core100"
PARTS = {
    "cond": guidance.Pass.PROMPT,
    "uncond": guidance.Pass.NEGATIVE,
    "perturbed": guidance.Pass.PERTURBED,
    "isolated": guidance.Pass.ISOLATED,
}


def make_guidance(words: dict, stg: guidance.Stg) -> guidance.GuidanceConfig:
    def strengths(stream: str) -> guidance.StreamGuidance:
        return guidance.StreamGuidance(
            cfg=words[f"cfg_{stream}"], stg=words["stg"], modality=words["modality"], rescale=words["rescale"]
        )

    return guidance.GuidanceConfig(
        video=strengths("video"),
        audio=strengths("audio"),
        stg_layers=tuple(words["stg_blocks"]),
        stg=stg,
        rescale_over_batch=True,
    )


def make_tables(config, case: Case, own_tables: bool) -> Rotaries:
    """Our tables of the clip, or those that case a recorded for the same kind of rotation, if its clip is as long."""
    _, frames, _, *grid = case["in.noise_video"].shape
    own = own_rotaries(config, frames, case["in.noise_audio"].shape[1], grid)
    if own_tables:
        return own
    names = {"video": "video_self", "audio": "audio_self", "cross_video": "video_cross", "cross_audio": "audio_cross"}
    grid_name = {"float32": "f32grid", "float64": "f64grid"}[config.rotary.grid]
    tables = Case(TABLES_FROM)
    recorded = Rotaries(
        **{
            ours: recorded_rotary(tables, f"rope.{theirs}.{config.rotary.kind}_{grid_name}", config)
            for ours, theirs in names.items()
        }
    )
    video, audio = (slice(table.cos.shape[1]) for table in (own.video, own.audio))
    cut = cut_rotaries(recorded, video, audio)
    return cut if jax.tree.map(jnp.shape, cut) == jax.tree.map(jnp.shape, own) else own


def make_functions(config, strengths):
    """Compile the trajectory and the passes of one step; both take everything that varies as arguments."""

    def network(params, tables):
        def predict_x0(latents, sigma, context, perturbation):
            text = text_kv(params, *context)
            view = bidirectional(config, tables, one_sigma(sigma))
            velocity = predict(params, config, latents, view, text, perturbation=perturbation).velocity
            return jax.tree.map(partial(to_x0, sigma=sigma), latents, velocity)

        return predict_x0

    def follow(params, tables, noise, sigmas, prompt, negative):
        def step(latents, sigma):
            return guidance.guided_x0(
                network(params, tables), latents, sigma, prompt, negative, strengths, config.layers
            )

        return guidance.euler_trajectory(step, noise, sigmas)

    def look(params, tables, latents, sigma, prompt, negative):
        call = (network(params, tables), latents, sigma, prompt, negative, strengths, config.layers)
        passes = {which.name: streams for which, streams in guidance.predict_passes(*call).items()}
        return passes, guidance.guided_x0(*call)

    return jax.jit(follow), jax.jit(look)


def compare_steps(case: Case, look_at, own_tables: bool) -> None:
    """Compare every recorded part of every recorded step."""
    steps = sorted({int(re.match(r"out\.step(\d+)\.", name).group(1)) for name in case.names("out.step*")})
    for step in steps:
        passes, guided = look_at(step)
        parts = {part: passes[which.name] for part, which in PARTS.items()} | {"guided": guided}
        for part, (video, audio) in parts.items():
            name = f"out.step{step}.{part}.video_x0"
            if name in case:
                case.compare(name, as_latents(video, case[name]), own_tables)
                case.compare(f"out.step{step}.{part}.audio_x0", audio, own_tables)


def compare_entries(case: Case, name: str, video, audio, own_tables: bool) -> None:
    """Compare entries [J, B, ...] of a trajectory with recorded ones [B, J, ...]."""
    video_name, audio_name = name.format("video"), name.format("audio")
    entries = np.stack([as_latents(entry, case[video_name][:, 0]) for entry in video], axis=1)
    case.compare(video_name, entries, own_tables)
    case.compare(audio_name, jnp.swapaxes(audio, 0, 1), own_tables)


@pytest.mark.parametrize("name", CASES)
def test_a_guided_trajectory_is_the_reference_s(name):
    inputs = Case(INPUTS_FROM)
    stg, semantics = CASES[name]
    case_config = Case(name).config
    config = config_of(inputs, case_config, cross_timestep=semantics)
    params = load_params(case_config["weights"], config)
    follow, look = make_functions(config, make_guidance(case_config["guidance"], stg))
    noise = Streams(jnp.asarray(as_tokens(inputs["in.noise_video"])), jnp.asarray(inputs["in.noise_audio"]))
    prompt = tuple(jnp.asarray(inputs[f"in.{stream}_context"]) for stream in ("video", "audio"))
    negative = tuple(jnp.asarray(inputs[f"in.{stream}_context_neg"]) for stream in ("video", "audio"))
    sigmas = jnp.asarray(inputs["in.sigmas"])
    indices, kept_sigmas = snap(inputs.config["denoising_step_list"], inputs["in.sigmas"])
    for own_tables in (False, True):
        case, tables = Case(name), make_tables(config, inputs, own_tables)
        video, audio = follow(params, tables, noise, sigmas, prompt, negative)
        compare_steps(
            case,
            lambda i, v=video, a=audio, t=tables: look(params, t, Streams(v[i], a[i]), sigmas[i], prompt, negative),
            own_tables,
        )
        if "out.video_trajectory" in case:
            compare_entries(case, "out.{}_trajectory", video, audio, own_tables)
            case.compare("out.subsample_indices", np.array(indices), own_tables)
        kept = jnp.array(indices)
        compare_entries(case, "out.ode_{}", video[kept], audio[kept], own_tables)
        case.compare("out.subsample_sigmas", np.array(kept_sigmas), own_tables)
        case.assert_all_compared()


def test_the_recorded_schedule_is_ours():
    inputs = Case(INPUTS_FROM)
    limit = Case("e_sigmas").find_limit("sigmas")["atol"]
    np.testing.assert_allclose(inputs["in.sigmas"], ltx2_schedule(inputs.config["steps"]), atol=limit, rtol=0)
