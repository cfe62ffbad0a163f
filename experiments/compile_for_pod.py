"""Compile a full-size program for a slice of TPUs on a machine that has none: does it fit, and what bounds its time?

The compiler of libtpu (requirements-pod.txt) takes a topology's name and shapes; no weight is made. Meshes are ranked
by formula (pod/plan.py) and compiled in that order, three at most, until one takes at most 90 % of a chip's memory.
FLOPs and collectives are read from the compiled program, and loops count as often as they run (pod/hlo.py). A
rollout's denoise steps, whose number is drawn, count at their mean. `seconds_bound` is the largest of three lower
bounds: FLOPs at the peak, bytes received over all links together, arguments read and results written once.

Hardware: two CPU cores, minutes, and up to 8 GB of memory for 48 layers.

    python -m experiments.compile_for_pod --topology v5p:4x4x4 --program stage3 --preset ltx2-19b --json out/stage3.json
"""

import dataclasses
import importlib.util
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.cli_errors import keep_figures, refusing
from experiments.pod import hlo, programs
from experiments.pod.plan import GIB, Chip, Estimate, Program, Slice, rank
from experiments.script import read_flags
from omniforcing_jax.nn.kernels import Kernel, using
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.pipeline.presets import PRESETS

MOST_COMPILED = 3
MOST_OF_HBM = 0.9
TPU_SETTINGS = {  # so that libtpu looks for no TPU around it and says nothing of not finding one
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several may compile at once, no chip is touched
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compile a program for a slice."""

    topology: str
    """Slice of TPUs: generation and shape, such as v5p:4x4x4 or v6e:8x16."""
    program: Literal["stage2", "stage3", "critic", "stream"]
    """What to compile: a step of stage 2, of stage 3's generator or of its critic, or a late block of a stream."""
    preset: str = "ltx2-19b"
    """Preset whose sizes network and pictures have."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""
    mesh: str | None = None
    """Mesh as replica,fsdp,tensor; by default the best by formula that fits."""
    rows: int = 1
    """Rows of a batch for each part that the mesh cuts a batch into."""
    text: int = 1024
    """Tokens of a prompt."""
    layers: int | None = None
    """Layers, for a quick try; by default all that the preset has."""
    kernel: Literal["splash", "plain"] = "splash"
    """What computes attention."""


def run(arguments: Arguments) -> dict[str, Any]:
    """Compile until a mesh fits; returns the figures of the one that takes least of the memory, and what was tried.

    Raises:
        ValueError: If something is not known, does not fit together, or the compiler takes none of the meshes.
    """
    if arguments.preset not in PRESETS:
        raise ValueError(f"--preset {arguments.preset}: must be one of {', '.join(PRESETS)}")
    place = Slice.parse(arguments.topology)
    devices = topology_devices(arguments.topology)
    tried = []
    for estimate in _candidates(arguments, place):
        tried.append(_compile(arguments, estimate, devices, place.chip))
        if tried[-1].get("hbm_share", 1.0) <= MOST_OF_HBM:
            break
    fitting = [figures for figures in tried if "peak_bytes" in figures]
    if not fitting:
        refused = "; ".join(f"{figures['mesh']} {figures['refused']}" for figures in tried)
        raise ValueError(
            f"--topology {arguments.topology}: {arguments.program} fits on no mesh that was tried: {refused}"
        )
    return {**min(fitting, key=lambda figures: figures["hbm_share"]), "tried": tried}


def topology_devices(name: str) -> Sequence[jax.Device]:
    """Return the devices of a topology that need not be there.

    Raises:
        ValueError: If libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("libtpu is not installed: run `make libtpu`, then this command with PYTHONPATH=.venv/libtpu")
    for variable, value in TPU_SETTINGS.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(name, platform="tpu").devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ValueError(f"--topology {name}: {str(error).splitlines()[0]}") from None


def _candidates(arguments: Arguments, place: Slice) -> list[Estimate]:
    preset = programs.shortened(PRESETS[arguments.preset], arguments.layers)
    subject = programs.Subject(preset=preset, batch=1, text=arguments.text)
    per_frame = math.prod(subject.static.grid)
    ranked = rank(Program(arguments.program), preset.model, subject.sampler, per_frame, arguments.text, place)
    if arguments.mesh is None:
        return ranked[:MOST_COMPILED]
    wanted = MeshConfig.parse(arguments.mesh)
    wanted.check_network(preset.model)
    if wanted.devices != place.chips:
        raise ValueError(f"--mesh {wanted}: has {wanted.devices} places, {arguments.topology} has {place.chips} chips")
    known = [estimate for estimate in ranked if estimate.mesh == wanted]
    return known or [Estimate(mesh=wanted, bytes=0.0, seconds=0.0)]


def _compile(arguments: Arguments, estimate: Estimate, devices: Sequence[jax.Device], chip: Chip) -> dict[str, Any]:
    """Compile for one mesh; what the compiler refuses for want of memory is said in `refused`."""
    preset = programs.shortened(PRESETS[arguments.preset], arguments.layers)
    batch = arguments.rows * estimate.mesh.rows
    subject = programs.Subject(preset=preset, batch=batch, text=arguments.text)
    mesh, begun = make_mesh(estimate.mesh, devices), time.monotonic()
    said = {
        "program": arguments.program,
        "topology": arguments.topology,
        "chips": len(devices),
        "mesh": str(estimate.mesh),
        "batch": batch,
        "layers": preset.model.layers,
        "kernel": arguments.kernel,
        "remat": "none" if arguments.program == Program.STREAM else "keep_projections",
        "estimated_bytes": round(estimate.bytes),
    }
    with jax.set_mesh(mesh), using(Kernel(arguments.kernel)):
        lowered = programs.lower(Program(arguments.program), subject, mesh)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {**said, "refused": next((line for line in str(error).splitlines() if "hbm" in line), "")}
    mean_steps = (subject.sampler.steps + 1) / 2
    figures = measure(compiled, chip, unknown_trips=mean_steps)
    return {**said, **figures, "compile_s": round(time.monotonic() - begun, 1)}


def measure(compiled: jax.stages.Compiled, chip: Chip, *, unknown_trips: float) -> dict[str, Any]:
    """Read memory, work and bounds of a compiled program, all of one chip."""
    memory, cost = compiled.memory_analysis(), hlo.read_cost(compiled.as_text() or "", unknown_trips)
    if memory is None:
        raise ValueError("the compiler does not say how much memory the program needs")
    given, made = memory.argument_size_in_bytes, memory.output_size_in_bytes
    peak = given + made - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    seconds = {
        "compute": cost.flops / chip.flops,
        "network": cost.received_bytes / chip.ici_bandwidth,
        "memory": (given + made) / chip.hbm_bandwidth,
    }
    return {
        "argument_bytes": given,
        "temp_bytes": memory.temp_size_in_bytes,
        "peak_bytes": peak,
        "hbm_bytes": chip.hbm_bytes,
        "hbm_share": round(peak / chip.hbm_bytes, 4),
        "flops": cost.flops,
        "collectives": [
            {"kind": kind, "group": group, "times": times, "received_bytes": size}
            for (kind, group), (times, size) in cost.collectives
        ],
        "received_bytes": cost.received_bytes,
        "loops_of_unknown_length": cost.unknown_loops,
        "seconds": seconds,
        "seconds_bound": max(seconds.values()),
    }


def format_figures(figures: dict[str, Any]) -> str:
    """Say in a few lines what was found."""
    gib = {name: figures[f"{name}_bytes"] / GIB for name in ("argument", "temp", "peak", "hbm")}
    bounds = ", ".join(f"{name} {value:.3f}" for name, value in figures["seconds"].items())
    lines = [
        f"{figures['program']} on {figures['topology']}, {figures['chips']} chips, mesh {figures['mesh']}, "
        f"batch {figures['batch']}, {figures['layers']} layers",
        f"per chip: arguments {gib['argument']:.2f} GiB, temporaries {gib['temp']:.2f}, at its peak {gib['peak']:.2f} "
        f"of {gib['hbm']:.2f} ({figures['hbm_share']:.0%})",
        f"per chip: {figures['flops'] / 1e12:.1f} TFLOP, {figures['received_bytes'] / 1e9:.2f} GB received",
        f"bound: {figures['seconds_bound']:.3f} s ({bounds})",
    ]
    for one in figures["collectives"]:
        size = one["received_bytes"] / 1e9
        lines.append(f"  {one['kind']} among {one['group']}: {one['times']:.0f} times, {size:.3f} GB received")
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    """Print the figures and write them; bad input is one line on stderr and exit code 2."""
    jax.config.update("jax_platforms", "cpu")
    with refusing(arguments.json):
        figures = run(arguments)
        for other in figures["tried"]:
            if "refused" in other:
                print(f"mesh {other['mesh']}: {other['refused']}")
        print(format_figures(figures), flush=True)
        keep_figures(arguments.json, figures)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
