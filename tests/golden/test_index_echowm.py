"""Every EchoWM case in the index is claimed by a test, with every result in it."""

import pytest
from echowm import echo_case, echo_json, needs_echowm
from golden_case import check_claims

# As in test_index.py.
CLAIMED = {
    "j_camera_forward": ("test_j_camera_forward", ["out.{variant}.*", "hidden.*", "rope.*", "mask.*"]),
    "k_rollout_echowm": ("test_k_rollout_echowm", ["{variant}.*"]),
    "l_window_rope": ("test_l_window_rope", ["{variant}.*", "window.*", "query_slots.*", "sigmas", "clip_lengths"]),
    "m_camera": ("test_m_camera", ["{variant}.*", "out.*", "rope.*"]),
    "n_bf16_released": ("test_n_bf16_released", ["positions.*", "window.*", "timesteps.*"]),
    "weights_echowm": ("test_weights_echowm", ["*"]),
}


@needs_echowm
@pytest.mark.parametrize("case", echo_json("index").get("cases", {}))
def test_every_result_of_every_case_is_claimed(case):
    check_claims(echo_case(case), CLAIMED, ("variants", "runs", "windows", "paths"))
