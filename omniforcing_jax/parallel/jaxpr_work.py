"""A traced program as numbers: its matrix products, and the memory that it takes besides its arguments.

Nothing is compiled and nothing allocated. Loops count as often as they run. A compiler fuses what is done element by
element, so such values take no memory here unless a product, a reduction or a loop makes or reads them.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

PRODUCTS = ("dot_general", "conv_general_dilated")
STORED = (
    *PRODUCTS,
    *("concatenate", "dynamic_update_slice", "dynamic_slice", "gather", "scatter", "sort", "cumsum", "fft", "pad"),
    *("random_bits", "custom_call"),
)


class Product(NamedTuple):
    """One kind of matrix product of a program.

    Attributes:
        flops: Of one run; two per multiply-add.
        nbytes: Bytes of its operands and its result.
        dtype: Type of its operands.
        is_batched: Whether it multiplies many small matrices, as attention does.
        is_convolution: Whether it is a convolution.
        runs: How often it runs.
    """

    flops: float
    nbytes: int
    dtype: np.dtype
    is_batched: bool
    is_convolution: bool
    runs: int


def trace(function: Any, *shapes: Any) -> ClosedJaxpr:
    """Trace a function over shapes (`jax.ShapeDtypeStruct`s in any tree)."""
    return jax.make_jaxpr(function)(*shapes)


def products(jaxpr: Jaxpr, runs: int = 1) -> Iterator[Product]:
    """List the matrix products of a program and of everything inside it; `runs` is how often the program runs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield _product(equation, runs)
        times = runs * equation.params["length"] if equation.primitive.name == "scan" else runs
        for inner in _inner(equation):
            yield from products(inner, times)


def _product(equation: Any, runs: int) -> Product:
    left, right, result = (each.aval for each in (*equation.invars[:2], equation.outvars[0]))
    is_convolution = equation.primitive.name != "dot_general"
    if is_convolution:
        numbers = equation.params["dimension_numbers"]
        depth, is_batched = math.prod(right.shape) // right.shape[numbers.rhs_spec[0]], False
    else:
        (contracted, _), (batched, _) = equation.params["dimension_numbers"]
        depth, is_batched = math.prod(left.shape[axis] for axis in contracted), len(batched) > 0
    return Product(
        flops=2.0 * math.prod(result.shape) * depth,
        nbytes=sum(map(_nbytes, (*equation.invars[:2], equation.outvars[0]))),
        dtype=np.dtype(left.dtype),
        is_batched=is_batched,
        is_convolution=is_convolution,
        runs=runs,
    )


class _Memory(NamedTuple):
    """What a program takes: its peak without arguments, and for each result the argument that it overwrites, if any."""

    peak: int
    overwritten: list[int | None]


def peak_bytes(jaxpr: Jaxpr, *, fused_attention: bool) -> int:
    """Count the bytes that are in use at once, without the program's arguments.

    A slice that is written into an array that nothing reads any more, or into an argument, is written in place.

    Args:
        jaxpr: The program.
        fused_attention: Whether the scores of attention are never stored.
    """
    return _measure(jaxpr, fused_attention).peak


def _measure(jaxpr: Jaxpr, fused: bool) -> _Memory:
    last, stored = _uses(jaxpr, fused)
    roots: dict[Any, Any] = {}  # of a value that is written over an array: that array
    sizes: dict[Any, int] = dict.fromkeys((*jaxpr.invars, *jaxpr.constvars), 0)
    peak = live = 0
    for i, equation in enumerate(jaxpr.eqns):
        inside = [_measure(each, fused) for each in _inner(equation)]
        for result, old in ((new, old) for new, old in _overwrites(equation, inside) if not _is_literal(old)):
            root = roots.get(old, old)
            if root in sizes and (sizes[root] == 0 or last[root] <= i):
                roots[result], last[root] = root, max(last.get(root, i), last.get(result, i))
        made = {v: _nbytes(v) for v in equation.outvars if v in stored and v not in roots}
        below = max((each.peak for each in inside), default=0)
        own = sum(made.values()) + below if _is_loop(equation) else max(sum(made.values()), below)
        peak, live = max(peak, live + own), live + sum(made.values())
        sizes.update(made)
        used = {roots.get(v, v) for v in (*equation.invars, *equation.outvars) if not _is_literal(v)}
        for v in used:
            live -= sizes.pop(v) if sizes.get(v) and last.get(v, i) <= i else 0
    numbers: dict[Any, int] = {v: index for index, v in enumerate(jaxpr.invars)}
    ends = (v if _is_literal(v) else roots.get(v, v) for v in jaxpr.outvars)
    return _Memory(peak, [None if _is_literal(v) else numbers.get(v) for v in ends])


def _uses(jaxpr: Jaxpr, fused: bool) -> tuple[dict[Any, int], set[Any]]:
    """Return where each value is read last, and the values that must be stored."""
    last: dict[Any, int] = {}
    stored = {v for v in jaxpr.outvars if not _is_literal(v)}
    for i, equation in enumerate(jaxpr.eqns):
        used = [v for v in equation.invars if not _is_literal(v)]
        last |= dict.fromkeys(used, i)
        is_fused = fused and equation.primitive.name == "dot_general" and _product(equation, 1).is_batched
        if (equation.primitive.name in STORED and not is_fused) or _inner(equation):
            stored |= {*used, *equation.outvars}
    return last | {v: len(jaxpr.eqns) for v in jaxpr.outvars if not _is_literal(v)}, stored


def _overwrites(equation: Any, inside: list[_Memory]) -> Iterator[tuple[Any, Any]]:
    """List results that may overwrite an operand, and that operand."""
    if equation.primitive.name == "dynamic_update_slice":
        yield equation.outvars[0], equation.invars[0]
    elif equation.primitive.name == "scan":
        first = equation.params["num_consts"]
        carried = equation.params["num_carry"]
        yield from zip(equation.outvars[:carried], equation.invars[first : first + carried], strict=True)
    elif len(inside) == 1 and len(inside[0].overwritten) == len(equation.outvars) and not _is_loop(equation):
        skipped = len(equation.invars) - len(_inner(equation)[0].invars)
        for result, index in zip(equation.outvars, inside[0].overwritten, strict=True):
            if index is not None:
                yield result, equation.invars[skipped + index]


def _is_literal(value: Any) -> bool:
    return hasattr(value, "val")


def _is_loop(equation: Any) -> bool:
    return equation.primitive.name in ("scan", "while")


def _inner(equation: Any) -> list[Jaxpr]:
    """List the programs inside an operation; of several branches, the last, which any platform can run."""
    if "branches" in equation.params:
        return [equation.params["branches"][-1].jaxpr]
    found = [each for each in equation.params.values() if isinstance(each, ClosedJaxpr | Jaxpr)]
    return [each.jaxpr if isinstance(each, ClosedJaxpr) else each for each in found]


def _nbytes(value: Any) -> int:
    return value.aval.size * getattr(value.aval.dtype, "itemsize", 8)
