"""Several processes as one: they start together, one of them logs, and all end when one is lost.

    start()                         # before anything else that touches devices; does nothing for a lone process
    meet("step 20", seconds=600)    # every process, or an error

The environment describes the processes: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (plain
processes), SLURM's variables inside `srun`, or a TPU pod's. The coordinator's heartbeat notices a process that died and
ends all others with an error. A process that hangs is noticed at the next meeting.
"""

import importlib.util
import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

log = logging.getLogger(__name__)

PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT = 30  # seconds of silence after which a process is lost; JAX's default is 100
MEETING = 600.0  # seconds for which processes wait for each other
_meetings = itertools.count()


class LostProcessError(RuntimeError):
    """Another process died or hangs."""


def start(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, if the environment describes any.

    Raises:
        ValueError: The description is incomplete; names the missing part.
        RuntimeError: The others do not come.
    """
    found = find(environment, has_tpu=_has_tpu())
    if found is None or jax.distributed.is_initialized():
        return
    jax.distributed.initialize(**found, heartbeat_timeout_seconds=HEARTBEAT)
    log.info("process %d of %d, %d devices", jax.process_index(), jax.process_count(), jax.device_count())


def find(environment: Mapping[str, str], *, has_tpu: bool = False) -> dict[str, Any] | None:
    """Return the arguments of `jax.distributed.initialize`: {} if it finds them itself, None for one process.

    Raises:
        ValueError: As in `start`.
    """
    given = {name: environment[name] for name in PLAIN if environment.get(name)}
    if given:
        if missing := [name for name in PLAIN if name not in given]:
            raise ValueError(f"{', '.join(given)} without {', '.join(missing)}: set all three or none")
        address, *numbers = (given[name] for name in PLAIN)
        if not all(number.isdecimal() for number in numbers) or int(numbers[1]) >= int(numbers[0]):
            raise ValueError(f"JAX_PROCESS_ID={numbers[1]}: must be a number below JAX_NUM_PROCESSES={numbers[0]}")
        if int(numbers[0]) == 1:
            return None
        return {"coordinator_address": address, "num_processes": int(numbers[0]), "process_id": int(numbers[1])}
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return {"cluster_detection_method": "slurm"}
    on_pod = len(environment.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1  # set by GKE, hence under XPK
    on_tpu_machine = has_tpu and "TPU_SKIP_MDS_QUERY" not in environment and environment.get("JAX_PLATFORMS") != "cpu"
    return {} if on_pod or on_tpu_machine or "MEGASCALE_COORDINATOR_ADDRESS" in environment else None


def _has_tpu() -> bool:
    """Whether this machine has TPU chips and the library for them."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def speaks() -> bool:
    """Whether this process is the one that logs and writes."""
    return jax.process_index() == 0


def agree(holds: bool) -> bool:
    """Return in every process what the first one says; all must ask in the same order."""
    if jax.process_count() == 1:
        return holds
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(holds)))


def meet(name: str, seconds: float = MEETING) -> None:
    """Wait until every process gets here; all processes must meet in the same order.

    Raises:
        LostProcessError: A process does not come in time; names the meeting.
    """
    if jax.process_count() == 1:
        return
    from jax._src.distributed import global_state  # jax 0.10 has no public barrier with a time-out

    assert global_state.client is not None, "several processes without jax.distributed"
    try:
        global_state.client.wait_at_barrier(f"meeting {next(_meetings)}", round(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostProcessError(f"{name}: not every process came within {seconds:.0f} s: {reason}") from None
