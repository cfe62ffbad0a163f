"""The stream: a lazy iterator of chunks over one tree of state.

    denoise block k -> dispatch its decoding -> dispatch clean pass and commit -> return the chunk

A stream makes a block only when a chunk is taken: two chunks taken are two blocks made. Work overlaps because JAX
dispatches without waiting. The commit of block k still runs while the consumer has chunk k, and a consumer in its own
thread (`mp4.Overlapped`) lets the next block begin at once. The only waits are for the picture and sound of a chunk.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from omniforcing_jax.layout import FRAME_RATE, pixel_frames
from omniforcing_jax.model.cache import Cache, put_cache
from omniforcing_jax.model.layer_list import is_list
from omniforcing_jax.pipeline import text_source
from omniforcing_jax.pipeline.loras import GivenLoras, change_loras, read_loras
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.rollout import (
    BlockPositions,
    StaticConfig,
    StreamNetwork,
    commit_block,
    denoise_block,
    make_cache,
    stream_network,
)
from omniforcing_jax.stream.ahead import ProgramsAhead
from omniforcing_jax.stream.camera.path import CameraReceipt, change_path, next_positions, receipt_of
from omniforcing_jax.stream.chunk import Chunk, cut_before, make_chunks
from omniforcing_jax.stream.conditioning.tracks import NO_TRACKS, ConditioningTracks
from omniforcing_jax.stream.decode import (
    PictureCarry,
    SoundCarry,
    decode_audio,
    decode_video,
    flush_audio,
    flush_video,
    rehearse_video,
)
from omniforcing_jax.stream.plan import StreamPlan
from omniforcing_jax.stream.prompt_change.history import History, check_recompute, record_block
from omniforcing_jax.stream.prompt_change.recache import CommitInputs
from omniforcing_jax.stream.prompt_change.transition import (
    Advanced,
    PromptTransition,
    advance_transition,
    begin_transition,
    no_transition,
)
from omniforcing_jax.stream.request import EXACT
from omniforcing_jax.stream.state import StreamState, check_block_count
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require

Trace = Callable[[str, int, PyTree], None]
"""Called right after a step was dispatched: with its name, the block, and its outputs, which are not ready yet."""


def no_trace(step: str, block: int, outputs: PyTree) -> None:
    """Trace nothing."""


class ChunkStream(Iterator[Chunk]):
    """Blocks made on demand.

    All chunks of a stream, with the tail of its sound, add up to the decoded clip. The same methods make several rows
    on one clock (`next_rows`, `close_rows`); `batch.BatchStream` returns them.

    Args:
        pipeline: Weights and codecs, with the LoRAs of the plan.
        plan: The plan of the stream. A stream that continues from a `state` needs the plan that it had.
        state: Where to begin: `start_state`, or the `state` of another stream. Its buffers are donated to the next
            block (`fork` copies them).
        trace: See `Trace`. The steps of a block are "denoise" ("conditioning" if both streams are given), "decode
            video", "decode audio", "commit" and "copy".
        tracks: Conditioning latents. A stream that continues from a `state` needs the tracks that it had.
        ahead: Its programs, which are being compiled already; None compiles each when it is met.

    Attributes:
        blocks: Blocks after which the stream ends; None never ends.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        plan: StreamPlan,
        state: StreamState,
        trace: Trace = no_trace,
        tracks: ConditioningTracks = NO_TRACKS,
        ahead: ProgramsAhead | None = None,
    ) -> None:
        self.pipeline, self.plan, self.state, self.trace, self.tracks = pipeline, plan, state, trace, tracks
        self.blocks = plan.blocks
        self._is_closed, self._made, self._ahead = False, 0, ahead

    def __repr__(self) -> str:
        return f"ChunkStream({self.describe()})"

    def describe(self) -> str:
        """Return weights, prompt, size, progress and type in a few words."""
        (height, width), length = self.picture_size, "no end" if self.blocks is None else f"{self.blocks}"
        of = f"{self.pipeline.config.name!r}, {', '.join(map(repr, self.state.prompt_words))}"
        return f"{of}, {height}x{width}, block {self.state.block} of {length}, {jnp.dtype(self.static.dtype).name}"

    @property
    def static(self) -> StaticConfig:
        """Static config of the stream's programs."""
        return self.plan.static

    @functools.cached_property
    def network(self) -> StreamNetwork:
        """The network with what its passes have in common."""
        return stream_network(self.pipeline.transformer, self.static)

    @property
    def lookahead(self) -> int:
        """Latent frames by which the picture is delayed."""
        return self.plan.lookahead

    @property
    def sample_rate(self) -> int:
        """Samples of sound per second."""
        return self.pipeline.codecs.vocoder_config.sample_rate

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return self.pipeline.codecs.picture_size(self.static.grid)

    def __next__(self) -> Chunk:
        """Make one block, or after the last one the tail of the sound."""
        (chunk,) = self.next_rows()
        return chunk

    def next_rows(self) -> tuple[Chunk, ...]:
        """Make one block of every row, or after the last one the tails.

        Raises:
            StopIteration: After the tails.
        """
        if self._is_closed or self.state.block == self.blocks:
            tails = self.close_rows()
            if tails is None:
                raise StopIteration
            return tails
        while self.state.block < self.tracks.dropped:
            self._advance()
        return self._advance()

    def close(self) -> Chunk | None:
        """End the stream and return what the decoders still hold: a little sound, and frames after a look-ahead.

        None if the stream has ended already, or never began.
        """
        tails = self.close_rows()
        return None if tails is None else tails[0]

    def close_rows(self) -> tuple[Chunk, ...] | None:
        """End the stream and return the tail of every row, as `close` does."""
        if self._is_closed or self.state.sound is None:
            self._is_closed = True
            return None
        self._is_closed = True
        codecs, picture = self.pipeline.codecs, self.state.picture
        audio = np.asarray(flush_audio(codecs, self.state.sound))
        block = self.static.sampler.layout.block(self.state.block - 1)
        if picture is None or picture.held is None:
            video = np.zeros((len(audio), 0, *self.picture_size, 3), np.uint8)
        else:
            video = np.asarray(flush_video(codecs, picture))
        return self._chunks(
            self.state.block, video, self._frames(block.video_end), audio, self._samples(block.audio_end)
        )

    def fork(self) -> "ChunkStream":
        """Return an independent stream that continues from here.

        Raises:
            ValueError: As `check_block_count`.
        """
        if self.state.block != self.blocks:  # the last block of a stream with an end is not committed
            check_block_count(self.state)
        state = jax.tree.map(lambda x: x if isinstance(x, int) else x.copy(), self.state)
        plan = self.plan._replace(blocks=self.blocks)
        return ChunkStream(self.pipeline, plan, state, self.trace, self.tracks)

    def set_prompt(
        self,
        prompt: str | Sequence[str],
        recompute: int | None = None,
        fade: int = 0,
        *,
        contexts: text_source.TextSource = None,
    ) -> None:
        """Change the prompt of the stream, for picture and sound, from the next block on.

        The first change compiles its programs, unless it was rehearsed (`rehearse_change`). Later changes compile
        nothing.

        Args:
            prompt: The new prompt. In a batch, one for all rows or one for each.
            recompute: Number of past blocks whose keys and values are recomputed under the new prompt, the newest
                first. None is the whole window, block 0 included, or nothing where several blocks are pinned or the
                past was seen through cameras. A larger number also replays blocks that have left
                the window, if the stream keeps their latents (`history` of `open_stream`). With `history="exact"`, None
                replays all of them. Each block costs a clean pass, which the trace shows as "recompute".
            fade: Blocks under mixed contexts before the new prompt is reached. The past is recomputed at each of these
                borders.
            contexts: Text contexts, or a file of them, instead of the weights' own text encoder.

        Raises:
            ValueError: In one line, if the prompt cannot be read, if its contexts have another shape than those of the
                first one, or if a number is out of range.
        """
        words = (prompt,) * len(self.state.keys) if isinstance(prompt, str) else tuple(prompt)
        require(len(words) == len(self.state.keys), "prompt", prompt, f"must be one for each of {len(self.state.keys)}")
        text_source.check_text(self.pipeline.config, words, contexts)
        goal = text_source.encode_text(self.pipeline, words, contexts)
        count = self._count_passes(recompute)
        transition = begin_transition(self.state.transition, goal, recompute=count, fade=fade)
        self.state = dataclasses.replace(self.state, transition=transition, prompt_words=words)

    def set_camera(self, camera: str | None) -> CameraReceipt:
        """Change the camera's keys from the next block on. The camera goes on from where it is, at its speed.

        Args:
            camera: Keys, as `StreamRequest.camera`; they replace those that are left. None lets the camera stand.

        Returns:
            The block at which they begin, and how long they last.

        Raises:
            ValueError: In one line, if they cannot be read, or if the weights have no camera attention.
        """
        path = self.state.camera
        if path is None:
            raise ValueError(f"camera={camera!r}: {self.pipeline.config.name!r} has no camera attention")
        changed = change_path(path, camera)
        self.state = dataclasses.replace(self.state, camera=changed)
        return receipt_of(changed, self.static.sampler, self.state.block)

    def set_loras(self, loras: GivenLoras, recompute: int | None = None) -> None:
        """Change the LoRAs of the stream from the next block on.

        New strengths of the same files compile nothing. Nor do other files that change the same matrices at the same
        ranks. Text keys and values are made again with the changed network.

        Args:
            loras: Files and their strengths; those that are left out are taken away.
            recompute: Number of past blocks that are recomputed with the changed network, as in `set_prompt`.

        Raises:
            ValueError: In one line, if a file cannot be used beside these weights, or a number is out of range.
        """
        plan, count, transition = self.plan, self._count_passes(recompute), self.state.transition
        changed = read_loras(self.static.model, loras, plan.loras)
        self.pipeline = change_loras(self.pipeline, plan.loras, changed, self.static.dtype)
        self.plan = plan._replace(loras=changed, request=dataclasses.replace(plan.request, loras=changed.files))
        self.__dict__.pop("network", None)
        if transition.left:  # a change of prompt that is under way goes on
            count = max(count, transition.recompute)
        fade = max(0, transition.left - 1)
        transition = begin_transition(transition, transition.goal, recompute=count, fade=fade)
        self.state = dataclasses.replace(self.state, transition=transition)

    def rehearse_change(self, recompute: int | None = None, fade: int = 0) -> None:
        """Compile the programs of a change of prompt.

        Call this before the first chunk if a change is known beforehand; then no later chunk waits for the compiler.
        The programs run once on the stream's own cache, because memory may not hold a second one. Then the content of
        the cache is restored: an empty cache is made anew, and that of a stream under way is kept on the host
        meanwhile. Arguments as for `set_prompt`.
        """
        state = self.state
        contexts, count = state.transition.now, self._count_passes(recompute)
        transition = begin_transition(no_transition(contexts), contexts, recompute=count, fade=fade)
        held, has_list = jax.tree.map(np.array, state.cache) if state.block else None, is_list(state.cache.past)
        try:
            # Two blocks done: block 0 and one later block, which have one program each.
            changed = self._take_step(transition, done=2, trace=no_trace)
            jax.block_until_ready(changed.cache)
            del changed
        finally:
            cache = make_cache(self.static, len(state.keys), has_list) if held is None else put_cache(held)
            self.state = dataclasses.replace(state, cache=cache)

    def _count_passes(self, recompute: int | None) -> int:
        depth = self.state.history.depth
        if self.state.camera is not None:
            rule = "must be 0: the past was seen through cameras, and their poses are not kept"
            require(not recompute, "recompute", recompute, rule)
            return 0
        if recompute is None and self.plan.request.history == EXACT:
            recompute = 1 + depth
        return check_recompute(self.static.sampler, depth, recompute)

    def _take_step(self, transition: PromptTransition, *, done: int, trace: Trace) -> Advanced:
        state = self.state
        inputs = CommitInputs(prompt=state.prompt, keys=state.keys, history=state.history)
        return advance_transition(
            self.network, transition, state.cache, inputs, done=done, static=self.static, trace=trace
        )

    def _change_text(self) -> None:
        """Take the next step of a change of prompt, if there is one."""
        state = self.state
        if state.transition.left:
            changed = self._take_step(state.transition, done=state.block, trace=self.trace)
            self.state = dataclasses.replace(state, **changed._asdict())

    def _advance(self) -> tuple[Chunk, ...]:
        """Make the next block: nothing waits for the device until its chunks are copied."""
        self._change_text()
        k = self.state.block
        if self._ahead is not None:
            self._ahead.wait_for_block(k)
        block = self.static.sampler.layout.block(k)
        positions, camera = next_positions(self.static, self.state.camera, self.state.cache.video, k)
        latents = self._make_block(positions, k)
        pixels, picture, samples, sound = self._decode(latents, k)
        cache, history = self._commit(latents, positions, k)
        self.state = dataclasses.replace(
            self.state, cache=cache, picture=picture, sound=sound, block=k + 1, history=history, camera=camera
        )
        self._made += 1
        if self._made == 2:
            self._compile_end(latents, picture, sound)
        chunks = self._chunks(
            k,
            np.asarray(pixels),
            self._frames(block.video_start),
            np.asarray(samples),
            self._samples(block.audio_start) if k else 0,
        )
        self.trace("copy", k, chunks)
        return chunks

    def _make_block(self, positions: BlockPositions, k: int) -> Streams:
        """Denoise the streams of block k that are not given."""
        conditioning, state = self.tracks.at(k), self.state
        if conditioning.video is not None and conditioning.audio is not None:
            self.trace("conditioning", k, conditioning)
            return conditioning
        latents, cache = denoise_block(
            self.network, state.cache, state.prompt, state.keys, positions, conditioning, static=self.static
        )
        self.state = dataclasses.replace(state, cache=cache)
        self.trace("denoise", k, latents)
        return latents

    def _decode(self, latents: Streams, k: int) -> tuple[Any, PictureCarry, Any, SoundCarry]:
        """Dispatch both decoders and the copies of their outputs to the host."""
        codecs = self.pipeline.codecs
        pixels, picture = decode_video(codecs, latents.video, self.state.picture, **self._rendering)
        self.trace("decode video", k, pixels)
        samples, sound = decode_audio(codecs, latents.audio, self.state.sound)
        self.trace("decode audio", k, samples)
        pixels.copy_to_host_async()
        samples.copy_to_host_async()
        return pixels, picture, samples, sound

    def _commit(self, latents: Streams, positions: BlockPositions, k: int) -> tuple[Cache, History]:
        """Dispatch the commit of block k, except for the last block, which no other one attends to."""
        state = self.state
        if k + 1 == self.blocks:
            return state.cache, state.history
        cache = commit_block(
            self.network, state.cache, state.prompt, state.keys, latents, positions, static=self.static
        )
        self.trace("commit", k, cache)
        return cache, record_block(state.history, latents, k)

    def _compile_end(self, latents: Streams, picture: PictureCarry, sound: SoundCarry) -> None:
        """Compile the end of the stream with its second block: later blocks compile nothing."""
        flush_audio(self.pipeline.codecs, sound)
        if self.state.block != self.blocks:
            rehearse_video(self.pipeline.codecs, latents.video, picture, **self._rendering)

    def _chunks(self, index: int, video: np.ndarray, frames: int, audio: np.ndarray, samples: int) -> tuple[Chunk, ...]:
        """Make the chunks of all rows, and cut off what is before the first new block if the past is dropped."""
        start = samples - self.pipeline.codecs.vocoder_config.delay
        chunks, dropped = make_chunks(index, video, frames, audio, start, self.sample_rate), self.tracks.dropped
        if not dropped:
            return chunks
        start_s = pixel_frames(self.static.sampler.layout.block(dropped).video_start) / FRAME_RATE
        return tuple(cut_before(chunk, start_s) for chunk in chunks)

    @property
    def _rendering(self) -> dict[str, Any]:
        return {"grid": self.static.grid, "dtype": self.static.dtype, "lookahead": self.lookahead}

    def _frames(self, video_latents: int) -> int:
        """Count the frames that are out once so many video latents are known."""
        rendered = video_latents - self.lookahead
        return pixel_frames(rendered) if rendered > 0 else 0

    def _samples(self, audio_latents: int) -> int:
        """Count the samples of so many audio latents."""
        codecs = self.pipeline.codecs
        return codecs.audio_config.mel_rows(audio_latents) * codecs.vocoder_config.samples_per_row
