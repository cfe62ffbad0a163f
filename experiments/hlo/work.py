"""FLOPs of one instruction: matrix products, convolutions, and the libraries' kernels behind custom calls.

Two FLOPs per multiply-add. All else (norms, softmax, rotations) is a percent of a transformer's work and counts 0. The
text may be of any backend. A TPU's matrix products are convolutions, and its Pallas kernels are custom calls that are
known by name. A GPU's are calls of cuBLASLt and cuDNN, whose settings say what is multiplied.
"""

import functools
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.hlo.text import Array, Instruction

# FLOPs of jax's splash kernels per query, key, head and channel, two for each of the products that they make.
SPLASH_FLOPS = {"fwd": 4, "dq": 6, "dkv": 8}
GEMMS = ("__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8")
ATTENTION, CONVOLUTION = "__cudnn$fmha", "__cudnn$conv"
# Products of head size in cuDNN's attention: scores and output; with a gradient the scores again, and four more.
FORWARD, BACKWARD = (1, 1), (3, 2)
# Calls that multiply no matrices. One that is in no list here is an error, for its work might be most of a program's.
NO_PRODUCTS = re.compile(
    r"Sharding|SPMDFullToShardShape|SPMDShardToFullShape|annotate_device_placement|MoveTo(Host|Device)|AllocateBuffer"
    r"|AssumeGatherIndicesInBound|GatherScatterIndicesBitpacked|PadToStatic|SliceToDynamic|ZeroCrop|x64|X64\w+|TopK"
    r"|ConcatBitcast|RiscBitcast"
    r"|cu_threefry2x32|__cub\$\w+|xla_ffi_\w+callback|xla_\w*python\w*callback"
)


def flops(one: Instruction, given: Sequence[Array]) -> float:
    """Count the FLOPs of matrix products.

    Args:
        one: The instruction.
        given: The array of each operand; of one that is a tuple, the first.

    Raises:
        ValueError: If it is a custom call whose work is not known; names it.
    """
    match one.opcode:
        case "dot":
            summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
            axes = [int(axis) for axis in (summed[1] if summed else "").split(",") if axis]
            return 2.0 * one.arrays[0].count * math.prod(given[0].sizes[axis] for axis in axes)
        case "convolution":
            return _convolution_flops(given[0].sizes, given[1].sizes, one.arrays[0].sizes, one.rest)
        case "custom-call":
            return _call_flops(one, given)
        case _:
            return 0.0


def settings(one: Instruction) -> dict[str, Any]:
    """Return what XLA tells a library about a call."""
    _, _, text = one.rest.partition("backend_config=")
    return json.JSONDecoder().raw_decode(text)[0] if text.startswith("{") else {}


def gemm_axes(one: Instruction, side: str, kind: str) -> list[int]:
    """Return the `contracting` or `batch` axes of a cuBLAS call's operand, `lhs` or `rhs`."""
    numbers = settings(one)["gemm_backend_config"]["dot_dimension_numbers"]
    return [int(axis) for axis in numbers.get(f"{side}_{kind}_dimensions", ())]


def attention_sizes(one: Instruction) -> tuple[int, int, int, int]:
    """Return rows, heads, queries and keys of an attention by cuDNN."""
    shape = settings(one)["cudnn_fmha_backend_config"]["intermediate_tensor_shape"]["dimensions"]
    rows, heads, queries, keys = map(int, shape)
    return rows, heads, queries, keys


def _call_flops(one: Instruction, given: Sequence[Array]) -> float:
    """Know a kernel by its target or, on a TPU, by its name.

    Those are jax's splash, and the fused softmax and second product that TPU's compiler makes.
    """
    if one.target in GEMMS:
        return 2.0 * one.arrays[0].count * math.prod(given[0].sizes[a] for a in gemm_axes(one, "lhs", "contracting"))
    if one.target.startswith(ATTENTION):
        of_scores, of_values = BACKWARD if "Backward" in one.target else FORWARD
        per_pair = of_scores * given[0].sizes[-1] + of_values * given[2].sizes[-1]
        return 2.0 * math.prod(attention_sizes(one)) * per_pair
    if one.target.startswith(CONVOLUTION):
        return _cudnn_convolution_flops(one, given)
    if splash := re.search(r"splash_m[hq]a_(fwd|dq|dkv)", one.name + one.rest):
        queries, keys = [x for x in given if len(x.sizes) >= 3 and x.kind in ("bf16", "f16", "f32")][:2]
        return float(SPLASH_FLOPS[splash[1]] * queries.count * keys.sizes[-2])
    if "online-softmax" in one.name:
        return 2.0 * one.arrays[0].count * given[0].sizes[-1]
    if not NO_PRODUCTS.fullmatch(one.target):
        raise ValueError(f"custom call {one.target} ({one.name}): how much it multiplies is not known")
    return 0.0


def _cudnn_convolution_flops(one: Instruction, given: Sequence[Array]) -> float:
    """Count by the forward convolution, which the attributes describe in all three directions."""
    made = one.arrays[0].sizes
    if "BackwardInput" in one.target:
        left, right, out = made, given[1].sizes, given[0].sizes
    elif "BackwardFilter" in one.target:
        left, right, out = given[0].sizes, made, given[1].sizes
    else:
        left, right, out = given[0].sizes, given[1].sizes, made
    return _convolution_flops(left, right, out, one.rest)


def _convolution_flops(left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...], rest: str) -> float:
    """Count the multiply-adds that are not with padding, times two."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    if labels is None:
        raise ValueError(f"convolution without dim_labels: {rest[:80]}")
    of_left, of_right, of_out = (dict(zip(label, range(99), strict=False)) for label in labels.groups())
    groups = int(found[1]) if (found := re.search(r"feature_group_count=(\d+)", rest)) else 1
    batches = int(found[1]) if (found := re.search(r"batch_group_count=(\d+)", rest)) else 1
    window = (re.search(r"window=\{([^}]*)\}", rest) or ["", ""])[1]
    axes = sorted(label for label in of_out if label.isdigit())
    pairs = 1.0
    for axis in axes:
        number = int(axis)
        pairs *= _pairs(
            left[of_left[axis]],
            right[of_right[axis]],
            out[of_out[axis]],
            stride=_window(window, "stride", number, 1),
            low=_window(window, "pad", number, 0),
            left_dilate=_window(window, "lhs_dilate", number, 1),
            right_dilate=_window(window, "rhs_dilate", number, 1),
        )
    features = left[of_left["f"]] / groups * right[of_right["o"]]
    return 2.0 * pairs * features * left[of_left["b"]] / batches


def _window(window: str, name: str, axis: int, default: int) -> int:
    """Read `stride=1x2` and the like; of `pad=0_1x2_2` the lower padding."""
    found = re.search(rf"\b{name}=([\d_x\-]+)", window)
    return int(found[1].split("x")[axis].partition("_")[0]) if found else default


@functools.cache
def _pairs(size: int, kernel: int, out: int, *, stride: int, low: int, left_dilate: int, right_dilate: int) -> int:
    """Count the pairs of an output and a kernel position that meet an element and not padding."""
    place = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None] * right_dilate
    inside = (place >= 0) & (place <= (size - 1) * left_dilate) & (place % left_dilate == 0)
    return int(inside.sum())
