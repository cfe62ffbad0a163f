"""How near a file is to its reference, frame by frame and moment by moment."""

import numpy as np

from omniforcing_jax.judge.media import Media, decode_pictures
from omniforcing_jax.judge.synchrony import QUIET

SAME_LENGTH = 5  # moments of 10 ms by which two lengths may differ: coders pad
SAME_START_S = 0.01  # seconds by which two starts may differ
HIGHEST_PSNR = 100.0  # dB, for equal pictures


def measure_agreement(media: Media, reference: Media) -> dict[str, float | None]:
    """Compare two files that were read.

    `psnr_db` is the PSNR over R, G and B of all frames, at most 100. It is None unless both pictures have the same
    size and number of frames. `log_mel_db` is the mean |difference| of the mel bands in dB; bands below -80 dB count as
    -80. It is None unless both sounds begin together and are equally long, to 50 ms.
    """
    return {"psnr_db": _psnr(media, reference), "log_mel_db": _log_mel(media, reference)}


def _psnr(media: Media, reference: Media) -> float | None:
    a, b = media.picture, reference.picture
    if a is None or b is None or (a.height, a.width, len(a.times)) != (b.height, b.width, len(b.times)):
        return None
    errors = [
        np.square(x.astype(np.float32) - y).mean(dtype=np.float64)
        for x, y in zip(decode_pictures(media.path), decode_pictures(reference.path), strict=False)
    ]
    error = float(np.mean(errors))
    return HIGHEST_PSNR if not error else min(HIGHEST_PSNR, 10 * float(np.log10(255**2 / error)))


def _log_mel(media: Media, reference: Media) -> float | None:
    a, b = media.sound, reference.sound
    if (
        a is None
        or b is None
        or abs(len(a.mel) - len(b.mel)) > SAME_LENGTH
        or abs(a.start_s - b.start_s) > SAME_START_S
    ):
        return None
    length = min(len(a.mel), len(b.mel))
    x, y = (10 * np.log10(np.maximum(sound.mel[:length], QUIET)) for sound in (a, b))
    return float(np.abs(x - y).mean())
