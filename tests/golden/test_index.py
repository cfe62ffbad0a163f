"""Every case in the index is claimed by a test, with every result in it."""

import pytest
from golden_case import Case, check_claims, needs_golden, read_json

# A case, the test file that checks it, and what that file compares completely: globs over tensor names.
CLAIMED = {
    "a_teacher_bundled": ("test_a_teacher", ["out.{variant}.*"]),
    "a_teacher_core100": ("test_a_teacher", ["out.{variant}.*", "rope.*", "freq_grid.*", "perm.*"]),
    "b_causal_v2_masked": ("test_b_c_masked", ["out.{variant}.*", "hidden.*", "rope.*", "mask.*"]),
    "c_causal_v1_masked": ("test_b_c_masked", ["out.{variant}.*", "hidden.*", "rope.*", "mask.*"]),
    "d2_rolling_window_derived": ("test_d2_window", ["out.{variant}.*", "mask.{variant}.*"]),
    "d_rollout_v2": ("test_d_rollout", ["{variant}.*"]),
    "e_rope": ("test_e_rope", ["*"]),
    "e_sigmas": ("test_e_sigmas", ["*"]),
    "e_tables_v1": ("test_e_tables", ["blocks.*", "mask.*", "log.*", "clip_lengths", "stage2.*"]),
    "e_tables_v2": ("test_e_tables", ["blocks.*", "mask.*", "log.*", "clip_lengths", "stage2.*"]),
    "f_guided_bundled": ("test_f_guided", ["*"]),
    "f_guided_core100": ("test_f_guided", ["*"]),
    "g_dmd_math": ("test_g_dmd_math", ["out.*", "ema.out.*", "ode.*"]),
    "h_self_forcing_step": ("test_h_self_forcing", ["{variant}.*", "text_grad.*"]),
    "i_stage1_backward_simulation": ("test_i_stage1", ["*"]),
    "weights_main": ("test_weights_of_cases", ["*"]),
    "weights_v1": ("test_weights_of_cases", ["*"]),
}


@needs_golden
@pytest.mark.parametrize("case", read_json("index").get("cases", {}))
def test_every_result_of_every_case_is_claimed(case):
    check_claims(Case(case), CLAIMED, ("variants", "runs"))
