"""The demo: stream prompts of chime, look at what came out and listen to it, and say how good it is.

It needs a stream's packages only. The contact sheet wants matplotlib and is left out where that is missing. JAX is
imported only when work begins, so that `--help` is quick.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from omniforcing_jax.io.extras import is_installed
from omniforcing_jax.io.progress import Bar, say
from omniforcing_jax.strict_json import require

if TYPE_CHECKING:
    from omniforcing_jax.chime.film import Film
    from omniforcing_jax.chime.metrics import Perceived
    from omniforcing_jax.chime.prompts import Request
    from omniforcing_jax.io.startup import Startup
    from omniforcing_jax.stream.chunk import Chunk

SHOWN_S = 6  # seconds of the animation
EVERY, SCALE = 2, 3  # it shows every second frame, three times as wide and high
PROMPTS = ("a red ball and a blue ball", "a green ball and a yellow ball")
GOOD = 0.7  # share of the impacts that ring, and of the tones that are seen, from which a clip counts as in sync


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Stream the shipped small world, draw what came out, and say how good it is.

    Examples:
      omniforcing demo
      omniforcing demo --prompt "three balls: red, green and purple" --seconds 20 --out out
    """

    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT")] = ()
    """What to show: one to three balls of distinct colours. Several prompts follow one another, each for as long. By
    default a red ball and a blue one, then a green one and a yellow one."""
    seconds: Annotated[int, tyro.conf.arg(metavar="SECONDS")] = 13
    """Length in whole seconds; the clip has one frame more."""
    seed: int = 13
    """Random seed; the default is one of the better ones."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("out")
    """Folder for demo.mp4, demo.webp and demo.png; made if it is missing."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts in their order; of the default ones as many as there are seconds for."""
        return self.prompt or PROMPTS[: max(1, self.seconds)]


class Part(NamedTuple):
    """A part of the clip, from one prompt to the next: what was asked for, from one whole second to another."""

    request: "Request"
    start: int
    stop: int

    @property
    def window(self) -> tuple[float, float]:
        """When it begins and ends in seconds; the clip's first frame comes before the first whole second."""
        from omniforcing_jax.layout import FRAME_RATE

        return self.start + 1 / FRAME_RATE if self.start else 0.0, self.stop + 1 / FRAME_RATE


def plan_parts(demo: Demo) -> list[Part]:
    """Plan from which second on each prompt is shown.

    Raises:
        ValueError: In one line, if a prompt cannot be read, or if there are more prompts than seconds.
    """
    from omniforcing_jax.chime import prompts

    count = len(demo.prompts)
    require(demo.seconds >= 1, "seconds", demo.seconds, "must be at least 1")
    require(count <= demo.seconds, "prompt", list(demo.prompts), f"must be at most {demo.seconds}, one a second")
    borders = [demo.seconds * i // count for i in range(count + 1)]
    requests = map(prompts.parse, demo.prompts)
    return [Part(*part) for part in zip(requests, borders[:-1], borders[1:], strict=True)]


def main(demo: Demo) -> int:
    """Stream, draw and judge; returns the exit code, 0.

    Raises:
        ValueError: In one line, if the request cannot be met.
    """
    from omniforcing_jax.io import machine

    machine.use_compilation_cache()
    machine.use_one_heap()
    machine.check_backend()
    parts = plan_parts(demo)
    demo.out.mkdir(parents=True, exist_ok=True)
    lines = [*make_clip(demo, parts), *judge(demo, parts)]
    margin = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{margin}}  {text}" for name, text in lines))
    return 0


def make_clip(demo: Demo, parts: list[Part]) -> list[tuple[str, str]]:
    """Stream into out/demo.mp4; returns what to say of it and of the pace.

    Raises:
        ValueError: In one line, if the request cannot be met.
    """
    from omniforcing_jax.io.atomic_write import check_writable
    from omniforcing_jax.io.startup import Startup
    from omniforcing_jax.layout import FRAME_RATE
    from omniforcing_jax.pipeline.checks import student_sampler
    from omniforcing_jax.pipeline.loading import load_shown
    from omniforcing_jax.pipeline.shipped import STUDENT
    from omniforcing_jax.stream.ahead import compile_ahead
    from omniforcing_jax.stream.mp4 import Mp4Writer, Overlapped
    from omniforcing_jax.stream.plan import plan_stream
    from omniforcing_jax.stream.prompt_schedule import follow_schedule, plan_prompt_schedule
    from omniforcing_jax.stream.request import StreamRequest
    from omniforcing_jax.stream.start import start_stream

    path = demo.out / "demo.mp4"
    check_writable(path)
    say("The first start compiles for about half a minute; later ones take seconds.")
    begun, times, frames = time.monotonic(), [], []
    with Startup("demo") as startup:
        plan = plan_stream(STUDENT, StreamRequest(prompt=demo.prompts[0], seconds=demo.seconds, seed=demo.seed))
        changes = [(part.start, prompt) for part, prompt in zip(parts[1:], demo.prompts[1:], strict=True)]
        schedule = plan_prompt_schedule(student_sampler(plan.config), changes, demo.seconds)
        ahead = compile_ahead(plan)
        stream = start_stream(load_shown(STUDENT, plan.config, "float32", startup), plan, ahead=ahead)
        height, width = stream.picture_size
        writer = Mp4Writer(path, height=height, width=width, frame_rate=FRAME_RATE, sample_rate=stream.sample_rate)
        with writer, Overlapped(writer.write) as write:
            shown = follow_schedule(stream, schedule, recompute=0)
            for chunk in _watched(shown, demo.seconds + 1, startup):
                write(chunk)
                times.append(time.monotonic())
                frames.append(len(chunk.video))
    lines = [
        (str(path), f"{sum(frames) / FRAME_RATE:.1f} s, {width}x{height} pixels, {stream.sample_rate / 1000:.0f} kHz")
    ]
    if len(times) > 2:
        pace = sum(frames[2:]) / (times[-1] - times[1])  # from the second block on nothing is compiled
        lines.append(("speed", f"{_two(pace)} frames/s, {_two(pace / FRAME_RATE)} times real time"))
        lines.append(("first picture", f"{_two(times[0] - begun)} s after the start, weights and compilation included"))
    return lines


def judge(demo: Demo, parts: list[Part]) -> list[tuple[str, str]]:
    """Judge the file that was written, and draw it; returns what to say of it."""
    from omniforcing_jax.chime import metrics
    from omniforcing_jax.chime.film import read_film

    film = read_film(demo.out / "demo.mp4")
    clip = metrics.perceive(film)
    first = max(0, parts[min(1, len(parts) - 1)].start - SHOWN_S // 2)  # the first change in the middle, if any
    return [*draw(demo, film, clip, first), *describe(clip, parts)]


def draw(demo: Demo, film: "Film", clip: "Perceived", first: int) -> list[tuple[str, str]]:
    """Draw the animation and, where matplotlib is installed, the contact sheet; returns what to say of both.

    Args:
        demo: The command.
        film: The clip.
        clip: What was seen and heard in it.
        first: Second at which the animation begins.
    """
    from omniforcing_jax.chime import contact_sheet
    from omniforcing_jax.chime.animation import write_webp
    from omniforcing_jax.layout import FRAME_RATE

    animation, sheet = demo.out / "demo.webp", demo.out / "demo.png"
    lines = []
    try:
        last = min(first + SHOWN_S, demo.seconds)
        shown = film.video[first * FRAME_RATE : last * FRAME_RATE]
        write_webp(animation, shown, frame_rate=FRAME_RATE, every=EVERY, scale=SCALE)
        lines.append(
            (
                str(animation),
                f"seconds {first} to {last} of it, {_two(animation.stat().st_size / 1000)} kB, without sound",
            )
        )
    except ValueError as error:
        print(error, file=sys.stderr)
    if is_installed("matplotlib"):
        contact_sheet.write_contact_sheet(sheet, film, clip, ", then ".join(demo.prompts))
        lines.append((str(sheet), "contact sheet; triangles are impacts seen, lines are onsets heard"))
    else:
        lines.append((str(sheet), "not drawn: pip install 'omniforcing_jax[judge]' brings matplotlib, which draws it"))
    return lines


def describe(clip: "Perceived", parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Say what was seen and heard, in figures with units, and a verdict in words."""
    from omniforcing_jax.chime import metrics
    from omniforcing_jax.chime.prompts import COLOURS

    def name(colours: Iterable[int]) -> str:
        return ", ".join(COLOURS[colour] for colour in colours) or "none"

    seen, heard, windows = clip.picture, clip.sound, [part.window for part in parts]
    figures: dict[str, Any] = metrics.judge_clips([clip]) | metrics.adherence(
        [dataclasses.replace(clip, request=part.request) for part in parts], windows
    )
    pictures = [seen.tracks.between(*window) for window in windows]
    sounds = [[tone for tone in heard.onsets if start <= tone.time < stop] for start, stop in windows]
    lines = [
        ("seen", ", then ".join(f"{_balls(tracks.count())}: {name(tracks.colours())}" for tracks in pictures)),
        ("heard", ", then ".join(f"tones of {name(metrics.pitches_heard(tones))}" for tones in sounds)),
        ("impacts", f"{len(seen.impacts)} seen, {_two(100 * figures['sync_recall'])} % of them ring"),
        ("tones", f"{len(heard.onsets)} heard, {_two(100 * figures['sync_precision'])} % of them with an impact"),
    ]
    if figures["sync_ms_p50"] is not None:
        gaps = [_two(figures[f"sync_ms_p{q}"]) for q in (50, 95)]
        lines.append(("synchrony", f"half of the pairs within {gaps[0]} ms, 95 % within {gaps[1]} ms"))
    return [*lines, ("verdict", verdict(figures))]


def _balls(count: int) -> str:
    return f"{count} ball" if count == 1 else f"{count} balls"


def verdict(figures: dict[str, Any]) -> str:
    """Say in words whether a clip is what its prompt asked for, and whether it is in sync."""
    right = {"number of balls": "count_accuracy", "colours": "colour_accuracy", "tones": "pitch_accuracy"}
    wrong = [name for name, figure in right.items() if figures[figure] != 1]
    asked = f"wrong {' and '.join(wrong)}" if wrong else "number, colours and tones as asked"
    least = min(figures["sync_recall"], figures["sync_precision"])
    sync = "in sync" if least >= GOOD else "partly in sync" if least >= GOOD / 2 else "out of sync"
    return f"{'good' if not wrong and least >= GOOD else 'fair' if least >= GOOD / 2 else 'poor'}: {asked}; {sync}"


def _watched(chunks: "Iterable[Chunk]", blocks: int, startup: "Startup") -> "Iterator[Chunk]":
    """Pass chunks on and show how far the stream is, from the second block on, when all programs are compiled."""
    with contextlib.ExitStack() as stack:
        show = None
        for done, chunk in enumerate(chunks, 1):
            if done == 2:
                startup.ready()
                show = stack.enter_context(Bar("streaming", blocks, "blocks"))
            if show is not None:
                show(min(done, blocks))
            yield chunk


def _two(value: float) -> str:
    """Write a number with two significant digits, without an exponent."""
    digits = f"{value:.2g}"
    return digits if "e" not in digits else f"{float(digits):.0f}"
