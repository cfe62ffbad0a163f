"""The sound of a user's file in the place of a stream's own: cut to the times of its chunks, at the file's quality."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.media_file import SoundPiece, read_pieces
from omniforcing_jax.stream.chunk import Chunk

AAC_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Rates that a file is written at. A sound of another rate is resampled to the last one."""


class Soundtrack:
    """A file's sound, read as it is asked for. Sounds with more than two channels are mixed down.

    Args:
        path: The file.

    Raises:
        ValueError: If the file cannot be read or has no sound.
    """

    def __init__(self, path: AnyPath) -> None:
        self._pieces: Iterator[SoundPiece] = read_pieces(path, 2, AAC_RATES)
        self._waiting, self.rate = next(self._pieces, SoundPiece(np.zeros((0, 2), np.float32), AAC_RATES[-1]))
        self._at = 0  # index of the first waiting sample

    def replace(self, chunk: Chunk) -> Chunk:
        """Return a chunk with this sound over the time that its own sound covers. Chunks must come in order."""
        begin = round(chunk.audio_start_s * chunk.sample_rate)
        first, last = (self._scale(sample, chunk.sample_rate) for sample in (begin, begin + len(chunk.audio)))
        audio = self._take(first, last)
        return dataclasses.replace(chunk, audio=audio, audio_start_s=first / self.rate, sample_rate=self.rate)

    def _scale(self, sample: int, rate: int) -> int:
        return (2 * sample * self.rate + rate) // (2 * rate)

    def _take(self, first: int, last: int) -> Float32[np.ndarray, "samples 2"]:
        """Return samples from `first` on; behind the end of the file there is silence."""
        while self._at + len(self._waiting) < last and (piece := next(self._pieces, None)) is not None:
            rest = self._waiting[max(0, first - self._at) :]
            self._at += len(self._waiting) - len(rest)
            self._waiting = np.concatenate([rest, piece.samples])
        taken = self._waiting[max(0, first - self._at) : max(0, last - self._at)]
        return np.concatenate([taken, np.zeros((last - first - len(taken), 2), np.float32)])
