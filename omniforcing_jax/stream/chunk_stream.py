"""The stream: a lazy iterator of chunks over one tree of state.

    denoise block k -> dispatch its decoding -> dispatch clean pass and commit -> hand the chunk out

It works exactly as fast as it is asked: two chunks taken are two blocks made. Overlap comes from dispatch: while the
consumer has chunk k, the commit of block k is still running, and a consumer in its own thread (`mux.Overlapped`) lets
the next block begin at once. Nothing here waits for the device except for the picture and sound that are handed out.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import PyTree

from omniforcing_jax.layout import FRAME_RATE, pixel_frames
from omniforcing_jax.model.cache import Cache, put_cache
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.pipeline import text_source
from omniforcing_jax.pipeline.pipeline import Codecs, Pipeline
from omniforcing_jax.rollout import (
    PromptKV,
    StaticConfig,
    block_positions,
    commit_block,
    denoise_block,
    make_cache,
)
from omniforcing_jax.stream.chunk import Chunk, cut_before
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
from omniforcing_jax.stream.prompt_change.history import History, check_recompute, make_history, record_block
from omniforcing_jax.stream.prompt_change.transition import (
    PromptTransition,
    advance_transition,
    begin_transition,
    no_transition,
)
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require

Trace = Callable[[str, int, PyTree], None]
"""Called with the name of a step, the block and its outputs (not ready yet) right after the step was dispatched."""


def no_trace(step: str, block: int, outputs: PyTree) -> None:
    """Trace nothing."""


@struct.dataclass
class StreamState:
    """Everything a stream is, besides its weights: what is saved, resumed or forked.

    Attributes:
        cache: What the network remembers.
        prompt: Text keys and values.
        keys: PRNG key of each row's request, [B].
        picture: Carry of the video decoder; None before block 0.
        sound: Carry of audio decoder and vocoder; None before block 0.
        block: Blocks made so far, an int on the host.
        transition: Text contexts, and what they change to.
        history: Latents of past blocks, for the day their prompt changes.
        prompt_words: What each row's text was made from; for messages and for what is saved, nothing reads it.
    """

    cache: Cache
    prompt: PromptKV
    keys: ArrayLeaf
    picture: PictureCarry | None
    sound: SoundCarry | None
    block: int
    transition: PromptTransition
    history: History
    prompt_words: tuple[str, ...] = struct.field(pytree_node=False, default=())


def start_state(
    static: StaticConfig,
    prompt: PromptKV,
    seed: int | Sequence[int],
    contexts: text_source.TextContexts,
    history: int | None = None,
    prompt_words: tuple[str, ...] = (),
) -> StreamState:
    """Make the state of a stream that has no block yet.

    Args:
        static: What is static.
        prompt: What `make_prompt_kv` made of the contexts.
        seed: Of all noise; a sequence of seeds makes as many rows.
        contexts: Text contexts.
        history: Later blocks whose latents are kept; by default, and at least, the ring's.
        prompt_words: What the contexts were made from.
    """
    keys = [jax.random.split(jax.random.key(each), 1) for each in ([seed] if isinstance(seed, int) else seed)]
    ring = static.sampler.past_blocks
    return StreamState(
        transition=no_transition(contexts),
        history=make_history(static, len(keys), max(ring, history or 0)),
        cache=make_cache(static, len(keys)),
        prompt=prompt,
        keys=jnp.concatenate(keys) if len(keys) > 1 else keys[0],
        picture=None,
        sound=None,
        block=0,
        prompt_words=prompt_words,
    )


class ChunkStream(Iterator[Chunk]):
    """Blocks made on demand.

    The chunks of an exhausted stream, the tail of its sound included, add up to the decoded clip. Several rows on one
    clock are made by the same methods (`next_rows`, `close_rows`); `batch.BatchStream` hands them out.

    Args:
        pipeline: Weights and codecs.
        plan: What to stream; a stream that goes on from a `state` needs the plan that it had.
        state: Where to begin: `start_state`, or the `state` of another stream. It is used up: its buffers are
            donated to the next block (`fork` copies).
        trace: See `Trace`; steps are "denoise" ("given" where nothing is left to make), "decode video", "decode
            audio", "commit" and "copy".
        tracks: Latents that are given, not made; a stream that goes on from a `state` needs the tracks that it had.

    Attributes:
        blocks: Blocks after which the stream ends by itself; None never ends.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        plan: StreamPlan,
        state: StreamState,
        trace: Trace = no_trace,
        tracks: ConditioningTracks = NO_TRACKS,
    ) -> None:
        self.pipeline, self.plan, self.state, self.trace, self.tracks = pipeline, plan, state, trace, tracks
        self.blocks = plan.blocks
        self._is_closed, self._made = False, 0

    def __repr__(self) -> str:
        return f"ChunkStream({self.describe()})"

    def describe(self) -> str:
        """Return weights, prompt, size, progress and type in a few words."""
        (height, width), length = self.picture_size, "no end" if self.blocks is None else f"{self.blocks}"
        of = f"{self.pipeline.config.name!r}, {', '.join(map(repr, self.state.prompt_words))}"
        return f"{of}, {height}x{width}, block {self.state.block} of {length}, {jnp.dtype(self.static.dtype).name}"

    @property
    def static(self) -> StaticConfig:
        """What is static in the stream's programs."""
        return self.plan.static

    @property
    def lookahead(self) -> int:
        """Latent frames by which the picture is delayed."""
        return self.plan.lookahead

    @property
    def sample_rate(self) -> int:
        """Samples per second of the sound."""
        return self.pipeline.codecs.vocoder_config.sample_rate

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        pixels = self.pipeline.config.video_vae.spatial_compression
        return self.static.grid[0] * pixels, self.static.grid[1] * pixels

    def __next__(self) -> Chunk:
        """Make one block, or after the last one its tail of sound."""
        (chunk,) = self.next_rows()
        return chunk

    def next_rows(self) -> tuple[Chunk, ...]:
        """Make one block of every row, or after the last one the tails.

        Raises:
            StopIteration: after the tails.
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
        """End the stream and return what the decoders still held back: a little sound, and frames after a look-ahead.

        None if the stream had ended before, or never began.
        """
        tails = self.close_rows()
        return None if tails is None else tails[0]

    def close_rows(self) -> tuple[Chunk, ...] | None:
        """End the stream and return the tail of every row, as `close`."""
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
        """Return an independent stream that goes on from here."""
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
        """Change what the stream shows, in picture and sound, from the next block on.

        The first change compiles the programs that it needs, unless it was rehearsed (`rehearse_change`); later ones
        none.

        Args:
            prompt: What to show; in a batch, one for all rows or one for each.
            recompute: Past blocks whose keys and values are made again under the new prompt, the newest first; 0 none,
                None all that a block sees, block 0 included. More than these are replayed on the way, if the stream
                keeps their latents (`history` of `open_stream`). A clean pass each; the trace shows them as
                "recompute".
            fade: Blocks that are made under mixed contexts before the new ones are fully there; past blocks are made
                again at each of these borders.
            contexts: Text contexts, or a file of them, instead of the weights' own text encoder.

        Raises:
            ValueError: in one line, if the prompt cannot be read or has not the form of the first one, or a number is
                not in its range.
        """
        words = (prompt,) * len(self.state.keys) if isinstance(prompt, str) else tuple(prompt)
        require(len(words) == len(self.state.keys), "prompt", prompt, f"must be one for each of {len(self.state.keys)}")
        text_source.check_text(self.pipeline.config, words, contexts)
        goal = text_source.encode_text(self.pipeline, words, contexts)
        count = check_recompute(self.static.sampler, self.state.history.depth, recompute)
        transition = begin_transition(self.state.transition, goal, recompute=count, fade=fade)
        self.state = dataclasses.replace(self.state, transition=transition, prompt_words=words)

    def rehearse_change(self, recompute: int | None = None, fade: int = 0) -> None:
        """Compile what changes of prompt will need, by making one in the stream's own cache: there is no second one.

        Who knows of a change beforehand calls this before the first chunk, so that no later one waits for a compiler.
        What the cache held is put back as it was: an empty one is made anew, that of a stream under way waits on the
        host. Arguments as `set_prompt`.
        """
        state = self.state
        count = check_recompute(self.static.sampler, state.history.depth, recompute)
        transition = begin_transition(
            no_transition(state.transition.now), state.transition.now, recompute=count, fade=fade
        )
        held = jax.tree.map(np.array, state.cache) if state.block else None
        try:
            changed = advance_transition(
                *(self.pipeline.transformer, transition, state.cache, state.keys, state.history),
                done=2,  # block 0 and one later block: one program each
                static=self.static,
                trace=no_trace,
            )
            jax.block_until_ready(changed.cache)
            del changed
        finally:
            cache = make_cache(self.static, len(state.keys)) if held is None else put_cache(held)
            self.state = dataclasses.replace(state, cache=cache)

    def _change_text(self) -> None:
        """Take the script's next step, if it has one."""
        state, network = self.state, self.pipeline.transformer
        if state.transition.left:
            changed = advance_transition(
                *(network, state.transition, state.cache, state.keys, state.history),
                done=state.block,
                static=self.static,
                trace=self.trace,
            )
            self.state = dataclasses.replace(state, **changed._asdict())

    def _advance(self) -> tuple[Chunk, ...]:
        self._change_text()
        static, state, codecs = self.static, self.state, self.pipeline.codecs
        k, network = state.block, self.pipeline.transformer
        positions, conditioning = block_positions(static, k), self.tracks.at(k)
        if conditioning.video is None or conditioning.audio is None:
            latents = denoise_block(
                network, state.cache, state.prompt, state.keys, positions, conditioning, static=static
            )
            self.trace("denoise", k, latents)
        else:
            latents = Streams(conditioning.video, conditioning.audio)
            self.trace("given", k, latents)
        pixels, picture, samples, sound = self._decode(codecs, latents, k)
        cache, history = state.cache, state.history
        if k + 1 != self.blocks:  # nobody would read the commit of the last block
            cache = commit_block(network, cache, state.prompt, state.keys, latents, positions, static=static)
            self.trace("commit", k, cache)
            history = record_block(history, latents, k)
        self.state = dataclasses.replace(state, cache=cache, picture=picture, sound=sound, block=k + 1, history=history)
        self._made += 1
        if self._made == 2:  # nothing is compiled after the second block, not even what the end will need
            flush_audio(codecs, sound)
            if k + 1 != self.blocks:
                rehearse_video(codecs, latents.video, picture, **self._rendering)
        block = static.sampler.layout.block(k)
        chunks = self._chunks(
            k,
            np.asarray(pixels),
            self._frames(block.video_start),
            np.asarray(samples),
            self._samples(block.audio_start) if k else 0,
        )
        self.trace("copy", k, chunks)
        return chunks

    def _decode(self, codecs: Codecs, latents: Streams, k: int) -> tuple[Any, Any, Any, SoundCarry]:
        """Dispatch both decoders and the copies of what they give."""
        pixels, picture = decode_video(codecs, latents.video, self.state.picture, **self._rendering)
        self.trace("decode video", k, pixels)
        samples, sound = decode_audio(codecs, latents.audio, self.state.sound)
        self.trace("decode audio", k, samples)
        pixels.copy_to_host_async()
        samples.copy_to_host_async()
        return pixels, picture, samples, sound

    def _chunks(self, index: int, video: np.ndarray, frames: int, audio: np.ndarray, samples: int) -> tuple[Chunk, ...]:
        """Stamp the chunks of all rows; what stands before the start of the stream, or is unwanted, is cut off."""
        start = samples - self.pipeline.codecs.vocoder_config.delay
        wanted = self.static.sampler.layout.block(self.tracks.dropped).video_start if self.tracks.dropped else 0
        chunks = (
            Chunk(
                index=index,
                video=row_video,
                video_start_s=frames / FRAME_RATE,
                audio=row_audio[max(0, -start) :],
                audio_start_s=max(0, start) / self.sample_rate,
                sample_rate=self.sample_rate,
            )
            for row_video, row_audio in zip(video, audio, strict=True)
        )
        return tuple(cut_before(chunk, pixel_frames(wanted) / FRAME_RATE) if wanted else chunk for chunk in chunks)

    @property
    def _rendering(self) -> dict[str, Any]:
        return {"grid": self.static.grid, "dtype": self.static.dtype, "lookahead": self.lookahead}

    def _frames(self, video_latents: int) -> int:
        """Count the frames that are out when so many video latents are known."""
        rendered = video_latents - self.lookahead
        return pixel_frames(rendered) if rendered > 0 else 0

    def _samples(self, audio_latents: int) -> int:
        """Count the samples that so many audio latents become."""
        codecs = self.pipeline.codecs
        return codecs.audio_config.mel_rows(audio_latents) * codecs.vocoder_config.samples_per_row
