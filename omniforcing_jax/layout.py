"""Clocks and blocks: pixel frames, latent frames and seconds, and how a clip is cut into blocks.

Everything here is host arithmetic on whole numbers and float64 seconds; there are no network arrays and no spatial
sizes. Lengths that do not fit are errors: nothing is truncated or padded.
"""

import dataclasses
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FRAME_RATE = 24  # pixel frames per second
PIXELS_PER_LATENT = 8  # pixel frames per video latent; the first latent is one frame
AUDIO_RATE = 25  # audio latents per second
ROW_RATE = 100  # log-mel rows per second
ROWS_PER_LATENT = 4  # log-mel rows per audio latent; the first latent is one row
LONGEST_BLOCK_S = 3600  # far more than any network has
VIDEO_RATE = FRAME_RATE // PIXELS_PER_LATENT  # video latents per second


class Block(NamedTuple):
    """Latent frames [start, end) of both streams, generated together."""

    video_start: int
    video_end: int
    audio_start: int
    audio_end: int

    @property
    def video_frames(self) -> int:
        """Video latent frames in the block."""
        return self.video_end - self.video_start

    @property
    def audio_frames(self) -> int:
        """Audio latent frames in the block."""
        return self.audio_end - self.audio_start


def latent_frames(pixel_frames: int) -> int:
    """Video latent frames of a clip: 1 + (n - 1) / 8.

    Raises:
        ValueError: pixel_frames is not 1 more than a multiple of 8.
    """
    if pixel_frames < 1 or (pixel_frames - 1) % PIXELS_PER_LATENT:
        below = max(0, pixel_frames - 1) // PIXELS_PER_LATENT * PIXELS_PER_LATENT + 1
        raise ValueError(
            f"pixel_frames={pixel_frames}: must be 1 + 8 j; the nearest are {below} and {below + PIXELS_PER_LATENT}"
        )
    return 1 + (pixel_frames - 1) // PIXELS_PER_LATENT


def pixel_frames(latent_frames: int) -> int:
    """Pixel frames that `latent_frames` video latents decode to."""
    return 1 + PIXELS_PER_LATENT * (latent_frames - 1)


def audio_latents(latent_frames: int) -> int:
    """Audio latents of a clip of `latent_frames` video latents, by the teacher's rule round(n / 24 * 25).

    Source: ltx-core@1.0.0:types.py, AudioLatentShape.from_video_pixel_shape.
    """
    return round(Fraction(pixel_frames(latent_frames) * AUDIO_RATE, FRAME_RATE))


def video_seconds(start: int, count: int) -> Float[np.ndarray, " F"]:
    """Midpoints, in seconds, of video latents start .. start + count - 1: 1/48, then (8 t - 3) / 24."""
    t = np.arange(start, start + count, dtype=np.float64)
    first = PIXELS_PER_LATENT * t - (PIXELS_PER_LATENT - 1)
    return (np.maximum(0, first) + PIXELS_PER_LATENT * t + 1) / (2 * FRAME_RATE)


def audio_seconds(start: int, count: int) -> Float[np.ndarray, " A"]:
    """Midpoints, in seconds, of audio latents start .. start + count - 1: 0.005, then (4 t - 1) / 100."""
    t = np.arange(start, start + count, dtype=np.float64)
    first = ROWS_PER_LATENT * t - (ROWS_PER_LATENT - 1)
    return (np.maximum(0, first) + ROWS_PER_LATENT * t + 1) / (2 * ROW_RATE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The block table as four numbers: block 0 and every later block, in latent frames.

    Block 0 covers whole seconds plus one latent of each stream, perhaps with one audio latent more, and later blocks
    cover whole seconds. The ends of both streams are therefore always as far apart (`sound_lead`).

    Raises:
        ValueError: The numbers are not of that form.
    """

    first_v: int
    first_a: int
    step_v: int
    step_a: int

    def __post_init__(self):
        first, step = (self.first_v - 1) // VIDEO_RATE, self.step_v // VIDEO_RATE
        if max(first, step) > LONGEST_BLOCK_S:
            raise ValueError(f"first_v={self.first_v}, step_v={self.step_v}: blocks of more than {LONGEST_BLOCK_S} s")
        if first < 0 or self.first_v != 1 + VIDEO_RATE * first or self.extra_a not in (0, 1):
            raise ValueError(
                f"first_v={self.first_v}, first_a={self.first_a}: "
                "must be 1 + 3 s, and 1 + 25 s or 2 + 25 s, for whole seconds s"
            )
        if step < 1 or (self.step_v, self.step_a) != (VIDEO_RATE * step, AUDIO_RATE * step):
            raise ValueError(
                f"step_v={self.step_v}, step_a={self.step_a}: must be 3 s and 25 s for whole seconds s >= 1"
            )

    @property
    def first_seconds(self) -> int:
        """Whole seconds in block 0, which holds at least one more latent of each stream."""
        return (self.first_v - 1) // VIDEO_RATE

    @property
    def step_seconds(self) -> int:
        """Whole seconds in every later block."""
        return self.step_v // VIDEO_RATE

    @property
    def extra_a(self) -> int:
        """Audio latents of block 0 beyond the one that goes with its first frame: 0 or 1."""
        return self.first_a - (1 + AUDIO_RATE * self.first_seconds)

    @property
    def sound_lead(self) -> Fraction:
        """Seconds by which the sound of a block ends after its picture, the same for every block.

        It is -19/600 s (the sound is shorter) without an extra audio latent, and 1/120 s with one.
        """
        rows = 1 + ROWS_PER_LATENT * (self.first_a - 1)
        return Fraction(rows, ROW_RATE) - Fraction(pixel_frames(self.first_v), FRAME_RATE)

    def sound_seconds(self, k: int) -> float:
        """Seconds of sound, from its beginning, that the audio latents before block k are made of."""
        return self.start_seconds(k) + (self.extra_a / AUDIO_RATE if k else 0)

    def block(self, k: int) -> Block:
        """Latent frames of block k, for any k >= 0."""
        if k == 0:
            return Block(0, self.first_v, 0, self.first_a)
        video, audio = self.first_v + (k - 1) * self.step_v, self.first_a + (k - 1) * self.step_a
        return Block(video, video + self.step_v, audio, audio + self.step_a)

    def start_seconds(self, k: int) -> int:
        """Whole seconds of the clip before block k; the extra frame of block 0 is not counted."""
        return 0 if k == 0 else self.first_seconds + (k - 1) * self.step_seconds

    def block_count(self, latent_frames: int) -> int:
        """Blocks in a clip of `latent_frames` video latents.

        Raises:
            ValueError: The last block would be incomplete; names the nearest lengths that fit.
        """
        rest = latent_frames - self.first_v
        if rest < 0 or rest % self.step_v:
            below = self.first_v + max(0, rest) // self.step_v * self.step_v
            fits = [below] if rest < 0 else [below, below + self.step_v]
            allowed = " and ".join(f"{n} ({pixel_frames(n)} pixel frames)" for n in fits)
            raise ValueError(
                f"latent_frames={latent_frames}: must be {self.first_v} + {self.step_v} j; the nearest are {allowed}"
            )
        return 1 + rest // self.step_v

    def blocks(self, latent_frames: int) -> tuple[Block, ...]:
        """Block table of a clip of `latent_frames` video latents.

        Raises:
            ValueError: The last block would be incomplete.
        """
        return tuple(self.block(k) for k in range(self.block_count(latent_frames)))

    def check_clip(self, latent_frames: int, audio_frames: int) -> None:
        """Check that a clip's two lengths are both where a block ends.

        Raises:
            ValueError: They are not.
        """
        end = self.blocks(latent_frames)[-1].audio_end
        if audio_frames != end:
            raise ValueError(f"audio_frames={audio_frames}: {latent_frames} video latent frames go with {end}")

    def frames_for(self, seconds: int | float) -> int:
        """Pixel frames of a clip of `seconds` whole seconds (plus one frame).

        Raises:
            ValueError: No clip of this layout has that length; names the nearest allowed ones.
        """
        rest = seconds - self.first_seconds
        if rest < 0 or rest % self.step_seconds:
            below = self.first_seconds + int(max(0, rest) // self.step_seconds) * self.step_seconds
            allowed = [below] if rest < 0 else [below, below + self.step_seconds]
            raise ValueError(
                f"seconds={seconds:g}: must be {self.first_seconds} + {self.step_seconds} j; "
                f"the nearest allowed are {' and '.join(map(str, allowed))}"
            )
        return 1 + FRAME_RATE * int(seconds)


def block_of_frames(blocks: tuple[Block, ...]) -> tuple[Int[np.ndarray, " F"], Int[np.ndarray, " A"]]:
    """Block index of every video latent and of every audio latent; `values[index]` spreads per-block values."""
    index = np.arange(len(blocks), dtype=np.int32)
    video = np.repeat(index, [block.video_frames for block in blocks])
    return video, np.repeat(index, [block.audio_frames for block in blocks])


PREFIX = Layout(first_v=1, first_a=1, step_v=3, step_a=25)  # the paper's: 1 + 1, then 3 + 25
PREFIX2 = Layout(first_v=1, first_a=2, step_v=3, step_a=25)  # EchoWM's: the sound covers the picture entirely
FUSED = Layout(first_v=4, first_a=26, step_v=3, step_a=25)  # the release's: blocks 0 and 1 of PREFIX are one
