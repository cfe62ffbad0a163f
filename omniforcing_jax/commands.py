"""The commands `stream` and `sample`: from a request that was understood to a file and a few figures."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from omniforcing_jax import machine
from omniforcing_jax.cli import Sample, Stream
from omniforcing_jax.config import require
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.stream import request
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.clip import plan_clip, sample_planned
from omniforcing_jax.stream.condition import Condition, continue_file
from omniforcing_jax.stream.cues import ChangeWatch, Cue, follow, plan_cues
from omniforcing_jax.stream.mux import Mp4Writer, Overlapped, check_writable, write_mp4
from omniforcing_jax.stream.open import plan_stream, start_stream
from omniforcing_jax.stream.request import load
from omniforcing_jax.stream.sampler import ChunkStream

PLAIN_LINE_EVERY_S = 5.0


@dataclass
class Pace:
    """How fast chunks come: when the first one came, and the speed since the second, when all was compiled."""

    first_chunk_s: float = 0.0  # since the process began
    chunks: int = 0
    frames: int = 0
    since_s: float = 0.0
    since_frames: int = 0
    now_s: float = 0.0

    def count(self, chunk: Chunk) -> None:
        """Take note of a chunk that was just handed out."""
        self.now_s = machine.process_seconds()
        self.chunks, self.frames = self.chunks + 1, self.frames + len(chunk.video)
        if self.chunks == 1:
            self.first_chunk_s = self.now_s
        if self.chunks <= 2:
            self.since_s, self.since_frames = self.now_s, self.frames

    def __str__(self) -> str:
        """Say it in a few words."""
        if self.now_s == self.since_s:
            return "starting"
        speed = (self.frames - self.since_frames) / (self.now_s - self.since_s)
        return f"{speed:.1f} frames/s, {speed / FRAME_RATE:.2f}x real time"


def prepare_stream(command: Stream) -> Callable[[], None]:
    """Check the request, load the weights and read the prompt.

    Raises:
        ValueError: in one line, whatever is wrong with the request.
    """
    check_writable(command.out)
    dtype = jnp.dtype(command.dtype)
    require(command.fade >= 0, "fade", command.fade, "must not be negative")
    require(command.recompute is None or command.recompute >= 0, "recompute", command.recompute, "must not be negative")
    plan = plan_stream(
        command.weights,
        command.prompt,
        command.seconds,
        height=command.height,
        width=command.width,
        window=command.window,
        steps=command.steps,
        dtype=dtype,
        contexts=command.contexts,
        history=None if command.recompute is None else command.recompute - 1,
        start=_start_of(command),
        drive=Condition(picture=command.picture, sound=command.sound),
    )
    cues = plan_cues(plan.setting.sampler, command.prompt_at, command.seconds)
    has_words = command.contexts is None or not cues
    require(has_words, "prompt-at", command.prompt_at[:1], "needs the weights' own text encoder, not --contexts")
    request.check_text(plan.config, [cue.prompt for cue in cues] or [command.prompt], command.contexts)
    pipeline = load(command.weights, plan.config, dtype)
    stream = start_stream(pipeline, plan, command.prompt, command.seed, command.contexts, ChangeWatch())
    return lambda: run_stream(stream, command, cues)


def _start_of(command: Stream) -> Condition:
    """Read what the stream begins from."""
    image, past = command.from_image, command.continue_
    require(image is None or past is None, "from-image", image, "not with --continue, which has a picture already")
    require(past is not None or not command.drop_past, "drop-past", True, "needs --continue, which gives a past")
    if past is None:
        return Condition(picture=image)
    return continue_file(past, keep=not command.drop_past)


def run_stream(stream: ChunkStream, command: Stream, cues: Sequence[Cue]) -> None:
    """Write the stream to its file, and say how fast it was."""
    pace = Pace()
    height, width = stream.picture_size
    with (
        Mp4Writer(
            command.out, height=height, width=width, frame_rate=FRAME_RATE, sample_rate=stream.sample_rate
        ) as out,
        Overlapped(out.write) as write,
    ):
        for chunk in _watched(stream, follow(stream, cues, command.recompute, command.fade), pace):
            write(chunk)
    print(f"{command.out}: {pace.frames} frames; first chunk {pace.first_chunk_s:.2f} s after start, {pace}")


def _watched(stream: ChunkStream, chunks: Iterator[Chunk], pace: Pace) -> Iterator[Chunk]:
    """Pass chunks on, with a live line on a terminal and a plain one every few seconds elsewhere."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total} blocks, {task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task, said = progress.add_task("", total=stream.blocks), time.monotonic()
        for chunk in chunks:
            pace.count(chunk)
            progress.update(task, completed=stream.state.block, description=str(pace))
            if progress.disable and time.monotonic() - said > PLAIN_LINE_EVERY_S:
                said = time.monotonic()
                print(f"block {stream.state.block} of {stream.blocks}: {pace}", file=sys.stderr, flush=True)
            yield chunk


def parse_guidance(items: Sequence[str]) -> GuidanceConfig:
    """Read guidance as the command line has it.

    Items are `name=value` for both streams or `video.name=value`, `audio.name=value` for one, with the names of
    `StreamGuidance`; `layers=3,4` chooses the layers of STG. A bare number is `cfg`; a second one is the audio's.

    Raises:
        ValueError: naming the item that cannot be read.
    """
    strengths: dict[str, dict[str, float]] = {"video": {}, "audio": {}}
    layers: tuple[int, ...] = ()
    bare = [item for item in items if "=" not in item]
    require(len(bare) <= 2, "guidance", bare, "at most two bare numbers: cfg of video and of audio")
    named = [f"{stream}.cfg={value}" for stream, value in zip(("video", "audio"), bare * 2, strict=False)]
    for item in [*named, *(item for item in items if "=" in item)]:
        name, _, value = item.partition("=")
        try:
            if name == "layers":
                layers = tuple(int(layer) for layer in value.split(","))
                continue
            stream, _, field = name.rpartition(".")
            for each in (stream,) if stream else ("video", "audio"):
                strengths[each][field] = float(value)
        except (KeyError, ValueError):
            raise ValueError(f"guidance: cannot read {item!r}; expected for example 3, cfg=3 or audio.stg=1") from None
    try:
        return GuidanceConfig(
            video=StreamGuidance(**strengths["video"]), audio=StreamGuidance(**strengths["audio"]), stg_layers=layers
        )
    except TypeError:
        known = ", ".join(field.name for field in dataclasses.fields(StreamGuidance))
        wrong = sorted({name for stream in strengths.values() for name in stream} - set(known.split(", ")))
        raise ValueError(f"guidance: unknown {', '.join(wrong)}; known are {known} and layers") from None


def prepare_sample(command: Sample) -> Callable[[], None]:
    """Check the request and load the weights.

    Raises:
        ValueError: in one line, whatever is wrong with the request.
    """
    check_writable(command.out)
    dtype = jnp.dtype(command.dtype)
    plan = plan_clip(
        command.weights,
        [command.prompt],
        command.seconds,
        command.steps,
        parse_guidance(command.guidance),
        height=command.height,
        width=command.width,
        dtype=dtype,
        contexts=command.contexts,
        negative_contexts=command.negative_contexts,
    )
    pipeline = load(command.weights, plan.config, dtype)

    def work() -> None:
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("sampling", total=command.steps)
            (clip,) = sample_planned(pipeline, plan, command.seed, lambda step: progress.update(task, completed=step))
        write_mp4(command.out, clip.video, clip.audio, frame_rate=FRAME_RATE, sample_rate=clip.sample_rate)
        print(f"{command.out}: {len(clip.video)} frames, {machine.process_seconds():.2f} s after start")

    return work
