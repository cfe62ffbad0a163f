"""Golden i: stage 1's backward simulation, and the prediction from one of its entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import Case, needs_golden
from golden_network import as_latents, as_tokens, config_of, load_params, own_rotaries

from omniforcing_jax.distill import backward_simulation
from omniforcing_jax.distill.clip_network import ClipNetwork
from omniforcing_jax.schedule import ltx2_schedule, snap
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

pytestmark = [needs_golden]
NAME, TEXT, SCHEDULE = "i_stage1_backward_simulation", "d_rollout_v2", "e_sigmas"


def test_trajectory_and_prediction_are_the_reference_s():
    case, text = Case(NAME), Case(TEXT)
    config = config_of(case)
    params = load_params(case.config["weights"], config)
    _, frames, _, *grid = case["in.noise.video"].shape
    tables = own_rotaries(config, frames, case["in.noise.audio"].shape[1], grid)
    mask = text["in.text_mask"] if case.config["text_mask"] else np.ones_like(text["in.text_mask"])
    contexts = TextContexts(
        *(jnp.asarray(text[f"in.{s}_context"]) for s in ("video", "audio")), jnp.asarray(mask, jnp.int32)
    )
    sigmas = jnp.asarray(case["in.sigmas"])
    names = ["in.noise", *(f"in.renoise{i}" for i in range(len(sigmas) - 2))]
    noise = Streams(
        jnp.stack([as_tokens(case[f"{name}.video"]) for name in names]),
        jnp.stack([case[f"{name}.audio"] for name in names]),
    )

    @jax.jit
    def run(params, noise, entry):
        network = ClipNetwork(rotaries=tables, model=config)
        trajectory = backward_simulation.simulate(params, noise, sigmas, contexts, network)
        return trajectory, backward_simulation.predict_from(params, trajectory, entry, sigmas, contexts, network)

    entry = jnp.asarray(case["in.index"], jnp.int32)
    trajectory, predicted = run(params, noise, entry)
    like = case["out.trajectory.video"]
    video = np.stack([as_latents(entry, like[:, 0]) for entry in trajectory.video], axis=1)
    case.compare("out.trajectory.video", video)
    case.compare("out.trajectory.audio", np.moveaxis(np.asarray(trajectory.audio), 0, 1))
    case.compare("out.pred_x0.video", as_latents(predicted.video, case["out.pred_x0.video"]))
    case.compare("out.pred_x0.audio", predicted.audio)
    case.assert_all_compared()


def test_the_recorded_sigmas_are_the_snapped_step_list():
    case = Case(NAME)
    _, sigmas = snap(case.config["denoising_step_list"], ltx2_schedule(40))
    limit = Case(SCHEDULE).find_limit("snap.sigma")["atol"]
    np.testing.assert_allclose(case["in.sigmas"], sigmas, atol=limit, rtol=0)


@pytest.mark.parametrize("levels", [2, 4])
def test_the_clean_entry_is_never_drawn(levels):
    drawn = backward_simulation.draw_entry(jax.random.key(0), 200, jnp.linspace(1.0, 0.0, levels))
    assert set(np.unique(drawn)) == set(range(levels - 1))
