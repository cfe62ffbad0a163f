"""A studio with weights: sources are streams of a causal student, all with the same network in memory.

Programs are compiled before a stream gets its turn: those of the default size when the server starts, others when they
are first asked for. Each compilation runs a short stream that nobody sees, a change of prompt and a first encoding
included.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.chime.prompts import COLOURS
from omniforcing_jax.io import machine
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.parallel.mesh import MeshConfig, use
from omniforcing_jax.pipeline import checks, text_source
from omniforcing_jax.pipeline.loading import load_shown
from omniforcing_jax.pipeline.loras import NO_LORAS, Attached, GivenLoras, read_loras, with_loras
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.serve.fragments import Fragmenter
from omniforcing_jax.serve.messages import StreamRequestBody
from omniforcing_jax.serve.studio import Say, Source, StartMedia
from omniforcing_jax.serve.suggestions import suggest
from omniforcing_jax.stream.ahead import ProgramsAhead, compile_ahead
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.stream.conditioning.condition import Condition, plan_conditioning
from omniforcing_jax.stream.plan import StreamPlan, check_stream_memory, resolve_request
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import save
from omniforcing_jax.stream.start import start_attached
from omniforcing_jax.strict_json import require

MEASURED = 3  # blocks that tell the pace, once all is compiled
FIRST_PROMPT = "a red ball"  # of the stream that nobody sees, where the words are chime's


def on_mesh(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method work on its object's mesh. Which mesh is active belongs to a thread, and several threads call."""

    @functools.wraps(method)
    def work(self: Any, *values: Any) -> Any:
        with use(self.mesh):
            return method(self, *values)

    return work


class NetworkSource:
    """A stream of a student.

    Args:
        stream: The stream; nothing else may use it.
        mesh: How its network lies on the devices.
    """

    def __init__(self, stream: ChunkStream, mesh: MeshConfig) -> None:
        self._stream, self.mesh = stream, mesh
        self._chunks = machine.trimmed(stream)

    @property
    def block(self) -> int:
        """Blocks made so far."""
        return self._stream.state.block

    @property
    def sample_rate(self) -> int:
        """Samples of sound per second."""
        return self._stream.sample_rate

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return self._stream.picture_size

    @on_mesh
    def make(self) -> Chunk | None:
        """Make the next block, or the tail of the sound; None after that."""
        return next(self._chunks, None)

    @on_mesh
    def set_prompt(self, prompt: str, contexts: Any, recompute: int | None, fade: int) -> None:
        """Change the prompt from the next block on."""
        self._stream.set_prompt(prompt, recompute, fade, contexts=contexts)

    def set_camera(self, camera: str | None) -> None:
        """Change the camera's keys from the next block on."""
        self._stream.set_camera(camera)

    @on_mesh
    def fork(self) -> "NetworkSource":
        """Return an independent source that goes on from here."""
        return NetworkSource(self._stream.fork(), self.mesh)

    @on_mesh
    def save(self, folder: Path) -> None:
        """Write the state of the stream."""
        save(self._stream, folder)


class NetworkStudio:
    """Opens streams of one student.

    Args:
        weights: A weights folder, or the name of shipped weights.
        dtype: Type to compute in.
        startup: Shows loading and compiling on the terminal.
        mesh: How the network lies on the devices.
        cache_dtype: As in `StreamRequest`.
        loras: As in `StreamRequest`; all streams have them, and share them in memory.

    Raises:
        ValueError: The weights are no student, a LoRA cannot be used beside them, or the mesh does not fit them or the
            devices.
    """

    def __init__(
        self,
        weights: str,
        dtype: str,
        startup: Startup,
        mesh: MeshConfig,
        cache_dtype: str | None = None,
        loras: GivenLoras = (),
    ) -> None:
        self.mesh, self._weights, self._dtype, self._startup = mesh, weights, jnp.dtype(dtype), startup
        self._cache_dtype = cache_dtype
        self._config = checks.pipeline_config(weights)
        sampler = checks.student_sampler(self._config)
        with use(mesh):
            checks.check_mesh(self._config)
            self._loras = read_loras(self._config.model, loras)
        words = () if self._config.words is None else self._config.words.vocabulary
        self.name, self.is_mock, self.words = self._config.name, False, tuple(sorted(words))
        self.has_camera, self.needs_picture = self._config.model.camera is not None, sampler.needs_picture
        self.size, self.block_s = self._config.resolution, float(sampler.layout.step_seconds)
        self.suggestions = suggest() if set(COLOURS) <= set(words) else ()
        self._pipeline: Pipeline | None = None
        self._attached: Attached | None = None  # the same with the LoRAs
        self._compiled: set[Any] = set()

    @on_mesh
    def warm(self, say: Say) -> float | None:
        """Load the weights, and compile what streams of the default size need."""
        plan = self._plan(StreamRequestBody(prompt=self._first_prompt()), self._first_start())
        contexts = self._read(plan.request.prompts)
        ahead = compile_ahead(plan, contexts)
        say("loading weights")
        self._pipeline = load_shown(self._weights, self._config, self._dtype, self._startup, "serve")
        self._attached = Attached(with_loras(self._pipeline, self._loras, self._dtype), self._loras)
        cost = self._rehearse(plan, contexts, say, ahead)
        self._startup.ready()
        return cost

    def _first_prompt(self) -> str:
        return FIRST_PROMPT if self.suggestions or not self.words else self.words[0]

    def _first_start(self) -> StartMedia | None:
        """Return a black picture, for weights that make none of their own."""
        black = np.zeros((1, *self.size, 3), np.uint8)
        return StartMedia(kind="image", picture=black, sound=None, seconds=0.0) if self.needs_picture else None

    def _rehearse(self, plan: StreamPlan, contexts: Any, say: Say, ahead: ProgramsAhead | None = None) -> float:
        """Run a stream that nobody sees, so that nothing is compiled later; returns its pace as a cost."""
        assert self._attached is not None, "the weights are loaded first"
        counter = machine.CompileCounter.start()
        say("compiling programs")
        stream = start_attached(self._attached.pipeline, plan._replace(blocks=None), contexts, ahead=ahead)
        given = max(plan.conditioning.picture_blocks, plan.conditioning.sound_blocks)
        for _ in range(2 + given):
            next(stream)
        say(f"compiling programs: {counter.ready} so far")
        stream.rehearse_change(None, 1)
        stream.fork()
        height, width = stream.picture_size
        Fragmenter(height=height, width=width, sample_rate=stream.sample_rate).push(next(stream))  # loads the encoders
        began, frames = time.perf_counter(), 0
        for _ in range(MEASURED):
            frames += len(next(stream).video)
        self._compiled.add(_key(plan))
        return (time.perf_counter() - began) * FRAME_RATE / frames

    def _read(self, prompts: tuple[str, ...]) -> Any:
        """Read prompts with the weights' text encoder: a part of the pipeline, or on disk."""
        return text_source.encode_on_disk(self._weights, self._config, prompts, None, self._dtype)

    @on_mesh
    def check(self, body: StreamRequestBody, start: StartMedia | None) -> tuple[int, int]:
        """Refuse a request that cannot be met; returns height and width of the picture.

        Raises:
            ValueError: In one line, whatever is wrong with it.
        """
        plan = self._plan(body, start)
        pixels = self._config.video_vae.spatial_compression
        return plan.static.grid[0] * pixels, plan.static.grid[1] * pixels

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that the text encoder cannot read.

        Raises:
            ValueError: In one line; names unknown words.
        """
        text_source.check_text(self._config, (prompt,), None, self._weights)

    def _plan(self, body: StreamRequestBody, start: StartMedia | None) -> StreamPlan:
        if start is None or start.picture is None:
            rule = "these weights make no first picture: upload an image or a clip, and give its id"
            require(not self.needs_picture, "start", body.start, rule)
            rule = "needs an image to begin with: upload one, and give its id as start"
            require(body.compress is None, "compress", body.compress, rule)
        request = StreamRequest(
            prompt=body.prompt,
            seconds=body.seconds,
            seed=body.seed,
            height=body.height,
            width=body.width,
            window=body.window,
            steps=body.steps,
            dtype=self._dtype,
            cache_dtype=self._cache_dtype,
            loras=self._loras.files,
            start=_condition(start, body.compress),
            camera=body.camera,
        )
        self.check_prompt(body.prompt)
        plan = resolve_request(self._config, request)._replace(loras=self._loras)
        given = plan_conditioning(self._config, plan.static, plan.blocks, request.start, request.drive)
        new = plan if self._attached is None else plan._replace(loras=NO_LORAS)
        check_stream_memory(new, self._dtype, self._pipeline is not None)
        return plan._replace(conditioning=given)

    @on_mesh
    def encode(self, prompt: str) -> Any:
        """Return the text contexts of a prompt."""
        assert self._pipeline is not None, "the weights are loaded first"
        return text_source.encode_text(self._pipeline, (prompt,), self._read((prompt,)))

    @on_mesh
    def open(self, body: StreamRequestBody, start: StartMedia | None, say: Say) -> Source:
        """Open a checked request; programs of a new size are compiled first."""
        assert self._attached is not None, "the weights are loaded first"
        plan = self._plan(body, start)
        if _key(plan) not in self._compiled:
            self._rehearse(plan, self._read(plan.request.prompts), say)
        say("reading the prompt")
        return NetworkSource(start_attached(self._attached.pipeline, plan, self._read(plan.request.prompts)), self.mesh)

    @on_mesh
    def reopen(self, folder: Path) -> Source:
        """Open a saved stream; its next chunks are bit-equal to those without the cut.

        Raises:
            ValueError: The state is damaged, or belongs to other weights.
        """
        stream = resume(folder, self._pipeline, attached=self._attached)
        assert isinstance(stream, ChunkStream), "the server saves no batches"
        return NetworkSource(stream, self.mesh)


def _key(plan: StreamPlan) -> Any:
    """Return what decides which programs a stream needs."""
    given = plan.conditioning
    return plan.static, plan.history, plan.lookahead, given.picture_blocks > 0, given.sound_blocks > 0


def _condition(start: StartMedia | None, compress: int | None) -> Condition:
    if start is None:
        return Condition()
    return Condition(picture=start.picture, sound=start.sound, fit="crop", compress=compress)
