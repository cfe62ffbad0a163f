"""Rendered clips as data sources: example i is drawn from the world of seed i, anywhere in its first seconds.

Training worlds have seeds from TRAIN_SEED on, held-out ones from HELD_OUT_SEED on. Evaluation prompts use seeds of
their own (judge/sources.py), so nothing that is judged was seen.
"""

import dataclasses
from typing import Any

import numpy as np

from omniforcing_jax.chime import physics, render
from omniforcing_jax.layout import FRAME_RATE

TRAIN_SEED = 1_000_000
HELD_OUT_SEED = 9_000_000
LATEST_START = 10  # seconds: a codec sees worlds from their beginning and in full swing alike


@dataclasses.dataclass(frozen=True)
class VideoClips:
    """Pixels and foreground weight of short clips.

    Example: `video` uint8 [T, H, W, 3], `foreground` float32 [T, H, W] (discs grown by two pixels).
    """

    frames: int
    count: int = 200_000
    first_seed: int = TRAIN_SEED
    size: int = 64

    def __len__(self) -> int:
        """Number of clips."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Render clip `index`."""
        seed = self.first_seed + index
        scene = physics.sample_world(seed)
        first = int(np.random.default_rng([seed, 1]).integers(0, LATEST_START * FRAME_RATE))
        return {
            "video": render.render_video(scene, self.frames, self.size, first),
            "foreground": render.foreground_mask(scene, self.frames, self.size, first, dilate=2.0),
        }


@dataclasses.dataclass(frozen=True)
class SoundClips:
    """Stereo sound of short clips at one or more rates, float32 [samples, 2] under `audio_RATE`."""

    seconds: float
    rates: tuple[int, ...]
    count: int = 200_000
    first_seed: int = TRAIN_SEED

    def __len__(self) -> int:
        """Number of clips."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Render clip `index`; it begins on a whole mel row, so that every rate begins at the same instant."""
        seed = self.first_seed + index
        scene = physics.sample_world(seed)
        row = int(np.random.default_rng([seed, 2]).integers(0, LATEST_START * 100))
        return {
            f"audio_{rate}": render.render_audio(scene, round(self.seconds * rate), rate, row * rate // 100)
            for rate in self.rates
        }


def to_float(video: Any) -> Any:
    """Map uint8 pixels to [-1, 1] (NumPy in, NumPy out; JAX in, JAX out)."""
    return video.astype("float32") / 127.5 - 1.0
