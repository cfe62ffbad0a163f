"""Where the clips that are judged come from: rendered truth, what codecs leave of it, the teacher, a student.

Each source is an iterator of clips, made one (or one batch) at a time.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.chime.world import encoders
from experiments.chime.world.clips import to_float
from omniforcing_jax.chime import physics, render
from omniforcing_jax.chime.film import Film, join_film
from omniforcing_jax.chime.prompts import Request, parse, sample_prompts
from omniforcing_jax.cli.sample import parse_guidance
from omniforcing_jax.codecs.mel import LTX2_MEL
from omniforcing_jax.io.text_file import read_lines
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline.checks import student_sampler
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.presets import CHIME_WORDS
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.pipeline.weights_folder import load_pipeline, read_pipeline_config
from omniforcing_jax.sample.clip import sample_clip
from omniforcing_jax.sample.request import ClipRequest
from omniforcing_jax.schedule import ltx2_schedule
from omniforcing_jax.stream.decode import decode_clip
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.text.words import WordsConfig, tokenise

DOMAIN = 0x6A75646765  # first word of every world seed used here, so that no training or tuning has seen these worlds
BATCH = 8  # clips that the teacher makes together


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How clips are made, whatever the seed."""

    seconds: int = 5
    """Length of each clip; not used with --file."""
    weights: Path | None = None
    """Weights folder of the teacher or student, or of the codecs to decode with; by default the shipped one."""
    steps: int | None = None
    """Denoise steps, at the levels of the schedule; by default 40 for a teacher, a student's own."""
    guidance: tuple[str, ...] | None = None
    """The teacher's guidance, as `omniforcing sample` takes it; by default 3."""
    renewal: float | None = None
    """Share of fresh noise in each step; by default 0 for a teacher, a student's own."""


def refuse_unused(source: str, options: SourceOptions) -> None:
    """Refuse what a source would not take.

    Raises:
        ValueError: Names flag and value.
    """
    is_made = source in ("teacher", "student")
    takes = {"guidance": source == "teacher", "steps": is_made, "renewal": is_made, "weights": source != "truth"}
    for name, is_taken in takes.items():
        value = getattr(options, name)
        if value is not None and not is_taken:
            shown = " ".join(value) if isinstance(value, tuple) else value
            raise ValueError(f"--{name} {shown}: --source {source} does not take it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipOptions(SourceOptions):
    """How clips are made."""

    seed: int = 0
    """Random seed of prompts, worlds and generated clips."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleFlags:
    """What every script that samples from a teacher is told."""

    seconds: int = 5
    """Length of each clip, in seconds."""
    steps: int = 40
    """Denoise steps of the whole schedule."""
    guidance: float = 3.0
    """Guidance scale of both streams."""
    seed: int = 0
    """Random seed of prompts and noise."""


def clip_request(prompts: Sequence[str], flags: SampleFlags) -> ClipRequest:
    """Ask for one clip per prompt."""
    return ClipRequest(
        prompts=tuple(prompts), seconds=flags.seconds, steps=flags.steps, guidance=flags.guidance, seed=flags.seed
    )


def load(folder: Path) -> Pipeline:
    """Load a weights folder.

    Raises:
        ValueError: In one line, if it is missing or damaged.
    """
    return load_pipeline(folder, read_pipeline_config(folder))


def read_prompts(source: str, seed: int) -> list[str]:
    """Return the prompts of a file, or draw as many as the number says.

    Raises:
        ValueError: Neither a number nor a readable file, or nothing in it.
    """
    if source.isdecimal():
        if int(source) < 1:
            raise ValueError(f"--prompts {source}: must be at least 1")
        return sample_prompts(int(source), seed)
    try:
        prompts = read_lines(source)
    except ValueError as error:
        raise ValueError(f"--prompts {source}: neither a number nor a readable text file ({error})") from None
    if not prompts:
        raise ValueError(f"--prompts {source}: there is no prompt in the file")
    return prompts


def read_request(prompt: str) -> Request:
    """Say what a prompt asks for; a ValueError names unknown words first, contradictions next."""
    tokenise(WordsConfig(vocabulary=CHIME_WORDS), prompt)
    return parse(prompt)


def scenes(prompts: list[str], seed: int) -> Iterator[physics.World]:
    """Draw a world for each prompt."""
    for index, prompt in enumerate(prompts):
        yield physics.sample_world([DOMAIN, seed, index], colours=parse(prompt).colours)


def render_film(scene: physics.World, seconds: int) -> Film:
    """Render one frame and some seconds as detectors take them: the sound is as long as the picture."""
    frames = 1 + seconds * FRAME_RATE
    sound = render.render_audio(scene, frames * render.SAMPLE_RATE // FRAME_RATE)
    return Film(render.render_video(scene, frames), sound, render.SAMPLE_RATE)


def render_for_codecs(scene: physics.World, seconds: int) -> Film:
    """Render one frame and some seconds as encoders take them: the sound is whole seconds at the mel's rate."""
    rate = LTX2_MEL.sample_rate
    video = render.render_video(scene, 1 + seconds * FRAME_RATE)
    return Film(video, render.render_audio(scene, seconds * rate, rate), rate)


def truth_clips(prompts: list[str], options: ClipOptions) -> Iterator[Film]:
    """Render a world for each prompt."""
    for scene in scenes(prompts, options.seed):
        yield render_film(scene, options.seconds)


def codec_clips(prompts: list[str], options: ClipOptions) -> Iterator[Film]:
    """Render a world for each prompt, encode picture and sound with the shipped encoders, and decode them again."""
    encode, pipeline = encoders.load_encoders(), load(options.weights or CHIME_WEIGHTS / "teacher")
    rate, grid = pipeline.codecs.vocoder_config.sample_rate, pipeline.config.grid(*pipeline.config.resolution)
    for scene in scenes(prompts, options.seed):
        film = render_for_codecs(scene, options.seconds)
        latents = encode.encode_video(jnp.asarray(to_float(film.video))[None])
        tokens = latents.reshape(1, -1, latents.shape[-1])
        sound = encode.encode_sound(jnp.asarray(film.audio)[None])
        pixels, samples = decode_clip(pipeline.codecs, tokens, sound, grid=grid, dtype=jnp.float32)
        yield Film(np.asarray(pixels)[0], np.asarray(samples)[0], rate)


def student_clips(prompts: list[str], options: ClipOptions) -> Iterator[Film]:
    """Stream a clip for each prompt."""
    weights = _student(options)
    for index, prompt in enumerate(prompts):
        seed = options.seed + 1000 * index
        yield join_film(list(open_stream(weights, prompt=prompt, seconds=options.seconds, seed=seed)))


def _student(options: ClipOptions) -> Path | Pipeline:
    """Return the student's folder, or its pipeline with other steps or another renewal where they are asked for."""
    folder = options.weights or CHIME_WEIGHTS / "student"
    if options.steps is None and options.renewal is None:
        return folder
    config = read_pipeline_config(folder)
    sampler = student_sampler(config)
    if options.steps is not None:
        sampler = dataclasses.replace(sampler, sigmas=tuple(ltx2_schedule(options.steps).tolist()))
    if options.renewal is not None:
        sampler = dataclasses.replace(sampler, renewal=options.renewal)
    return load_pipeline(folder, dataclasses.replace(config, sampler=sampler))


def teacher_clips(prompts: list[str], options: ClipOptions) -> Iterator[Film]:
    """Sample clips from the bidirectional teacher, some prompts at a time."""
    guidance = None if options.guidance is None else parse_guidance(options.guidance)
    chosen = {"steps": options.steps, "guidance": guidance, "renewal": options.renewal}
    for start in range(0, len(prompts), BATCH):
        chunks = sample_clip(
            options.weights or CHIME_WEIGHTS / "teacher",
            prompts=prompts[start : start + BATCH],
            seconds=options.seconds,
            seed=options.seed + 1000 * start,
            **{name: value for name, value in chosen.items() if value is not None},
        )
        yield from (join_film([chunk]) for chunk in chunks)


SOURCES: dict[str, Callable[[list[str], ClipOptions], Iterator[Film]]] = {
    "truth": truth_clips,
    "codecs": codec_clips,
    "teacher": teacher_clips,
    "student": student_clips,
}
