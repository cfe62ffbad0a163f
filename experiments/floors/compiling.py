"""The half of `experiments.compile_for_gpu` that runs in the environment with CUDA: compile, read, answer in JSON.

Its one argument is a JSON object with the fields of `Request`, its answer one line on stdout. JAX must see the settings
of `SETTINGS` when it starts.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from experiments.floors.categories import dearest, tabulate
from experiments.floors.kernels import read_kernels
from experiments.floors.programs import ROLES, lower
from experiments.floors.targets import TARGETS, Target
from experiments.pod.programs import Subject, shortened
from omniforcing_jax.io.answers import refuse
from omniforcing_jax.model.eight_bits import eight_bit_cache
from omniforcing_jax.nn.kernels import Kernel, using
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.pipeline.pipeline import with_weights_dtype
from omniforcing_jax.pipeline.presets import PRESETS

SETTINGS = {
    # CUDA's plugin registers all the same, and asks no driver for its version.
    "JAX_PLATFORMS": "cpu",
    # Without a card nothing is tuned. XLA would take the first of Triton's tiles; cuBLASLt has its own heuristics.
    # To compile every candidate would take a third of the time, for the same kernels.
    "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is compiled.

    Attributes:
        target: Card, a key of `TARGETS`.
        program: A key of `programs.LOWERED`.
        preset: Preset whose sizes network and pictures have.
        layers: Layers; None for all that the preset has.
        text: Tokens of a prompt.
        kernel: What computes attention; the backend's default would be the CPU's.
        weights_dtype: Eight bits that matrices are in; None for bfloat16.
        cache_dtype: The same of cached video keys and values.
        top: How many kernels are listed one by one.
    """

    target: str
    program: str
    preset: str
    layers: int | None
    text: int
    kernel: str
    weights_dtype: str | None
    cache_dtype: str | None
    top: int


def measure(request: Request) -> dict[str, Any]:
    """Compile a program and read what it takes.

    Raises:
        ValueError: If the preset is no student, or the program has a call whose work is not known.
    """
    target, preset = TARGETS[request.target], shortened(PRESETS[request.preset], request.layers)
    preset = with_weights_dtype(preset, request.weights_dtype)
    cache = eight_bit_cache(request.cache_dtype)
    subject = Subject(preset=preset, batch=1, text=request.text, cache=cache)
    with using(Kernel(request.kernel)):
        compiled = lower(request.program, subject, _mesh_of(target)).compile()
    # A rollout stops at a drawn step, which lies in the middle.
    kernels = read_kernels(compiled.as_text() or "", ROLES, unknown_trips=(subject.sampler.steps + 1) / 2)
    memory, table = compiled.memory_analysis(), tabulate(kernels, target)
    assert memory is not None, "XLA's compiler for GPUs says how much memory a program needs"
    given, made = memory.argument_size_in_bytes, memory.output_size_in_bytes
    return {
        "argument_bytes": given,
        "temp_bytes": memory.temp_size_in_bytes,
        "peak_bytes": given + made - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        "kernels": sum(kernel.runs for kernel in kernels),
        "tflop": sum(row["tflop"] for row in table.values()),
        "floor_ms": sum(row["floor_ms"] for row in table.values()),
        "categories": table,
        "dearest": dearest(kernels, target, request.top),
    }


def _mesh_of(target: Target) -> Mesh:
    jax.devices()  # plugins are found when the first backend starts
    described = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=target.describe())
    return make_mesh(MeshConfig(), described.devices)


if __name__ == "__main__":
    try:
        print(json.dumps(measure(Request(**json.loads(sys.argv[1])))))
    except ValueError as error:
        sys.exit(refuse(error))
