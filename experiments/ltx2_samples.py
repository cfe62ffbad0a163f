"""Clips of a network in training: a hook for the loop, which makes an MP4 with sound and a contact sheet of each.

A causal student streams them, as the command `stream` does; a bidirectional one samples them at its few levels. Codecs
come from the weights folder that the run began from, and are in memory only while clips are made.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import DTypeLike, Float32, UInt8

from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.parallel import distributed
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig, assemble
from omniforcing_jax.pipeline.weights_folder import check_components, load_components
from omniforcing_jax.sample.clip import sample_clip
from omniforcing_jax.stream.chunk import Chunk, join_chunks
from omniforcing_jax.stream.mp4 import Mp4Writer
from omniforcing_jax.stream.plan import plan_stream
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.start import start_stream
from omniforcing_jax.text.contexts import TextContexts
from omniforcing_jax.train.loop import Hook

CODECS = ("video_vae", "audio_vae", "vocoder")
COLUMNS, CELL, WAVE = 10, 160, 80  # frames on a sheet, their widest side, height of the sound, the last two in pixels
PAPER, INK = (10, 12, 18), (118, 134, 181)
ALL_FRESH = 1e9  # renewal of a generator of few steps: the share of fresh noise is cut at 1


class Examples(NamedTuple):
    """What sample clips show, and how they are made.

    Attributes:
        texts: Prompts, each with its contexts, a batch of one.
        seconds: Length of a clip, one frame not counted.
        sigmas: Noise levels of a bidirectional network; a student has its own.
    """

    texts: Sequence[tuple[str, TextContexts]]
    seconds: int
    sigmas: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """The call of a `loop.Hook`: clips with the same noise every time.

    Attributes:
        folder: Clips go here, as `step_000500_0.mp4` and `.png`; made when the first ones are.
        begun: Weights folder that has the codecs.
        config: What network it is.
        examples: See Examples.
        params_of: Takes the weights out of the trainer's state, such as its average.
        dtype: Type to compute in.
    """

    folder: Path
    begun: Path
    config: PipelineConfig
    examples: Examples
    params_of: Callable[[Any], Transformer]
    dtype: DTypeLike

    def __call__(self, done: int, state: Any) -> None:
        """Make the clips. One that fails is a line in the log: it must not end the run."""
        try:
            codecs = load_components(self.begun, self.config, self.dtype, CODECS)
            pipeline = assemble(self.config, {**codecs, "transformer": self.params_of(state), "text": None})
            for index, (prompt, contexts) in enumerate(self.examples.texts):
                self._keep(f"step_{done:06}_{index}", self._make(pipeline, prompt, contexts))
        except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
            logging.warning("no sample clips of step %d: %s", done, " ".join(str(error).split()))

    def _make(self, pipeline: Pipeline, prompt: str, contexts: TextContexts) -> list[Chunk]:
        seconds, sigmas = self.examples.seconds, self.examples.sigmas
        if self.config.sampler is None:  # all noise is drawn afresh at each level, as few-step networks are trained to
            options = {"sigmas": sigmas, "renewal": ALL_FRESH, "contexts": contexts, "dtype": self.dtype}
            return sample_clip(pipeline, (prompt,), seconds, guidance=1.0, seed=1, **options)
        request = StreamRequest(prompt=prompt, seconds=seconds, seed=1, dtype=self.dtype, contexts=contexts)
        return list(start_stream(pipeline, plan_stream(pipeline, request), contexts))

    def _keep(self, name: str, chunks: list[Chunk]) -> None:
        if not distributed.speaks():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        video, audio = join_chunks(chunks)
        size = {"height": video.shape[1], "width": video.shape[2]}
        with Mp4Writer(
            self.folder / f"{name}.mp4", **size, frame_rate=FRAME_RATE, sample_rate=chunks[0].sample_rate
        ) as out:
            for chunk in chunks:
                out.write(chunk)
        write_png(self.folder / f"{name}.png", contact_sheet(video, audio))


def hooks(every: int, sampler: Sampler) -> tuple[Hook, ...]:
    """Return the sampler as a hook; 0 steps are never.

    Raises:
        ValueError: If the codecs' weights are missing or damaged, before the first step.
    """
    if not every:
        return ()
    check_components(sampler.begun, sampler.config, CODECS)
    return (Hook(every, sampler),)


def contact_sheet(
    video: UInt8[np.ndarray, "frames height width 3"], audio: Float32[np.ndarray, "samples channels"]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Lay frames of a clip side by side, evenly over time, and draw the envelope of its sound below them."""
    every = math.ceil(max(video.shape[1:3]) / CELL)
    chosen = np.linspace(0, len(video) - 1, COLUMNS).round().astype(int)
    frames = np.concatenate(list(video[chosen, ::every, ::every]), axis=1)
    wave = np.full((WAVE, frames.shape[1], 3), PAPER, np.uint8)
    for column, samples in enumerate(np.array_split(audio, frames.shape[1])):
        low, high = (samples.min(), samples.max()) if samples.size else (0.0, 0.0)
        top, bottom = (round((0.5 - 0.5 * float(np.clip(value, -1, 1))) * (WAVE - 1)) for value in (high, low))
        wave[top : bottom + 1, column] = INK
    return np.concatenate([frames, wave])


def write_png(path: Path, picture: UInt8[np.ndarray, "rows columns 3"]) -> None:
    """Write a picture."""
    import av

    with av.open(str(path), "w", format="image2", options={"update": "1"}) as file:
        stream = file.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
