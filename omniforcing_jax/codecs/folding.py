"""Rearrangements between positions and channels, in the reference's orders, which are easy to get wrong."""

from jaxtyping import Array, Float


def fold(x: Float[Array, "B frames height width C"], stride: tuple[int, int, int]) -> Float[Array, "B F h w D"]:
    """Move the offsets within each cell of `stride` (time, height, width) to channels, ordered `C p1 p2 p3`.

    Source: LTX-2 SpaceToDepth, `b c (d p1) (h p2) (w p3) -> b (c p1 p2 p3) d h w`.
    """
    (batch, frames, height, width, channels), (p1, p2, p3) = x.shape, stride
    x = x.reshape(batch, frames // p1, p1, height // p2, p2, width // p3, p3, channels)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(*x.shape[:4], -1)


def unfold(x: Float[Array, "B F h w D"], stride: tuple[int, int, int]) -> Float[Array, "B frames height width C"]:
    """Invert `fold`."""
    (batch, frames, height, width, _), (p1, p2, p3) = x.shape, stride
    x = x.reshape(batch, frames, height, width, -1, p1, p2, p3)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, frames * p1, height * p2, width * p3, -1)


def patchify(pixels: Float[Array, "B frames height width C"], size: int) -> Float[Array, "B frames h w D"]:
    """Fold square patches into channels ordered `C r q`: here the width offset r is slower than the height offset q.

    Source: LTX-2 patchify, `b c (f 1) (h q) (w r) -> b (c 1 r q) f h w`.
    """
    return fold(pixels.swapaxes(2, 3), (1, size, size)).swapaxes(2, 3)


def unpatchify(x: Float[Array, "B frames h w D"], size: int) -> Float[Array, "B frames height width C"]:
    """Invert `patchify`."""
    return unfold(x.swapaxes(2, 3), (1, size, size)).swapaxes(2, 3)
