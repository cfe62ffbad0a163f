"""Chunks as a stream returns them, without any network."""

import numpy as np

from omniforcing_jax.stream.chunk import Chunk

FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_ROW, LOOK_AHEAD_ROWS = 24, 24_000, 240, 17


def make_chunks(seconds: int, impulse_s: float = 0.5) -> list[Chunk]:
    """Prefix layout: one frame, then 24 a block; sound lags by the vocoder's look-ahead; a tail without frames.

    The picture turns white and the sound has an impulse at `impulse_s`.
    """
    frames = 1 + FRAME_RATE * seconds
    video = np.zeros((frames, 32, 48, 3), np.uint8)
    video[round(impulse_s * FRAME_RATE) :] = 255
    audio = np.zeros(((1 + 100 * seconds) * SAMPLES_PER_ROW, 2), np.float32)
    audio[round(impulse_s * SAMPLE_RATE) :][:48] = 0.9
    frame_ends = [1 + FRAME_RATE * k for k in range(seconds + 1)] + [frames]
    sample_ends = [max(0, 1 + 100 * k - LOOK_AHEAD_ROWS) * SAMPLES_PER_ROW for k in range(seconds + 1)] + [len(audio)]
    return [
        Chunk(
            index=k,
            video=video[first:end],
            video_start_s=first / FRAME_RATE,
            audio=audio[start:stop],
            audio_start_s=start / SAMPLE_RATE,
            sample_rate=SAMPLE_RATE,
        )
        for k, (first, end, start, stop) in enumerate(
            zip([0, *frame_ends], frame_ends, [0, *sample_ends], sample_ends, strict=False)
        )
    ]
