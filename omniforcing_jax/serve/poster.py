"""One frame as a PNG file."""

import numpy as np
from jaxtyping import UInt8


def make_png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Return the PNG file of a frame."""
    import av

    context = av.CodecContext.create("png", "w")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    context.width, context.height, context.pix_fmt = frame.width, frame.height, "rgb24"  # pyright: ignore
    context.framerate = 1  # pyright: ignore
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])  # pyright: ignore
