"""A picture through H.264 and back: training clips were compressed, and their first frames look so."""

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8

from omniforcing_jax.layout import FRAME_RATE


def compress_frames(frames: UInt8[np.ndarray, "F H W 3"], crf: int) -> UInt8[np.ndarray, "F H W 3"]:
    """Compress RGB frames by H.264 at a quality (CRF) and read them again. Height and width must be even."""
    import av

    file = io.BytesIO()
    _, height, width, _ = frames.shape
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=FRAME_RATE, options={"crf": str(crf)}, height=height, width=width)
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    file.seek(0)
    back: Any = av.open(file)
    with back:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in back.decode(video=0)])
