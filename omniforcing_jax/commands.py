"""The commands `stream`, `sample` and `judge`: from a request that was understood to a file and a few figures."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from omniforcing_jax import machine
from omniforcing_jax.cli import Judge, Sample, Stream
from omniforcing_jax.config import require
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.judge import plot, report
from omniforcing_jax.judge.agree import measure_agreement
from omniforcing_jax.judge.read import Media, check_readable, read_media
from omniforcing_jax.judge.seams import Blocks
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.mesh import MeshConfig, use
from omniforcing_jax.schedule import DISTILLED
from omniforcing_jax.stream import request
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.clip import plan_clip, read_prompts, sample_planned
from omniforcing_jax.stream.condition import Condition, continue_file
from omniforcing_jax.stream.cues import ChangeWatch, Cue, follow, plan_cues
from omniforcing_jax.stream.mux import Mp4Writer, Overlapped, check_writable, write_mp4
from omniforcing_jax.stream.open import plan_stream, start_stream
from omniforcing_jax.stream.replay import check_recompute
from omniforcing_jax.stream.request import load
from omniforcing_jax.stream.sampler import ChunkStream
from omniforcing_jax.stream.saved import check_folder, read_saved, resume, save
from omniforcing_jax.weights import write_json

PLAIN_LINE_EVERY_S = 5.0
SAVED_WITH_THE_STATE = (
    *("prompt", "seed", "height", "width", "window", "steps", "dtype", "contexts"),
    *("sound", "picture", "from_image", "continue_", "drop_past", "lookahead"),
)


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
    require(command.fade >= 0, "fade", command.fade, "must not be negative")
    if command.save_state is not None:
        driven = [name for name in ("sound", "picture") if getattr(command, name) is not None]
        require(not driven, "save-state", command.save_state, "a stream that is made to a file cannot be saved")
        check_folder(command.save_state)
    mesh = MeshConfig.parse(command.mesh)
    with use(mesh):
        stream, cues = _open(command) if command.resume is None else _resume(command, command.resume)

    def work() -> None:
        with use(mesh):
            run_stream(stream, command, cues)

    return work


def _open(command: Stream) -> tuple[ChunkStream, Sequence[Cue]]:
    require(command.prompt is not None, "prompt", None, "give --prompt, or --resume with a saved state")
    prompt, dtype, source = str(command.prompt), jnp.dtype(command.dtype), request.open_source(command.contexts)
    plan = plan_stream(
        command.weights,
        prompt,
        command.seconds,
        height=command.height,
        width=command.width,
        window=command.window,
        steps=command.steps,
        dtype=dtype,
        contexts=source,
        history=None if command.recompute is None else command.recompute - 1,
        start=_start_of(command),
        drive=Condition(picture=command.picture, sound=command.sound),
        lookahead=command.lookahead,
    )
    check_recompute(plan.setting.sampler, plan.history, command.recompute)
    cues = plan_cues(plan.setting.sampler, command.prompt_at, command.seconds)
    if cues:
        rule = "needs the weights' own text encoder, or --contexts by prompt as the command `contexts` writes them"
        require(not isinstance(source, Path), "prompt-at", command.prompt_at[:1], rule)
        request.check_text(plan.config, [cue.prompt for cue in cues], source, command.weights)
    texts = [prompt, *(cue.prompt for cue in cues)]
    source = request.read_prompts(command.weights, plan.config, texts, source, dtype)
    pipeline = load(command.weights, plan.config, dtype)
    stream = start_stream(pipeline, plan, prompt, command.seed, source, ChangeWatch())
    return stream, [cue._replace(contexts=source) for cue in cues]


def _start_of(command: Stream) -> Condition:
    """Read what the stream begins from."""
    image, past = command.from_image, command.continue_
    require(image is None or past is None, "from-image", image, "not with --continue, which has a picture already")
    require(past is not None or not command.drop_past, "drop-past", True, "needs --continue, which gives a past")
    if past is None:
        return Condition(picture=image)
    return continue_file(past, keep=not command.drop_past)


def _resume(command: Stream, folder: Path) -> tuple[ChunkStream, Sequence[Cue]]:
    """Go on with a saved stream; what was saved with it cannot be asked for anew, except for the same prompt."""
    defaults = {field.name: field.default for field in dataclasses.fields(Stream)}
    given = [name for name in SAVED_WITH_THE_STATE if getattr(command, name) != defaults[name]]
    saved, _ = read_saved(folder)
    if command.prompt is not None and saved.prompts == (command.prompt,):
        given.remove("prompt")
    for name in given:
        flag = name.strip("_").replace("_", "-")
        require(False, flag, getattr(command, name), f"the state in {folder} has its own, leave --{flag} out")
    cues = plan_cues(saved.sampler, command.prompt_at, None)
    for cue in cues:
        passed = saved.sampler.layout.start_seconds(saved.block)
        require(cue.block >= saved.block, "prompt-at", cue.prompt, f"the state in {folder} is at {passed} s already")
    check_recompute(saved.sampler, saved.history, command.recompute)
    source = None
    if cues:
        config, texts = request.config_of(command.weights), [cue.prompt for cue in cues]
        request.check_text(config, texts, None, command.weights)
        source = request.read_prompts(command.weights, config, texts, None, jnp.dtype(saved.weights_dtype))
    stream = resume(folder, command.weights, command.seconds, trace=ChangeWatch())
    if not isinstance(stream, ChunkStream):
        raise ValueError(f"{folder}: holds a batch of {stream.rows} streams, one file takes one stream")
    return stream, [cue._replace(contexts=source) for cue in cues]


def run_stream(stream: ChunkStream, command: Stream, cues: Sequence[Cue]) -> None:
    """Write the stream to its file, save it where that was asked for, and say how fast it was."""
    pace, end = Pace(), stream.blocks
    chunks = follow(stream, cues, command.recompute, command.fade)
    chunks = _until_ctrl_c(chunks) if command.save_state is None else _saving(stream, chunks, command.save_state)
    height, width = stream.picture_size
    with (
        Mp4Writer(
            command.out, height=height, width=width, frame_rate=FRAME_RATE, sample_rate=stream.sample_rate
        ) as out,
        Overlapped(out.write) as write,
    ):
        for chunk in _watched(machine.trimmed(chunks), stream, end, pace):
            write(chunk)
    print(f"{command.out}: {pace.frames} frames; first chunk {pace.first_chunk_s:.2f} s after start, {pace}")


def _until_ctrl_c(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Pass chunks on until Ctrl-C; the block under way is the last one.

    Python's own interrupt is raised wherever the program is, and lost where that is a destructor or a callback.
    """
    with _ctrl_c_noted() as noted:
        for chunk in chunks:
            yield chunk
            if noted.is_set():
                raise KeyboardInterrupt


def _saving(stream: ChunkStream, chunks: Iterator[Chunk], folder: Path) -> Iterator[Chunk]:
    """Pass chunks on and save the stream at its end, or after the block at which Ctrl-C asked to end.

    The stream is made endless and cut here, so that its last block is committed like the others.
    """
    end, stream.blocks = stream.blocks, None
    with _ctrl_c_noted() as noted:
        while stream.state.block != end and not noted.is_set():
            yield next(chunks)
        save(stream, folder)
    print(f"{folder}: saved after block {stream.state.block - 1}; go on with --resume {folder}", file=sys.stderr)
    if (tail := stream.close()) is not None:
        yield tail
    if noted.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _ctrl_c_noted() -> Iterator[threading.Event]:
    """Note the first Ctrl-C instead of interrupting in the middle of a block, whose buffers would be half used."""
    noted = threading.Event()

    def note(number: int, frame: object) -> None:
        noted.set()
        signal.signal(signal.SIGINT, before)  # a second one interrupts

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _watched(chunks: Iterable[Chunk], stream: ChunkStream, end: int | None, pace: Pace) -> Iterator[Chunk]:
    """Pass chunks on, with a live line on a terminal and a plain one every few seconds elsewhere."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total} blocks, {task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task, said = progress.add_task("", total=end), time.monotonic()
        for chunk in chunks:
            pace.count(chunk)
            progress.update(task, completed=stream.state.block, description=str(pace))
            if progress.disable and time.monotonic() - said > PLAIN_LINE_EVERY_S:
                said = time.monotonic()
                print(f"block {stream.state.block} of {end}: {pace}", file=sys.stderr, flush=True)
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
        renewal=command.renewal,
        sigmas=DISTILLED if command.sigmas == "distilled" else None,
    )
    plan = read_prompts(command.weights, plan)
    pipeline = load(command.weights, plan.config, dtype)

    def work() -> None:
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("sampling", total=len(plan.sigmas) - 1)
            (clip,) = sample_planned(pipeline, plan, command.seed, lambda step: progress.update(task, completed=step))
        write_mp4(command.out, clip.video, clip.audio, frame_rate=FRAME_RATE, sample_rate=clip.sample_rate)
        print(f"{command.out}: {len(clip.video)} frames, {machine.process_seconds():.2f} s after start")

    return work


def prepare_judge(command: Judge) -> Callable[[], None]:
    """Check that the files can be read and the outputs written.

    Raises:
        ValueError: in one line, whatever is wrong with the request.
    """
    files = [command.file] if command.reference is None else [command.file, command.reference]
    lengths = [check_readable(file) for file in files]
    blocks = Blocks(seconds=command.block_seconds, first_frames=command.first_block_frames)
    outputs = [command.json] if command.plot is None else [command.json, command.plot]
    if command.plot is not None:
        kinds = (".png", ".pdf", ".svg")
        require(command.plot.suffix.lower() in kinds, "plot", str(command.plot), f"must end in {' or '.join(kinds)}")
    taken = [path.resolve() for path in files]
    for output in outputs:
        require(output.resolve() not in taken, "output", str(output), "is an input or another output")
        taken.append(output.resolve())
        check_writable(output)

    def work() -> None:
        media = [_read(file, length) for file, length in zip(files, lengths, strict=True)]
        figures = [report.judge(each, blocks) for each in media]
        answer = figures[0]
        if command.reference is not None:
            answer = {
                "file": figures[0],
                "reference": figures[1],
                "difference": report.subtract(*figures),
                "agreement": measure_agreement(media[0], media[1], command.file, command.reference),
            }
        write_json(command.json, answer)
        if (page := command.plot) is not None:
            reference, partial = (
                media[1] if command.reference is not None else None,
                page.with_name(f".{page.name}.partial"),
            )
            plot.draw(partial, page.suffix[1:].lower(), media[0], reference, blocks)
            os.replace(partial, page)
        for each in figures:
            print(report.summarise(each))

    return work


def _read(file: Path, seconds: float | None) -> Media:
    """Read a media file, with a bar on a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"reading {file.name}", total=seconds)
        return read_media(file, lambda now_s: progress.update(task, completed=now_s))
