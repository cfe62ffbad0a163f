"""The command `stream`: from a request that was understood to a file and a few figures."""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from omniforcing_jax.cli.options import StreamOptions
from omniforcing_jax.io import machine
from omniforcing_jax.io.answers import stop, stop_noted
from omniforcing_jax.io.atomic_write import check_writable, make_parents
from omniforcing_jax.io.inputs import refuse_inputs
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.parallel.mesh import MeshConfig, use
from omniforcing_jax.pipeline import checks, text_source
from omniforcing_jax.pipeline.loading import announce, announce_text, load_shown
from omniforcing_jax.pipeline.shipped import find_weights
from omniforcing_jax.stream.ahead import compile_ahead
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.stream.conditioning.condition import Condition, continue_file
from omniforcing_jax.stream.lora_schedule import (
    ScheduledLora,
    changes_by_block,
    plan_lora_schedule,
    with_later_files,
)
from omniforcing_jax.stream.mp4 import Mp4Writer, Overlapped, check_kind
from omniforcing_jax.stream.plan import StreamPlan, plan_stream, resolve_request
from omniforcing_jax.stream.prompt_change.history import check_recompute
from omniforcing_jax.stream.prompt_change.transition import LONGEST_FADE
from omniforcing_jax.stream.prompt_schedule import (
    ChangeWatch,
    ScheduledPrompt,
    follow_schedule,
    plan_prompt_schedule,
)
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import check_state_folder, read_saved, save
from omniforcing_jax.stream.soundtrack import Soundtrack
from omniforcing_jax.stream.start import start_stream
from omniforcing_jax.strict_json import require

COMPILING_CHUNKS = 2  # nothing is compiled after the second block
SAVED_WITH_THE_STATE = (
    *("prompt", "seed", "height", "width", "window", "steps", "dtype", "weights_dtype", "cache_dtype", "contexts"),
    *("sound", "picture", "from_image", "continue_", "drop_past", "lookahead", "fit", "compress"),
    "upscale",
)


class Opened(NamedTuple):
    """A stream, and what changes while it runs."""

    stream: ChunkStream
    prompts: Sequence[ScheduledPrompt]
    loras: Sequence[ScheduledLora]


@dataclass
class Pace:
    """How fast chunks come: the time of the first one, and the speed since the second, when all is compiled."""

    first_chunk_s: float = 0.0  # since the start of the process
    chunks: int = 0
    frames: int = 0
    since_s: float = 0.0
    since_frames: int = 0
    now_s: float = 0.0

    def count(self, chunk: Chunk) -> None:
        """Count a chunk that was just handed out."""
        self.now_s = machine.process_seconds()
        self.chunks, self.frames = self.chunks + 1, self.frames + len(chunk.video)
        if self.chunks == 1:
            self.first_chunk_s = self.now_s
        if self.chunks <= 2:
            self.since_s, self.since_frames = self.now_s, self.frames

    def __str__(self) -> str:
        """Return the speed in a few words."""
        if self.now_s == self.since_s:
            return "starting"
        speed = (self.frames - self.since_frames) / (self.now_s - self.since_s)
        return f"{speed:.1f} frames/s, {speed / FRAME_RATE:.2f}x real time"


def prepare_stream(command: StreamOptions, startup: Startup) -> Callable[[], None]:
    """Check the request, load the weights and read the prompt.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    refuse_inputs("out", command.out, _inputs_of(command))
    check_kind(command.out)
    check_writable(command.out)
    require(command.sound is not None or not command.resynthesise, "resynthesise", True, "needs --sound")
    pictures = (command.picture, command.from_image, command.continue_)
    rule = "needs a picture: --picture, --from-image or --continue"
    require(command.fit is None or any(pictures), "fit", command.fit, rule)
    require(0 <= command.fade <= LONGEST_FADE, "fade", command.fade, f"must be between 0 and {LONGEST_FADE}")
    if command.save_state is not None:
        driven = [name for name in ("sound", "picture") if getattr(command, name) is not None]
        require(not driven, "save-state", command.save_state, "a stream that is made to a file cannot be saved")
        refuse_inputs("save-state", command.save_state, {"weights": find_weights(command.weights)})
        check_state_folder(command.save_state)
    mesh = MeshConfig.parse(command.mesh)
    with use(mesh):
        opened = _open(command, startup) if command.resume is None else _resume(command, command.resume, startup)

    def work() -> None:
        with use(mesh):
            run_stream(opened, command, startup)

    return work


def _inputs_of(command: StreamOptions) -> dict[str, Path | None]:
    """List what the command reads, by flag."""
    loras = [file for file, _ in command.lora] + [file for _, file, _ in command.lora_at]
    return {
        **{f"lora {file}": file for file in loras},
        "sound": command.sound,
        "picture": command.picture,
        "from-image": command.from_image,
        "continue": command.continue_,
        "contexts": command.contexts,
        "resume": command.resume,
        "weights": find_weights(command.weights),
    }


def build_request(command: StreamOptions) -> StreamRequest:
    """Build the request that the flags ask for.

    Raises:
        ValueError: In one line that names the flag, if one is missing or does not fit another.
    """
    require(command.prompt is not None, "prompt", None, "give --prompt, or --resume with a saved state")
    return StreamRequest(
        prompt=str(command.prompt),
        seconds=command.seconds,
        seed=command.seed,
        height=command.height,
        width=command.width,
        window=command.window,
        steps=command.steps,
        dtype=command.dtype,
        weights_dtype=command.weights_dtype,
        cache_dtype=command.cache_dtype,
        contexts=text_source.open_source(command.contexts),
        history=None if command.recompute is None else max(0, command.recompute - 1),
        start=_start_of(command),
        drive=Condition(picture=command.picture, sound=command.sound, fit=command.fit),
        lookahead=command.lookahead,
        camera=command.camera,
        loras=tuple((str(file), strength) for file, strength in command.lora),
        upscale=command.upscale,
    )


def _open(command: StreamOptions, startup: Startup) -> Opened:
    request = build_request(command)
    request = dataclasses.replace(request, loras=with_later_files(request.loras, _later_files(command)))
    plan = plan_stream(command.weights, request)
    loras = _plan_loras(command, plan, command.seconds)
    check_recompute(plan.static.sampler, plan.history, command.recompute)
    schedule = plan_prompt_schedule(plan.static.sampler, command.prompt_at, command.seconds)
    if schedule:
        rule = "needs the weights' own text encoder, or --contexts by prompt as the command `contexts` writes them"
        require(not isinstance(request.contexts, Path), "prompt-at", command.prompt_at[:1], rule)
        later = [change.prompt for change in schedule]
        text_source.check_text(plan.config, later, request.contexts, command.weights)
    texts = [*request.prompts, *(change.prompt for change in schedule)]
    announce_text(startup, command.weights, request.contexts, request.dtype)
    source = text_source.encode_on_disk(command.weights, plan.config, texts, request.contexts, request.dtype)
    shapes = plan.static.grid, plan.static.sampler.window, plan.static.sampler.steps, plan.lookahead
    ahead = compile_ahead(plan, source)
    pipeline = load_shown(command.weights, plan.config, request.dtype, startup, *shapes)
    stream = start_stream(pipeline, plan, source, ChangeWatch(), ahead)
    return Opened(stream, [change._replace(contexts=source) for change in schedule], loras)


def _later_files(command: StreamOptions) -> list[Path]:
    return [file for _, file, _ in command.lora_at]


def _plan_loras(command: StreamOptions, plan: StreamPlan, seconds: float | None) -> tuple[ScheduledLora, ...]:
    changes = [(second, str(file), strength) for second, file, strength in command.lora_at]
    return plan_lora_schedule(plan.static.sampler, changes, seconds)


def _start_of(command: StreamOptions) -> Condition:
    """Read what the stream begins from."""
    image, past = command.from_image, command.continue_
    require(image is None or past is None, "from-image", image, "not with --continue, which has a picture already")
    require(past is not None or not command.drop_past, "drop-past", True, "needs --continue, which gives a past")
    require(image is not None or command.compress is None, "compress", command.compress, "needs --from-image")
    if past is None:
        return Condition(picture=image, fit=command.fit, compress=command.compress)
    return continue_file(past, fit=command.fit, drop_past=command.drop_past)


def _resume(command: StreamOptions, folder: Path, startup: Startup) -> Opened:
    """Go on with a saved stream; what was saved with it cannot be asked for anew, except for the same prompt."""
    defaults = {field.name: field.default for field in dataclasses.fields(StreamOptions)}
    given = [name for name in SAVED_WITH_THE_STATE if getattr(command, name) != defaults[name]]
    saved, request = read_saved(folder)[:2]
    if request.is_batch:
        raise ValueError(f"{folder}: holds a batch of {len(request.prompts)} streams, one file takes one stream")
    if command.prompt is not None and request.prompts == (command.prompt,):
        given.remove("prompt")
    for name in given:
        flag = name.strip("_").replace("_", "-")
        require(False, flag, getattr(command, name), f"the state in {folder} has its own, leave --{flag} out")
    request = dataclasses.replace(request, camera=command.camera or request.camera)
    plan = resolve_request(checks.pipeline_config(command.weights, upsampler=request.upscale), request)
    layout = plan.static.sampler.layout
    schedule = plan_prompt_schedule(plan.static.sampler, command.prompt_at, None)
    rule = f"the state in {folder} is at {layout.start_seconds(saved.block)} s already"
    for change in schedule:
        require(change.block >= saved.block, "prompt-at", change.prompt, rule)
    loras = _plan_loras(command, plan, None)
    for later in loras:
        require(later.block >= saved.block, "lora-at", later.file, rule)
    check_recompute(plan.static.sampler, plan.history, command.recompute)
    source = None
    if schedule:
        texts = [change.prompt for change in schedule]
        text_source.check_text(plan.config, texts, None, command.weights)
        announce_text(startup, command.weights, None, saved.weights_dtype)
        source = text_source.encode_on_disk(command.weights, plan.config, texts, None, jnp.dtype(saved.weights_dtype))
    announce(startup, plan.config, saved.weights_dtype, "resumed", plan.static.grid)
    given = [(str(file), strength) for file, strength in command.lora] or None
    stream = resume(folder, command.weights, command.seconds, loras=given, trace=ChangeWatch())
    assert isinstance(stream, ChunkStream)
    files = with_later_files(stream.plan.loras.files, _later_files(command))
    if files != stream.plan.loras.files:
        stream.set_loras(files, recompute=0)
    if command.camera is not None:
        stream.set_camera(command.camera)
    startup.compiling()
    return Opened(stream, [change._replace(contexts=source) for change in schedule], loras)


def run_stream(opened: Opened, command: StreamOptions, startup: Startup) -> None:
    """Write the stream to its file, save it if that was asked for, and print how fast it was."""
    make_parents(command.out)
    stream = opened.stream
    pace, end = Pace(), stream.blocks
    others = changes_by_block(stream, opened.loras, command.recompute)
    chunks = follow_schedule(stream, opened.prompts, command.recompute, command.fade, others)
    chunks = _until_stopped(chunks) if command.save_state is None else _saving(stream, chunks, command.save_state)
    height, width = stream.picture_size
    track = None if command.sound is None or command.resynthesise else Soundtrack(command.sound)
    rate = stream.sample_rate if track is None else track.rate
    with (
        contextlib.closing(chunks),  # after an error too: it puts signals back as they were
        Mp4Writer(command.out, height=height, width=width, frame_rate=FRAME_RATE, sample_rate=rate) as out,
        Overlapped(out.write) as write,
        contextlib.closing(_watched(machine.trimmed(chunks), stream, end, pace, startup)) as watched,
    ):
        for chunk in watched:
            write(chunk if track is None else track.replace(chunk))
    made = f"{pace.frames} frames in {pace.now_s:.2f} s"
    print(f"{command.out}: {made}; first chunk {pace.first_chunk_s:.2f} s after start, {pace}")


def _until_stopped(chunks: Iterator[Chunk]) -> Generator[Chunk, None, None]:
    """Pass chunks on until Ctrl-C, SIGTERM or SIGHUP. The block that is being made then is the last one.

    The first block is made, and compiled for, before that: a signal then ends the program at once.
    """
    yield from itertools.islice(chunks, 1)
    with stop_noted() as noted:
        for chunk in chunks:
            yield chunk
            stop(noted)


def _saving(stream: ChunkStream, chunks: Iterator[Chunk], folder: Path) -> Generator[Chunk, None, None]:
    """Pass chunks on and save the stream: at its end, or after the block that a signal interrupted.

    The stream is made endless and cut here, so that its last block is committed like all others.
    """
    end, stream.blocks = stream.blocks, None
    if stream.state.block != end:
        yield next(chunks)  # nothing is there to be saved: a signal ends the program at once
    with stop_noted() as noted:
        while stream.state.block != end and not noted:
            yield next(chunks)
        save(stream, folder)
    print(f"{folder}: saved after block {stream.state.block - 1}; go on with --resume {folder}", file=sys.stderr)
    if (tail := stream.close()) is not None:
        yield tail
    stop(noted)


def _watched(
    chunks: Iterable[Chunk], stream: ChunkStream, end: int | None, pace: Pace, startup: Startup
) -> Generator[Chunk, None, None]:
    """Pass chunks on and show how far the stream is, once all its programs are compiled."""
    with contextlib.ExitStack() as stack:
        show = None
        for chunk in chunks:
            pace.count(chunk)
            if show is None and pace.chunks >= COMPILING_CHUNKS:
                startup.ready()
                show = stack.enter_context(Bar("streaming", end, "blocks"))
            if show is not None:
                show(stream.state.block, str(pace))
            yield chunk
        startup.ready()
