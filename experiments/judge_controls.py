"""Does the judge find what was done to a clip, and only that? Rendered truth is damaged and goes through H.264 and AAC.

A figure counts as moved if it differs from the undamaged clip's by more than its tolerance. A seam counts as found
if its ratio at the borders is 1.5 times the highest ratio of any other phase.

Hardware: two CPU cores, a minute or two.
Expect: a line per damage with the figures it moved, then `each damage found, and only that` (exit code 0).

    python -m experiments.judge_controls --worlds 3 --seconds 13
"""

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.chime import physics, render
from omniforcing_jax.judge import report
from omniforcing_jax.judge.media import read_media
from omniforcing_jax.judge.seams import Blocks
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.stream.mp4 import write_mp4

Video = UInt8[np.ndarray, "F S S 3"]
Audio = Float32[np.ndarray, "samples 2"]
Clip = tuple[Video, Audio]

RATE = render.SAMPLE_RATE
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
TOLERANCE = {
    "lag_ms": 15.0,
    "loudness_db": 1.5,
    "tilt_db_per_octave": 1.0,
    "noise_floor_db": 4.0,
    "brightness": 0.005,
    "saturation": 0.03,
    "sharpness": 0.015,
    "motion": 0.05,
    "lag_width_ms": 60.0,
    "black_share": 0.005,
    "duplicate_share": 0.02,
    "freeze_s": 0.25,
    "flashes": 0.5,
    "level_difference_db": 1.0,
    "level_spread_db": 2.0,
    "place_correlation": 0.3,
}
FAULTLESS = dict.fromkeys(("lag_ms", "lag_width_ms", "black_share", "duplicate_share", "freeze_s", "flashes"), 0.0) | {
    "place_correlation": 1.0
}  # what the truth has, of the figures where that is known
SEAM = 1.5  # times the highest ratio of other phases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """What is done to a clip, what must move and what may move along."""

    do: Callable[[Clip], Clip]
    moves: frozenset[str]
    entails: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Damage rendered clips and judge them."""

    worlds: int = 3
    """Worlds to render."""
    seconds: int = 13
    """Length of each, in seconds."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""


def _borders(frames: int) -> range:
    return range(1, frames, FRAME_RATE)


def _ramp(count: int) -> np.ndarray:
    return np.linspace(0, 1, count, dtype=np.float32)


def shift_sound(clip: Clip, seconds: float) -> Clip:
    """Let the sound come later; what falls off one end comes back at the other."""
    return clip[0], np.roll(clip[1], round(seconds * RATE), axis=0)


def click_at_seams(clip: Clip, height: float = 0.1) -> Clip:
    """Put half a millisecond of a constant at every border."""
    audio = clip[1].copy()
    for frame in _borders(len(clip[0])):
        at = frame * RATE // FRAME_RATE
        audio[at : at + RATE // 2000] += np.float32(height)
    return clip[0], audio


def cut_at_seams(clip: Clip, pixels: int = 3) -> Clip:
    """Move the picture sideways in every second block."""
    video = clip[0].copy()
    for frame in _borders(len(video))[::2]:
        video[frame : frame + FRAME_RATE] = np.roll(video[frame : frame + FRAME_RATE], pixels, axis=2)
    return video, clip[1]


def step_brightness_at_seams(clip: Clip, levels: int = 4) -> Clip:
    """Make every second block brighter."""
    video = clip[0].copy()
    for frame in _borders(len(video))[::2]:
        part = video[frame : frame + FRAME_RATE]
        part[:] = np.minimum(part.astype(np.int16) + levels, 255)
    return video, clip[1]


def fade_colour(clip: Clip, share: float = 0.5) -> Clip:
    """Mix the picture with its own luma, from nothing at first to a share at last."""
    video = clip[0].astype(np.float32)
    grey = (video @ LUMA)[..., None]
    mix = share * _ramp(len(video))[:, None, None, None]
    return np.round(video + mix * (grey - video)).astype(np.uint8), clip[1]


def darken(clip: Clip, share: float = 0.4) -> Clip:
    """Scale the picture down, from not at all at first to a share at last."""
    video = clip[0] * (1 - share * _ramp(len(clip[0])))[:, None, None, None]
    return np.round(video).astype(np.uint8), clip[1]


def blur(clip: Clip, pixels: float = 1.5) -> Clip:
    """Blur the picture, from not at all at first to `pixels` at last."""
    from scipy.ndimage import gaussian_filter

    amounts = pixels * _ramp(len(clip[0]))
    frames = [gaussian_filter(frame, (x, x, 0)) for frame, x in zip(clip[0], amounts, strict=True)]
    return np.stack(frames), clip[1]


def slow_down(clip: Clip, pace: int = 4) -> Clip:
    """Let the picture go at a fraction of its pace in its second half; the sound goes on."""
    frames = np.arange(len(clip[0]))
    half = len(frames) // 2
    return clip[0][np.where(frames < half, frames, half + (frames - half) // pace)], clip[1]


def make_louder(clip: Clip, gain: float = 2.0) -> Clip:
    """Make the second half of the sound louder."""
    audio = clip[1].copy()
    audio[len(audio) // 2 :] *= np.float32(gain)
    return clip[0], audio


def add_noise(clip: Clip, level: float = 0.02) -> Clip:
    """Let white noise rise from nothing."""
    noise = np.random.default_rng(0).normal(size=clip[1].shape).astype(np.float32)
    return clip[0], clip[1] + np.float32(level) * _ramp(len(noise))[:, None] * noise


def move_sound(clip: Clip) -> Clip:
    """Exchange both halves of the sound: it is as loud and as high as before, but belongs to nothing that is seen."""
    return clip[0], np.roll(clip[1], len(clip[1]) // 2, axis=0)


def freeze(clip: Clip) -> Clip:
    """Show one frame for a second."""
    video = clip[0].copy()
    middle = len(video) // 2
    video[middle : middle + FRAME_RATE] = video[middle]
    return video, clip[1]


def repeat_frames(clip: Clip) -> Clip:
    """Show every second frame twice, for two seconds."""
    video = clip[0].copy()
    middle = slice(len(video) // 2 - FRAME_RATE, len(video) // 2 + FRAME_RATE)
    video[middle] = np.repeat(video[middle][::2], 2, axis=0)
    return video, clip[1]


def light(clip: Clip, level: int) -> Clip:
    """Let four frames in the middle, a third of a second apart, have one brightness all over."""
    video = clip[0].copy()
    middle = len(video) // 2
    video[middle - FRAME_RATE // 2 : middle + FRAME_RATE // 2 + 1 : FRAME_RATE // 3] = level
    return video, clip[1]


def swap_sides(clip: Clip) -> Clip:
    """Exchange left and right."""
    return clip[0], np.ascontiguousarray(clip[1][:, ::-1])


def fold_to_mono(clip: Clip) -> Clip:
    """Let both sides have the mean of both."""
    return clip[0], np.repeat(clip[1].mean(axis=1, keepdims=True), 2, axis=1)


def soften_right(clip: Clip, gain: float = 0.6) -> Clip:
    """Make the right side softer."""
    return clip[0], clip[1] * np.array([1, gain], np.float32)


DAMAGES = {
    "sound 120 ms late": Damage(
        do=lambda clip: shift_sound(clip, 0.12), moves=frozenset({"lag_ms"}), entails=frozenset({"place_correlation"})
    ),
    "sound 80 ms early": Damage(
        do=lambda clip: shift_sound(clip, -0.08), moves=frozenset({"lag_ms"}), entails=frozenset({"place_correlation"})
    ),
    "clicks at seams": Damage(
        do=click_at_seams, moves=frozenset({"sound seam click"}), entails=frozenset({"sound seam spectrum"})
    ),
    "cuts at seams": Damage(
        do=cut_at_seams, moves=frozenset({"picture seam change"}), entails=frozenset({"picture seam sharpness"})
    ),
    "brightness steps at seams": Damage(
        do=step_brightness_at_seams,
        moves=frozenset({"picture seam brightness"}),
        entails=frozenset({"picture seam change"}),
    ),
    "fading colour": Damage(do=fade_colour, moves=frozenset({"saturation"})),
    "darkening": Damage(do=darken, moves=frozenset({"brightness"}), entails=frozenset({"motion"})),
    # A blurred edge that moves by less than its width changes less: up to a tenth of the motion goes with it. The fewer
    # events there are, the less sure is the lag.
    "blurring": Damage(do=blur, moves=frozenset({"sharpness"}), entails=frozenset({"motion", "lag_width_ms"})),
    "slowing down": Damage(
        do=slow_down, moves=frozenset({"motion", "duplicate_share"}), entails=frozenset({"lag_width_ms"})
    ),
    "second half louder": Damage(
        do=make_louder, moves=frozenset({"loudness_db"}), entails=frozenset({"noise_floor_db"})
    ),
    "rising noise": Damage(
        do=add_noise,
        moves=frozenset({"noise_floor_db"}),
        entails=frozenset({"tilt_db_per_octave", "loudness_db"}),
    ),
    "sound from elsewhere": Damage(
        do=move_sound,
        moves=frozenset({"lag_width_ms"}),
        entails=frozenset({"lag_ms", "loudness_db", "tilt_db_per_octave", "noise_floor_db", "place_correlation"}),
    ),
    "a frozen second": Damage(
        do=freeze, moves=frozenset({"freeze_s", "duplicate_share"}), entails=frozenset({"lag_width_ms"})
    ),
    "frames shown twice": Damage(do=repeat_frames, moves=frozenset({"duplicate_share"})),
    "black frames": Damage(do=lambda clip: light(clip, 0), moves=frozenset({"black_share"})),
    "white frames": Damage(do=lambda clip: light(clip, 255), moves=frozenset({"flashes"})),
    "swapped sides": Damage(
        do=swap_sides, moves=frozenset({"place_correlation"}), entails=frozenset({"level_difference_db"})
    ),
    "mono": Damage(do=fold_to_mono, moves=frozenset({"level_spread_db", "place_correlation"})),
    "right side softer": Damage(do=soften_right, moves=frozenset({"level_difference_db"})),
}


def render_clip(seed: int, seconds: int) -> Clip:
    """Render a world of one to three balls."""
    truth = physics.sample_world(seed, balls=1 + seed % 3)
    frames = 1 + FRAME_RATE * seconds
    return render.render_video(truth, frames), render.render_audio(truth, frames * RATE // FRAME_RATE)


def judge_clip(clip: Clip, folder: Path) -> dict[str, Any]:
    """Write a clip as MP4, and judge the file."""
    file = folder / "clip.mp4"
    write_mp4(file, *clip, frame_rate=FRAME_RATE, sample_rate=RATE)
    return report.judge_media(read_media(file), Blocks())


def flatten(figures: dict[str, Any]) -> dict[str, float]:
    """Return the figures that may move: drifts, the lag, faults, sides, and seams over chance; NaN for None."""
    sync = figures["synchrony"]
    flat = {"lag_ms": sync["lag_ms"], "lag_width_ms": sync["lag_high_ms"] - sync["lag_low_ms"]}
    flat |= {name: np.nan if value is None else value for name, value in figures["stereo"].items()}
    flat |= figures["faults"]
    for stream in ("picture", "sound"):
        flat |= {name: entry["change"] for name, entry in figures["drift"][stream].items()}
        for name, figure in figures["seams"][stream].items():
            flat[f"{stream} seam {name}"] = figure["ratio"] / figure["highest_elsewhere"]
    return flat


def find(damaged: dict[str, float], truth: dict[str, float]) -> frozenset[str]:
    """Return the names of the figures that moved."""
    moved = {name for name, tolerance in TOLERANCE.items() if not abs(damaged[name] - truth[name]) <= tolerance}
    return frozenset(moved | {name for name, ratio in damaged.items() if "seam" in name and ratio > SEAM})


def main(arguments: Arguments) -> int:
    """Print what moved; returns the exit code, which is 2 for bad input."""
    table: list[dict[str, Any]] = []
    with refusing(arguments.json), tempfile.TemporaryDirectory() as name:
        for seed in range(arguments.worlds):
            clip = render_clip(seed, arguments.seconds)
            truth = flatten(judge_clip(clip, Path(name)))
            # Truth against no lag and no fault at all, and all sound where it is seen; of seams it has none either.
            still = {**truth, **FAULTLESS}
            for what, damage in {"nothing": None, **DAMAGES}.items():
                figures = truth if damage is None else flatten(judge_clip(damage.do(clip), Path(name)))
                found = find(figures, still if damage is None else truth)
                must = frozenset() if damage is None else damage.moves
                may = must if damage is None else must | damage.entails
                right = must <= found <= may
                before = "" if damage is None else "was "
                said = ", ".join(f"{each} {figures[each]:.3g} ({before}{truth[each]:.3g})" for each in sorted(found))
                print(f"world {seed}, {what}: {said or 'nothing moved'}{'' if right else '   <- WRONG'}", flush=True)
                known = {each: None if np.isnan(figure) else figure for each, figure in figures.items()}
                table.append({"world": seed, "damage": what, "right": right, "found": sorted(found), **known})
        keep_figures(arguments.json, table)
        wrong = sum(not row["right"] for row in table)
        print("each damage found, and only that" if not wrong else f"{wrong} of {len(table)} judged wrongly")
        return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(read_flags(Arguments, __doc__)))
