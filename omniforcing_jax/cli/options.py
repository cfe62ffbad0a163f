"""What each command can be asked: one dataclass of flags per command.

The fields are the flags, their docstrings the help. Nothing is computed here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Stream picture and sound from a causal student into a file that can be played while it grows."""

    seconds: float
    """Length in whole seconds; the clip has one frame more. With --resume: how much longer."""
    out: Path
    """MP4 file to write; its clock is the stream's, so with --resume it begins where the state was saved."""
    prompt: str | None = None
    """What to show; with --resume it is in the state."""
    seed: int = 0
    """Of all noise."""
    weights: Path = CHIME_WEIGHTS / "student"
    """Weights folder of a causal student."""
    height: int | None = None
    """Of the picture, in pixels; by default what the weights were trained at."""
    width: int | None = None
    """Of the picture, in pixels; by default what the weights were trained at."""
    window: int | None = None
    """Blocks that a block may see, itself included; 0 fills the trained horizon; by default the weights' own."""
    steps: int | None = None
    """Denoise steps per block, at most the trained ones; by default all of them."""
    dtype: DType = "float32"
    """Type to compute in."""
    contexts: Path | None = None
    """Safetensors file of text contexts instead of the weights' own text encoder: what the command `contexts` wrote,
    looked up by prompt, or the tensors video, audio and mask of this prompt."""
    save_state: Path | None = None
    """Folder to save the stream to, at its end or at Ctrl-C, so that it can go on."""
    resume: Path | None = None
    """Folder of a saved stream to go on with, bit by bit as if it had never ended."""
    prompt_at: tyro.conf.UseAppendAction[tuple[tuple[float, str], ...]] = ()
    """Second from which another prompt is shown, and that prompt; may be given several times, in order."""
    recompute: int | None = None
    """Past blocks that are made again when the prompt changes, the newest first; by default all that a block sees."""
    fade: int = 0
    """Blocks over which a prompt goes over into the next."""
    sound: Path | None = None
    """File with the sound that the picture is made to, at least as long as the stream."""
    picture: Path | None = None
    """File with the picture that the sound is made to, at least as long as the stream."""
    from_image: Path | None = None
    """Image, of the stream's size, that the picture begins with."""
    continue_: Annotated[Path | None, tyro.conf.arg(name="continue")] = None
    """File to go on from: one frame and whole seconds; --seconds counts them, and --out begins with them."""
    drop_past: bool = False
    """Leave what --continue was given out of --out."""
    mesh: str = "1,1,1"
    """Devices as replica,fsdp,tensor, all that there are: 1,1,4 cuts every layer for four."""
    lookahead: int | None = None
    """Latent frames, a third of a second each, that the picture is held back for a decoder that is not causal."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Sample a clip from a bidirectional teacher."""

    prompt: str
    """What to show."""
    seconds: float
    """Length in whole seconds; the clip has one frame more."""
    out: Path
    """MP4 file to write."""
    steps: int = 40
    """Denoise steps."""
    sigmas: Literal["schedule", "distilled"] = "schedule"
    """Noise levels: of the schedule with so many steps, or the eight that LTX-2's distilled weights were made for."""
    renewal: float = 0.0
    """How much fresh noise a step draws: 0 makes Euler's steps, 1 those of a diffusion run backwards."""
    guidance: tuple[str, ...] = ("3",)
    """cfg of both streams, or of video and audio, or name=value: cfg=3 audio.cfg=7 stg=1 layers=4 rescale=0.7."""
    seed: int = 0
    """Of the noise."""
    weights: Path = CHIME_WEIGHTS / "teacher"
    """Weights folder of a bidirectional teacher."""
    height: int | None = None
    """Of the picture, in pixels; by default what the weights were trained at."""
    width: int | None = None
    """Of the picture, in pixels; by default what the weights were trained at."""
    dtype: DType = "float32"
    """Type to compute in."""
    contexts: Path | None = None
    """Safetensors file of text contexts instead of the weights' own text encoder."""
    negative_contexts: Path | None = None
    """The same for the negative prompt; by default the empty one, where --contexts has it."""


@dataclass(frozen=True, kw_only=True)
class ContextsOptions:
    """Compute the text contexts of many prompts once, so that streams need no text encoder in memory."""

    prompts: Path
    """Text file with a prompt per line; empty lines do not count. The empty prompt, for guidance, is always added."""
    weights: Path
    """Weights folder with a text encoder: words, or Gemma (text) and connectors; nothing else of it is needed."""
    out: Path
    """Safetensors file to write, for --contexts of other commands; experiments.import_contexts makes a training's."""
    dtype: DType = "float32"
    """Type to compute in, and of the contexts."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure a stream, or its decoders: cli/bench_stream.py and cli/bench_decode.py say what each figure means."""

    what: Annotated[Literal["stream", "decode"], tyro.conf.Positional]
    """What to measure."""
    json: Path
    """File for the figures."""
    blocks: int | None = None
    """Length of the stream; `decode` has a default."""
    weights: Path | None = None
    """Weights folder of a causal student; by default the shipped one."""
    preset: str | None = None
    """Sizes to make random weights of, instead of a weights folder."""
    random_weights: bool = False
    """Make the preset's weights at random, on the device."""
    mux: bool = True
    """Also encode H.264 and AAC into a temporary file."""
    seed: int = 0
    """Of all noise, and of random weights."""
    height: int | None = None
    """Of the picture, in pixels."""
    width: int | None = None
    """Of the picture, in pixels."""
    window: int | None = None
    """Blocks that a block may see, itself included."""
    steps: int | None = None
    """Denoise steps per block."""
    dtype: DType = "float32"
    """Type to compute in."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Judge picture and sound of any media file: see omniforcing_jax.judge.report for what each figure means."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Media file, of any size, rates and number of channels."""
    json: Path
    """File for the figures."""
    reference: Path | None = None
    """Media file to judge beside it."""
    plot: Path | None = None
    """PNG, PDF or SVG for the curves behind the figures."""
    block_seconds: float = 1.0
    """Length of the blocks whose seams are looked for."""
    first_block_frames: int = 1
    """Frames of the first block."""
