"""Golden k: EchoWM's rollout from a picture, its window with pinned blocks, every draw, estimate, slot and cache."""

import golden_network as net
import numpy as np
import pytest
from echowm import compared_by_check, convert, echo_case, echo_variants, needs_echowm, network_of

from omniforcing_jax.layout import Layout
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.schedule import sigma_lookup

pytestmark = needs_echowm
NAME = "k_rollout_echowm"
TABLES = {"video_self": "video", "audio_self": "audio", "video_cross": "cross_video", "audio_cross": "cross_audio"}


@pytest.mark.long
def test_every_step_slot_and_cache_of_every_run_is_the_reference_s(tmp_path, capsys):
    case = echo_case(NAME)
    convert(case, tmp_path / "ours")
    capsys.readouterr()
    assert compared_by_check(tmp_path / "ours", NAME, capsys) == set(case.results()) - set(
        case.names("*.rope.*", "in.*")
    )


@pytest.mark.parametrize("run", echo_variants(NAME, "runs"))
def test_the_window_s_tables_are_those_of_the_clip_s_first_latents(run):
    case = echo_case(NAME)
    config = network_of(case)
    end = Layout(**case.config["layout"]).block(case.config["runs"][run]["window_blocks"] - 1)
    clip = clip_block(end.video_end, end.audio_end)
    ours = rotaries(config, make_positions(config, clip, tuple(case.config["grid"])))
    for theirs, name in TABLES.items():
        net.compare_rotary(case, f"{run}.rope.{theirs}", getattr(ours, name))
    case.assert_all_compared(f"{run}.rope.*")


def test_the_recorded_sigmas_are_those_of_the_step_list():
    case = echo_case(NAME)
    lookup = sigma_lookup(case.config["num_inference_steps"])
    ours = [float(lookup[t]) for t in case.config["denoising_step_list"]]
    case.compare("in.sigmas", np.array([*ours, 0.0], np.float32))
