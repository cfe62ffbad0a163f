"""Every EchoWM case in the index is claimed by a test, with every result in it."""

import fnmatch

import pytest
from echowm import echo_case, echo_json, echo_variants, needs_echowm

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
def test_every_result_of_every_case_is_claimed(case, request):
    assert case in CLAIMED, f"{case} is not checked by any test"
    file, globs = CLAIMED[case]
    assert (request.path.parent / f"{file}.py").is_file()
    variants = [name for key in ("variants", "runs", "windows", "paths") for name in echo_variants(case, key)]
    globs = [glob.format(variant=variant) for glob in globs for variant in variants or [""]]
    unclaimed = {name for name in echo_case(case).results() if not any(fnmatch.fnmatch(name, g) for g in globs)}
    assert not unclaimed, f"{case}: not checked by any test: {sorted(unclaimed)}"
