"""The types that a weight may have, and the check that every value is finite."""

from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np

CHUNK = 1 << 20  # bytes checked at a time: stays in a core's cache
FLOATS = {  # integer types of the same width, with and without a sign; bits of infinity, below those of every NaN
    np.dtype(np.float16): (np.int16, np.uint16, 0x7C00),
    np.dtype(jnp.bfloat16): (np.int16, np.uint16, 0x7F80),
    np.dtype(np.float32): (np.int32, np.uint32, 0x7F800000),
    np.dtype(np.float64): (np.int64, np.uint64, 0x7FF0000000000000),
}


def is_weight_type(dtype: np.dtype) -> bool:
    """Whether a weight may have this type on disk: floating, and wide enough to be used as it is."""
    return dtype in FLOATS


def check_finite(blocks: Iterable[np.ndarray], name: str, where: str) -> Iterator[np.ndarray]:
    """Yield the blocks of a tensor, each after a look at every value.

    Raises:
        ValueError: There is a NaN or an infinity; names tensor and file.
    """
    for block in blocks:
        if not _is_finite(block):
            raise ValueError(f"{where}: {name} has values that are not finite")
        yield block


def _is_finite(block: np.ndarray) -> bool:
    """Compare bits: infinities and NaNs are the largest as signed integers, their negatives as unsigned ones."""
    signed, unsigned, infinity = FLOATS[block.dtype]
    sign = np.iinfo(signed).max + 1
    step = CHUNK // block.itemsize
    chunks = (block[begin : begin + step] for begin in range(0, block.size, step))
    return all(c.view(signed).max() < infinity and c.view(unsigned).max() < sign + infinity for c in chunks)
