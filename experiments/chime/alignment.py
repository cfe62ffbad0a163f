"""Study, part b: how far sound runs ahead of picture where audio latents that do not fit a block are cut off.

A video latent is a third of a second, which is eight and a third audio latents. An alignment may give a block of n
video latents the whole number floor(25 n / 3) of audio latents. It then cuts off the rest, block after block, unless
blocks are whole seconds. The prefix layout cuts off nothing: block 0 is one latent of each stream, and every later
block is 3 beside 25. Without the prefix such blocks lose nothing either. But block 0 (3 latents, 17 frames) then ends
in the middle of an audio latent, and so does every later one: each block's sound ends 27 ms before its picture.

The table has the exact offset (how much later a thing is seen than heard) and the same measured on chime. Worlds are
rendered, their sound is encoded, cut as the alignment cuts it, and decoded. Impacts seen are matched with onsets
heard. No student is trained on a truncating alignment: this is what its training data would be.

Hardware: two CPU cores, two minutes.

    python -m experiments.chime.alignment --json out/alignment.json --plot docs/alignment.png
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.judge.sources import load, render_for_codecs, scenes
from experiments.chime.world import encoders
from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.detect import Event
from omniforcing_jax.chime.prompts import sample_prompts
from omniforcing_jax.io import machine
from omniforcing_jax.layout import AUDIO_RATE, FRAME_RATE, VIDEO_RATE, pixel_frames
from omniforcing_jax.pipeline.pipeline import Codecs
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.stream.decode import decode_audio, flush_audio

SPAN = 2  # seconds of picture over which an offset is measured
STEP, REACH = 0.01, (-0.3, 2.0)  # seconds: offsets that are tried
COLOURS = ("#2e86ab", "#66a182", "#edae49", "#9b5de5", "#d1495b")
LEAST = 8  # pairs that an offset needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """Blocks of `first_v` and then `step_v` video latents, each with as many whole audio latents as fit into it."""

    name: str
    first_v: int
    step_v: int

    @property
    def first_a(self) -> int:
        """Audio latents of block 0."""
        return math.floor(audio_end(self.first_v))

    @property
    def step_a(self) -> int:
        """Audio latents of every later block."""
        return AUDIO_RATE * self.step_v // VIDEO_RATE

    def kept(self, seconds: int) -> np.ndarray:
        """List which of the true audio latents of a clip are kept, in their order."""
        pieces = [np.arange(self.first_a)]
        start = self.first_v
        while start + self.step_v <= 1 + VIDEO_RATE * seconds:
            pieces.append(math.floor(audio_end(start)) + np.arange(self.step_a))
            start += self.step_v
        return np.concatenate(pieces)

    def offset(self, start: float, stop: float) -> float:
        """Return by how many seconds what belongs to this part of the picture is heard too early, on average, exactly.

        A latent that is kept is early by all that were cut off before it, 40 ms each.
        """
        kept = self.kept(math.ceil(stop) + self.step_v)
        ahead = (kept - np.arange(len(kept))) / AUDIO_RATE
        return float(ahead[(kept >= start * AUDIO_RATE) & (kept < stop * AUDIO_RATE)].mean())


def audio_end(latent_frames: int) -> Fraction:
    """Return the audio latents, in parts, that pass while so many video latents are shown."""
    return Fraction(pixel_frames(latent_frames) * AUDIO_RATE, FRAME_RATE)


ALIGNMENTS = (
    Alignment(name="prefix, 3 + 25", first_v=1, step_v=3),
    Alignment(name="no prefix, 3 + 25", first_v=3, step_v=3),
    Alignment(name="prefix, 4 + 33", first_v=1, step_v=4),
    Alignment(name="prefix, 2 + 16", first_v=1, step_v=2),
    Alignment(name="prefix, 1 + 8", first_v=1, step_v=1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure how far sound runs ahead."""

    prompts: int = 8
    """Worlds to render."""
    seconds: int = 20
    """Length of each, in seconds."""
    seed: int = 0
    """Random seed of prompts and worlds."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""
    plot: Path | None = None
    """File for the plot: PNG, PDF or SVG (default: none)."""


def offset_between(seen: Sequence[Sequence[Event]], heard: Sequence[Sequence[Event]]) -> float | None:
    """Find by how many seconds onsets come before impacts of their colour, over clips that share one offset.

    The offset with most pairs within half the metrics' tolerance wins, then the median of its pairs is taken; None if
    there are fewer than `LEAST`.
    """
    best: list[float] = []
    for ahead in np.arange(*REACH, STEP):
        gaps = []
        for impacts, onsets in zip(seen, heard, strict=True):
            moved = [dataclasses.replace(onset, time=onset.time + ahead) for onset in onsets]
            pairs = metrics.match(impacts, moved)
            gaps += [impacts[i].time - onsets[j].time for i, j in pairs]
        near = [gap for gap in gaps if abs(gap - ahead) <= metrics.TOLERANCE / 2]
        if len(near) > len(best):
            best = near
    return float(np.median(best)) if len(best) >= LEAST else None


def between(events: Sequence[Event], start: float, stop: float) -> list[Event]:
    """Return the events of a part of a clip."""
    return [event for event in events if start <= event.time < stop]


def sound_out(decoder: Codecs, latents: jax.Array) -> np.ndarray:
    """Decode audio latents [1, A, C] to samples [samples, 2]."""
    samples, carry = decode_audio(decoder, latents, None)
    whole = jnp.concatenate([samples, flush_audio(decoder, carry)], axis=1)
    return np.asarray(whole)[0, decoder.vocoder_config.delay :]


def measure(arguments: Arguments) -> dict[str, dict[str, Any]]:
    """Cut the sound of rendered worlds as each alignment does, and find the offset of every span of picture."""
    decoder, encode = load(CHIME_WEIGHTS / "teacher").codecs, encoders.load_encoders().encode_sound
    rate = decoder.vocoder_config.sample_rate
    pictures: list[metrics.Seen] = []
    sounds: list[jax.Array] = []
    for scene in scenes(sample_prompts(arguments.prompts, arguments.seed), arguments.seed):
        film = render_for_codecs(scene, arguments.seconds)
        pictures.append(metrics.see(film.video))
        sounds.append(encode(jnp.asarray(film.audio)[None]))
    found = {}
    for alignment in ALIGNMENTS:
        kept = alignment.kept(arguments.seconds)
        heard = [metrics.hear(sound_out(decoder, latents[:, kept]), rate) for latents in sounds]
        clips = [metrics.Perceived(picture=p, sound=s, request=None) for p, s in zip(pictures, heard, strict=True)]
        rows = []
        for start in range(0, arguments.seconds - SPAN + 1, SPAN):
            seen = [between(picture.impacts, start, start + SPAN) for picture in pictures]
            offset = offset_between(seen, [list(sound.onsets) for sound in heard])
            sync = metrics.synchrony(clips, [(start, start + SPAN)] * len(clips))
            exact = alignment.offset(start, start + SPAN)
            rows.append({"at_s": start + SPAN / 2, "exact_s": exact, "measured_s": offset, **sync})
        found[alignment.name] = {"exact_at_60_s": alignment.offset(60, 60 + SPAN), "spans": rows}
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Write the first, the middle and the last span of every alignment as Markdown, in milliseconds."""
    lines = [
        "| alignment | exact, measured: first span | middle | last | recall first, last | exact at 60 s |",
        "|---" * 6 + "|",
    ]
    for name, row in found.items():
        spans = row["spans"]
        chosen = [spans[0], spans[len(spans) // 2], spans[-1]]
        cells = [f"{1e3 * s['exact_s']:.0f}, {_milliseconds(s['measured_s'])}" for s in chosen]
        recall = f"{spans[0]['sync_recall']:.2f}, {spans[-1]['sync_recall']:.2f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {recall} | {1e3 * row['exact_at_60_s']:.0f} |")
    return "\n".join(lines)


def _milliseconds(seconds: float | None) -> str:
    return "none" if seconds is None else f"{1e3 * seconds:.0f}"


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Draw the exact offset over time as lines and the measured one as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    for alignment, colour in zip(ALIGNMENTS, COLOURS, strict=False):
        spans = found[alignment.name]["spans"]
        seconds = np.arange(0, spans[-1]["at_s"] + SPAN / 2, 0.2)
        exact = [1e3 * alignment.offset(t, t + 0.2) for t in seconds]
        ax.plot(seconds, exact, color=colour, label=alignment.name, linewidth=1.2)
        dots = [(s["at_s"], 1e3 * s["measured_s"]) for s in spans if s["measured_s"] is not None]
        ax.plot(*zip(*dots, strict=True), "o", color=colour, markersize=4)
    ax.set_xlabel("seconds of picture")
    ax.set_ylabel("sound ahead of picture, ms (dots: measured)")
    ax.grid(alpha=0.2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=85)


def main(arguments: Arguments) -> None:
    """Measure, print a table, draw; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    with refusing(arguments.json, arguments.plot):
        if arguments.prompts < 1 or arguments.seconds < 2 * SPAN:
            raise ValueError(f"--prompts must be at least 1 and --seconds at least {2 * SPAN}")
        found = measure(arguments)
        print(table(found))
        keep_figures(arguments.json, found)
        if arguments.plot is not None:
            draw(arguments.plot, found)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
