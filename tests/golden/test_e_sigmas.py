"""Golden e_sigmas: the shifted schedule, its lookup by timestep, and snapped step lists."""

import re

import numpy as np
from golden_case import Case, needs_golden

from omniforcing_jax import schedule


def compare_schedules(case):
    for name in case.names("ltx2.steps*"):
        steps, _, tokens = re.fullmatch(r"ltx2\.steps(\d+)(\.tokens(\d+))?", name).groups()
        case.compare(name, schedule.ltx2_schedule(int(steps), int(tokens or case.config["tokens"])))


def compare_snapped_lists(case):
    for name in case.names("snap.*.index"):
        label = name.split(".")[1]
        steps = int(re.search(r"index into steps(\d+)", case.meta["tensors"][name]["meaning"]).group(1))
        indices, sigmas = schedule.snap(case.meta["checks"][label]["list"], schedule.ltx2_schedule(steps))
        case.compare(name, np.array(indices))
        case.compare(f"snap.{label}.sigma", np.array(sigmas))


@needs_golden
def test_every_recorded_sigma_is_ours():
    case = Case("e_sigmas")
    compare_schedules(case)
    compare_snapped_lists(case)
    case.compare("sigma_lookup", schedule.sigma_lookup(len(case["sigma_lookup"]) - 1))
    case.compare("distilled_published", np.array(schedule.DISTILLED))
    case.assert_all_compared()
