"""Which kind of work each kernel is, and the table of a program's floors by kind.

The floor of a kernel is the larger of its work at the card's peak and its traffic at the card's bandwidth, times its
runs. No launch, no wave that is only half full, and no wait counts, so a program takes longer.
"""

import collections
import math
from collections.abc import Iterable
from typing import Any

from experiments.floors.kernels import Kernel
from experiments.floors.targets import Target
from experiments.hlo.text import Array, Instruction
from experiments.hlo.work import ATTENTION, CONVOLUTION, GEMMS, attention_sizes, gemm_axes

WEIGHTS, CACHE, TEXT = "weights", "cache", "text"
COPIES = tuple(f"{role}_copied" for role in (WEIGHTS, CACHE))  # in every table, zeros if there are none
SMALL_BYTES = 1e6
SCOPE = "dot_product_attention"  # of omniforcing_jax.nn.kernels


def tabulate(kernels: Iterable[Kernel], target: Target) -> dict[str, dict[str, float]]:
    """Add up runs, work in TFLOP, traffic in GB and floor in ms by category, the dearest first."""
    sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0] * 5)
    for name in COPIES:
        sums[name] = [0.0] * 5
    for kernel in kernels:
        one = 1.0, kernel.flops / 1e12, kernel.read / 1e9, kernel.written / 1e9, 1e3 * floor_seconds(kernel, target)
        sums[category(kernel)] = [
            total + kernel.runs * each for total, each in zip(sums[category(kernel)], one, strict=True)
        ]
    names = ("runs", "tflop", "read_gb", "written_gb", "floor_ms")
    ordered = sorted(sums.items(), key=lambda item: -item[1][-1])
    return {kind: dict(zip(names, values, strict=True)) for kind, values in ordered}


def dearest(kernels: Iterable[Kernel], target: Target, count: int) -> list[dict[str, Any]]:
    """List the kernels of largest floor over all their runs: floor in ms, runs, category, traffic in MB, and scopes."""
    floors = sorted(((1e3 * k.runs * floor_seconds(k, target), k) for k in kernels), key=lambda pair: -pair[0])
    return [
        {
            "floor_ms": floor,
            "runs": kernel.runs,
            "category": category(kernel),
            "read_mb": kernel.read / 1e6,
            "written_mb": kernel.written / 1e6,
            "path": kernel.path,
        }
        for floor, kernel in floors[:count]
    ]


def floor_seconds(kernel: Kernel, target: Target) -> float:
    """Return the least time of one run."""
    seconds = (kernel.read + kernel.written) / target.bandwidth
    if kernel.product is None:
        return seconds
    is_exact = '"HIGHEST"' in kernel.product.rest or "operand_precision={highest" in kernel.product.rest
    return max(seconds, kernel.flops / target.peak(kernel.factors[0][0].kind, is_exact=is_exact))


def category(kernel: Kernel) -> str:
    """Name the kind of work."""
    if kernel.product is not None:
        return _product(kernel, kernel.product)
    if (role := kernel.copied()) is not None:
        return f"{role}_copied"
    if any(number is not None and kernel.roles[number] == CACHE for number in kernel.traffic.updated):
        return "cache_written"
    if SCOPE in kernel.path:
        return "attention_plain"
    if kernel.read + kernel.written < SMALL_BYTES:
        return "small"
    moved = sum(sum(each.values()) for each in kernel.traffic.moved)
    return "moved" if 2 * moved >= kernel.written else "elementwise"


def _product(kernel: Kernel, product: Instruction) -> str:
    if product.target.startswith(ATTENTION):
        _, heads, queries, keys = attention_sizes(product)
        direction = "_backward" if "Backward" in product.target else ""
        return f"attention_cudnn{direction}_{queries}x{keys}_{heads}x{kernel.factors[0][0].sizes[-1]}"
    kind = kernel.factors[0][0].kind
    suffix = "" if kind == "bf16" else f"_{kind}"
    if product.target.startswith(CONVOLUTION) or product.opcode == "convolution":
        window = product.rest.partition("window={size=")[2].partition(" ")[0].partition("}")[0]
        return f"convolution_{window.count('x') + 1}d{suffix}"
    rows = _rows(kernel, product)
    if rows is None:
        return "attention_plain" if SCOPE in kernel.path else f"gemm_of_activations{suffix}"
    return f"gemm_{rows}_rows{suffix}"


def _rows(kernel: Kernel, product: Instruction) -> int | None:
    """Return the rows that a GEMM multiplies with weights, or None if neither side or both are weights."""
    (left, left_role), (right, right_role) = kernel.factors[:2]
    if (left_role == WEIGHTS) == (right_role == WEIGHTS):
        return None
    summed = _summed(product, left)
    weights = left if left_role == WEIGHTS else right
    return round(product.arrays[0].count / (weights.count / summed))


def _summed(product: Instruction, left: Array) -> int:
    """Return over how many elements a GEMM sums."""
    if product.target in GEMMS:
        axes = gemm_axes(product, "lhs", "contracting")
    else:
        axes = [int(a) for a in product.rest.partition("lhs_contracting_dims={")[2].partition("}")[0].split(",") if a]
    return math.prod(left.sizes[axis] for axis in axes)
