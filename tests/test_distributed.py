"""Where other processes are found; several real ones are in tests/train/test_pod.py."""

import pytest

from omniforcing_jax.parallel import distributed

PLAIN = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}  # in a batch script, outside of srun


def test_a_lone_process_joins_nobody():
    for environment in ({}, {**PLAIN, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, SLURM):
        assert distributed.find(environment) is None
    assert distributed.find({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert distributed.find({"JAX_PLATFORMS": "cpu"}, has_tpu=True) is None
    assert distributed.speaks()
    distributed.meet("alone", 0.0)


def test_processes_are_found_by_variables_by_slurm_and_on_tpu_pods():
    told = {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 2}
    assert distributed.find({**SLURM, "SLURM_STEP_NUM_TASKS": "4", **PLAIN}) == told
    assert distributed.find({**SLURM, "SLURM_STEP_NUM_TASKS": "4"}) == {"cluster_detection_method": "slurm"}
    assert distributed.find({"TPU_WORKER_HOSTNAMES": "a,b"}) == {}
    assert distributed.find({}, has_tpu=True) == {}
    assert distributed.find({"MEGASCALE_COORDINATOR_ADDRESS": "a"}) == {}


def test_half_an_address_and_numbers_out_of_range_are_refused():
    some = {name: PLAIN[name] for name in ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID")}
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID without JAX_NUM_PROCESSES: set all"):
        distributed.find(some)
    for wrong in ("4", "-1", "x"):
        with pytest.raises(ValueError, match=f"JAX_PROCESS_ID={wrong}: must be a number below JAX_NUM_PROCESSES=4"):
            distributed.find({**PLAIN, "JAX_PROCESS_ID": wrong})
