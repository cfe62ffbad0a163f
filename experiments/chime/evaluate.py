"""Judge clips by their pixels and samples: rendered truth, what codecs leave of it, teacher, student, or a file.

    python -m experiments.chime.evaluate --source truth --prompts 32 --seconds 5 --seed 0 --json truth.json

Sources are iterators of clips; detectors and metrics are in `track.py`, `detect.py` and `metrics.py`. With
`--swap-sound` every picture is judged with the next clip's sound: the control that shows what chance gives.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

import omniforcing_jax
from experiments import mains
from experiments.chime import metrics, world
from experiments.chime.metrics import Media
from experiments.chime.prompts import COLOURS, VOCABULARY, Request, parse, sample_prompts
from omniforcing_jax.codecs.mel import LTX2_MEL
from omniforcing_jax.io.media_file import open_media
from omniforcing_jax.stream.chunk import Chunk, join_chunks
from omniforcing_jax.text.words import WordsConfig, tokenise

DOMAIN = 0x6A75646765  # first word of every world seed used here, so that no training or tuning has seen these worlds
BATCH = 8  # clips that the teacher makes together
SHIPPED = Path(omniforcing_jax.__file__).parent / "assets" / "chime"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Judge clips by their pixels and samples only."""

    source: Literal["truth", "codecs", "teacher", "student"] | None = None
    """Whose clips to judge; "codecs" is truth that was encoded and decoded, the best that any generator can reach."""
    file: Path | None = None
    """Judge this video file instead; --prompts then names a file with its one prompt, or is left out."""
    prompts: str | None = None
    """A text file with one prompt per line, or how many to draw (32 if left out)."""
    seconds: int = 5
    """Length of each clip; not used with --file."""
    seed: int = 0
    """Of the prompts drawn, the worlds rendered and the clips generated."""
    json: Path | None = None
    """Where to write the figures."""
    swap_sound: bool = False
    """Judge each picture with the sound of the next clip."""
    weights: Path | None = None
    """Folder of the teacher's or student's weights, or of the codecs to decode with; the shipped ones if left out."""
    steps: int | None = None
    """Denoise steps, at the levels of the schedule; the teacher's default or the student's own if left out."""
    guidance: float | None = None
    """The teacher's guidance; its own default if left out."""
    renewal: float | None = None
    """How much fresh noise a step draws; the teacher's default or the student's own if left out."""
    by_count: bool = False
    """Add figures apart for prompts of one, two and three balls, under the key of this name."""
    each: bool = False
    """Print a line per clip too."""


def weights_of(arguments: Arguments) -> Path:
    """Return the folder of weights asked for, by default what is shipped for the source."""
    return arguments.weights or SHIPPED / ("teacher" if arguments.source == "codecs" else str(arguments.source))


def read_prompts(source: str, seed: int) -> list[str]:
    """Return the prompts of a file, or draw as many as the number says.

    Raises:
        ValueError: neither a number nor a readable file, or nothing in it.
    """
    if source.isdecimal():
        if int(source) < 1:
            raise ValueError(f"--prompts {source}: must be at least 1")
        return sample_prompts(int(source), seed)
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {source}: neither a number nor a readable text file ({error})") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {source}: there is no prompt in the file")
    return prompts


def read_request(prompt: str) -> Request:
    """Say what a prompt asks for; a ValueError names unknown words first, contradictions next."""
    tokenise(WordsConfig(vocabulary=VOCABULARY), prompt)
    return parse(prompt)


def truth_clips(prompts: list[str], arguments: Arguments) -> Iterator[Media]:
    """Render a world for each prompt."""
    for scene in scenes(prompts, arguments.seed):
        yield render(scene, arguments.seconds)


def scenes(prompts: list[str], seed: int) -> Iterator[world.World]:
    """Draw a world for each prompt."""
    for index, prompt in enumerate(prompts):
        yield world.sample_world([DOMAIN, seed, index], colours=parse(prompt).colours)


def render(scene: world.World, seconds: int) -> Media:
    """Render one frame and some seconds as detectors take them: the sound is as long as the picture."""
    frames = 1 + seconds * world.FRAME_RATE
    samples = frames * world.SAMPLE_RATE // world.FRAME_RATE
    return world.render_video(scene, frames), world.render_audio(scene, samples), world.SAMPLE_RATE


def render_for_codecs(scene: world.World, seconds: int) -> Media:
    """Render one frame and some seconds as encoders take them: the sound is whole seconds at the mel's rate."""
    video = world.render_video(scene, 1 + seconds * world.FRAME_RATE)
    rate = LTX2_MEL.sample_rate
    return video, world.render_audio(scene, seconds * rate, rate), rate


def codec_clips(prompts: list[str], arguments: Arguments) -> Iterator[Media]:
    """Render a world for each prompt, encode picture and sound with the shipped encoders, and decode them again."""
    import jax.numpy as jnp

    from experiments.chime import clips, codecs
    from omniforcing_jax.pipeline.weights_folder import load_pipeline, read_pipeline_config
    from omniforcing_jax.stream.decode import decode_clip

    folder, encoders = weights_of(arguments), codecs.load_encoders()
    pipeline = load_pipeline(folder, read_pipeline_config(folder))
    rate, grid = pipeline.codecs.vocoder_config.sample_rate, pipeline.config.grid(*pipeline.config.resolution)
    for scene in scenes(prompts, arguments.seed):
        video, sound, _ = render_for_codecs(scene, arguments.seconds)
        latents = encoders.encode_video(jnp.asarray(clips.to_float(video))[None])
        tokens = latents.reshape(1, -1, latents.shape[-1])
        pixels, samples = decode_clip(
            pipeline.codecs, tokens, encoders.encode_sound(jnp.asarray(sound)[None]), grid=grid, dtype=jnp.float32
        )
        yield np.asarray(pixels)[0], np.asarray(samples)[0], rate


def media_of(chunks: list[Chunk]) -> Media:
    """Join consecutive chunks to a clip whose sound begins with its picture."""
    video, audio = join_chunks(chunks)
    lag = next((chunk.audio_start_s for chunk in chunks if len(chunk.audio)), 0.0) - chunks[0].video_start_s
    return video, _shift(audio, round(lag * chunks[0].sample_rate)), chunks[0].sample_rate


def _shift(audio: np.ndarray, samples: int) -> np.ndarray:
    """Let sound that begins `samples` after the picture begin with it, by silence or by a cut."""
    return np.pad(audio, ((samples, 0), (0, 0))) if samples > 0 else audio[-samples:]


def student_clips(prompts: list[str], arguments: Arguments) -> Iterator[Media]:
    """Stream a clip for each prompt."""
    from omniforcing_jax.stream.start import open_stream

    weights = _student_weights(arguments)
    for index, prompt in enumerate(prompts):
        stream = open_stream(weights, prompt=prompt, seconds=arguments.seconds, seed=arguments.seed + 1000 * index)
        yield media_of(list(stream))


def _student_weights(arguments: Arguments) -> Any:
    """Return the student's folder, or its pipeline with other steps or another renewal where they are asked for."""
    if arguments.steps is None and arguments.renewal is None:
        return weights_of(arguments)
    from omniforcing_jax.pipeline.checks import student_sampler
    from omniforcing_jax.pipeline.weights_folder import load_pipeline, read_pipeline_config
    from omniforcing_jax.schedule import ltx2_schedule

    config = read_pipeline_config(weights_of(arguments))
    sampler = student_sampler(config)
    if arguments.steps is not None:
        sampler = dataclasses.replace(sampler, sigmas=tuple(ltx2_schedule(arguments.steps).tolist()))
    if arguments.renewal is not None:
        sampler = dataclasses.replace(sampler, renewal=arguments.renewal)
    return load_pipeline(weights_of(arguments), dataclasses.replace(config, sampler=sampler))


def teacher_clips(prompts: list[str], arguments: Arguments) -> Iterator[Media]:
    """Sample clips from the bidirectional teacher, some prompts at a time."""
    from omniforcing_jax.sample.clip import sample_clip

    chosen = {"steps": arguments.steps, "guidance": arguments.guidance, "renewal": arguments.renewal}
    options = {name: value for name, value in chosen.items() if value is not None}
    for start in range(0, len(prompts), BATCH):
        chunks = sample_clip(
            weights_of(arguments),
            prompts=prompts[start : start + BATCH],
            seconds=arguments.seconds,
            seed=arguments.seed + 1000 * start,
            **options,
        )
        yield from (media_of([chunk]) for chunk in chunks)


def read_file(path: Path) -> Media:
    """Decode a video file by PyAV; sound is aligned to the picture by their time stamps.

    Raises:
        ValueError: it cannot be decoded, is not square at 24 frames per second, or lacks picture or stereo sound.
    """
    import av

    with open_media(path) as file:
        if not file.streams.video or not file.streams.audio:
            raise ValueError(f"{path}: needs a picture and a sound")
        rate = file.streams.video[0].average_rate
        pictures = list(file.decode(video=0))
    with open_media(path) as file:
        sounds = list(file.decode(audio=0))
    if not pictures or not sounds:
        raise ValueError(f"{path}: needs a picture and a sound")
    if rate != world.FRAME_RATE or pictures[0].width != pictures[0].height or sounds[0].layout.nb_channels != 2:
        raise ValueError(f"{path}: needs a square picture at {world.FRAME_RATE} frames/s and stereo sound")
    video = np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=sounds[0].sample_rate)
    planes = [part.to_ndarray() for sound in sounds for part in resampler.resample(sound)]
    lag = (sounds[0].time or 0.0) - (pictures[0].time or 0.0)
    return video, _shift(np.concatenate(planes, axis=1).T, round(lag * sounds[0].sample_rate)), sounds[0].sample_rate


def plan(arguments: Arguments) -> tuple[Sequence[str], Sequence[Request | None], Iterator[Media]]:
    """Check everything that can be checked, then return prompts, what they ask for, and the clips, not yet made.

    Raises:
        ValueError: whatever is wrong with the arguments, in one line.
    """
    if (arguments.source is None) == (arguments.file is None):
        raise ValueError("give one of --source and --file")
    if arguments.seconds < 1:
        raise ValueError(f"--seconds {arguments.seconds}: must be at least 1")
    if arguments.file is not None:
        if not arguments.file.is_file():
            raise ValueError(f"--file {arguments.file}: no such file")
        if arguments.swap_sound:
            raise ValueError("--swap-sound: a single file has no other sound to swap with")
        prompts = [] if arguments.prompts is None else read_prompts(arguments.prompts, arguments.seed)
        if len(prompts) > 1 or (arguments.prompts or "").isdecimal():
            raise ValueError(f"--prompts {arguments.prompts}: with --file, a text file with its one prompt")
        requests = [read_request(prompt) for prompt in prompts] or [None]
        return prompts or [str(arguments.file)], requests, iter([read_file(arguments.file)])
    prompts = read_prompts(arguments.prompts or "32", arguments.seed)
    requests = [read_request(prompt) for prompt in prompts]
    if arguments.swap_sound and len(prompts) < 2:
        raise ValueError("--swap-sound: needs at least two prompts")
    if arguments.source != "truth" and not weights_of(arguments).is_dir():
        raise ValueError(f"--weights {weights_of(arguments)}: no such folder")
    sources = {"truth": truth_clips, "codecs": codec_clips, "teacher": teacher_clips, "student": student_clips}
    return prompts, requests, sources[str(arguments.source)](prompts, arguments)


def _describe(clip: metrics.Clip, prompt: str) -> str:
    tracks, sound = clip.picture.tracks, clip.sound
    seen = " ".join(COLOURS[c] for c in tracks.colours())
    heard = " ".join(COLOURS[c] for c in metrics.pitches_heard(sound.onsets))
    pairs = len(metrics.match(clip.picture.impacts, sound.onsets))
    counts = f"{len(clip.picture.impacts)} impacts, {len(sound.onsets)} onsets, {pairs} pairs"
    return f"{prompt!r}: {tracks.count()} seen ({seen}), heard ({heard}), {counts}"


def _follow(clips: Iterator[Media], total: int, console: Console) -> Iterator[Media]:
    """Pass clips on under a progress bar, or with a line per batch where there is no terminal."""
    if console.is_terminal:
        yield from track(clips, "judging", total=total, console=console)
        return
    for done, clip in enumerate(clips, 1):
        yield clip
        if done % BATCH == 0 and done < total:
            console.print(f"{done} of {total} clips judged", highlight=False)


def run(arguments: Arguments, console: Console) -> dict:
    """Make and judge all clips, one in memory at a time."""
    prompts, requests, clips = plan(arguments)
    began = time.monotonic()
    followed = zip(_follow(clips, len(prompts), console), requests, strict=True)
    judged = [metrics.perceive(media, request) for media, request in followed]
    if arguments.swap_sound:
        others = judged[1:] + judged[:1]
        judged = [dataclasses.replace(clip, sound=other.sound) for clip, other in zip(judged, others, strict=True)]
    if arguments.each:
        for clip, prompt in zip(judged, prompts, strict=True):
            console.print(_describe(clip, prompt), highlight=False)
    figures = metrics.judge(judged)
    if arguments.by_count:
        figures["by_count"] = metrics.by_count(judged)
    console.print(f"{len(judged)} clips in {time.monotonic() - began:.1f} s", highlight=False)
    return figures


def main(arguments: Arguments) -> None:
    """Print the figures, and write them if asked to; bad input is one line on stderr and exit code 2."""
    console = Console(stderr=True, soft_wrap=True)
    with mains.refusing(arguments.json):
        figures = run(arguments, console)
    print(json.dumps(figures, indent=2))
    mains.keep_figures(arguments.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
