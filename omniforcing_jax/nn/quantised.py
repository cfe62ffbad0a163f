"""A matrix in eight bits: its values, and a float32 scale for each output channel. Inference only.

`project` (linear.py) multiplies by it, and stack.py takes it apart by layers; nothing else in the network knows it.
Activations are quantised on the way, each row by its own largest value. The product is of eight bits by eight bits,
summed in int32 for int8 and in float32 for float8. Both scales and the bias are applied in float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import struct
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax.config import EightBitKind
from omniforcing_jax.parallel.spec import Leaf, Spec, array

SMALLEST = float(np.finfo(np.float32).tiny)  # a scale: of rows that are all zeros, too
VALUES_AT_ONCE = 1 << 20  # in float32 at a time


class Eights(NamedTuple):
    """The numbers of one kind of eight bits.

    Attributes:
        dtype: Their type.
        largest: The largest value that is used; it encodes the largest value of a channel or a row.
        total: Type of the product's sums.
    """

    dtype: np.dtype
    largest: float
    total: np.dtype


EIGHTS = {
    EightBitKind.INT8: Eights(np.dtype(np.int8), 127.0, np.dtype(np.int32)),
    EightBitKind.FLOAT8: Eights(np.dtype(ml_dtypes.float8_e4m3fn), 448.0, np.dtype(np.float32)),
}
BY_DTYPE = {eights.dtype: eights for eights in EIGHTS.values()}


@struct.dataclass
class Quantised:
    """A matrix w[o, i] = scale[o] values[o, i], or a stack of them."""

    values: Leaf  # [..., O, I], int8 or float8 e4m3
    scale: Leaf  # [..., O], float32

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the matrix that it encodes."""
        return array(self.values).shape


def is_quantised(leaf: Any) -> bool:
    """Whether a node of a tree is a `Quantised`."""
    return isinstance(leaf, Quantised)


def quantised_spec(spec: Spec, kind: EightBitKind) -> Quantised:
    """Declare the eight bits of a declared matrix; values drawn at random have the scale of its inputs."""
    eights = EIGHTS[kind]

    def draw(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
        return jax.random.uniform(key, shape, jnp.float32, -eights.largest, eights.largest).astype(dtype)

    def even(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
        return jnp.full(shape, even_scale(eights, spec.shape[-1]), dtype)

    return Quantised(
        values=Spec(spec.shape, spec.axes, draw, eights.dtype),
        scale=Spec(spec.shape[:-1], spec.axes[:-1], even, np.dtype(np.float32)),
    )


def even_scale(eights: Eights, inputs: int) -> float:
    """Return the scale at which evenly spread values have standard deviation 1 / sqrt(inputs)."""
    return float(np.sqrt(3 / inputs) / eights.largest)


def measure_scale(w: np.ndarray, kind: EightBitKind) -> np.ndarray:
    """Return the scale of each output channel of `[..., O, I]`: its largest absolute value encodes as the largest.

    Raises:
        ValueError: A value is not finite.
    """
    with np.errstate(invalid="ignore"):
        top = np.maximum(w.max(-1).astype(np.float32), -w.min(-1).astype(np.float32))
    if not np.isfinite(top).all():
        raise ValueError("has values that are not finite")
    return np.maximum(top / np.float32(EIGHTS[kind].largest), np.float32(SMALLEST))


def encode(w: np.ndarray, scale: np.ndarray, kind: EightBitKind) -> np.ndarray:
    """Encode a matrix [O, I] by the scales of its output channels, rounded to nearest even."""
    eights, step = EIGHTS[kind], max(1, VALUES_AT_ONCE // max(1, w.shape[-1]))
    values = np.empty(w.shape, eights.dtype)
    for begin in range(0, len(w), step):
        some = slice(begin, begin + step)
        exact = w[some].astype(np.float32) / scale[some, None]
        values[some] = np.rint(exact) if kind is EightBitKind.INT8 else exact
    return values


def multiply(x: Float[Array, "*batch I"], w: Quantised) -> Float[Array, "*batch O"]:
    """Return x w^T in float32; x is quantised row by row.

    Raises:
        ValueError: A gradient is taken.
    """
    return _multiply(x, array(w.values), array(w.scale))


@jax.custom_jvp
@jax.named_scope("eight_bits")
def _multiply(x: Float[Array, "*batch I"], values: Array, scale: Float[Array, " O"]) -> Float[Array, "*batch O"]:
    eights = BY_DTYPE[np.dtype(values.dtype)]
    rows, row_scale = quantise_along(x, eights, -1)
    product = _dot(rows, values, eights.total) if eights.dtype.kind == "i" else _dot_float8(rows, values, x.dtype)
    return product.astype(jnp.float32) * row_scale * scale.reshape((1,) * (x.ndim - 1) + (-1,))


@_multiply.defjvp
def _refuse_gradient(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    raise ValueError("weights in eight bits have no gradient: train the weights that they were made from")


def quantise_along(x: Float[Array, "*shape"], eights: Eights, axis: int) -> tuple[Array, Array]:
    """Quantise what lies along an axis by its own largest absolute value.

    Returns:
        The values, and their scales in float32, of size 1 along the axis.
    """
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=axis, keepdims=True) / eights.largest, SMALLEST)
    exact = jnp.clip(wide / scale, -eights.largest, eights.largest)
    return (jnp.round(exact) if eights.dtype.kind == "i" else exact).astype(eights.dtype), scale


def _dot(x: Array, w: Array, total: np.dtype, precision: jax.lax.DotAlgorithmPreset | None = None) -> Array:
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, w, contract, precision=precision, preferred_element_type=total)


def _dot_float8(x: Array, w: Array, dtype: DTypeLike) -> Array:
    """Multiply in float8: on GPU its tensor cores with their fast sums, elsewhere as the compiler can.

    On GPU the sums of a network in bfloat16 are written in bfloat16: at 19B that saves a twentieth of a step.
    """
    written = jnp.promote_types(dtype, jnp.bfloat16)
    total, fast = EIGHTS[EightBitKind.FLOAT8].total, jax.lax.DotAlgorithmPreset.ANY_F8_ANY_F8_F32_FAST_ACCUM
    return jax.lax.platform_dependent(
        x, w, cuda=lambda x, w: _dot(x, w, written, fast).astype(total), default=lambda x, w: _dot(x, w, total)
    )
