"""A few seconds of a clip's picture as an animated WebP, small enough for a web page; by PyAV."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

QUALITY = 70  # of 100


def write_webp(path: Path, video: UInt8[np.ndarray, "F H W 3"], *, frame_rate: int, every: int, scale: int) -> None:
    """Write frames as an animation that repeats for ever.

    Args:
        path: The file.
        video: RGB frames.
        frame_rate: Of `video`, frames per second.
        every: Show one frame in so many.
        scale: Enlarge both sides of the picture by this factor.

    Raises:
        ValueError: This build of PyAV has no WebP encoder.
    """
    import av
    from av.codec.codec import UnknownCodecError

    rate = Fraction(frame_rate, every)
    height, width = (scale * side for side in video.shape[1:3])
    with av.open(str(path), "w", format="webp", options={"loop": "0"}) as file:
        try:
            stream = file.add_stream("libwebp_anim", rate=rate, options={"quality": str(QUALITY)})
        except UnknownCodecError:
            raise ValueError(f"{path}: this build of PyAV {av.__version__} has no WebP encoder") from None
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.time_base = 1 / rate
        for index, pixels in enumerate(video[::every]):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(width=width, height=height, format="yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base = index, 1 / rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
