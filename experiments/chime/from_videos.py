"""Does a student learn from videos what it learns from rendered clips? Thirty worlds, as files and as latents.

The worlds are written as MP4s of mixed rates and sizes, and `experiments.make_latents` makes clips of them. The same
worlds are encoded as they were rendered. Stage 2 (diffusion forcing) begins from chime's teacher with each of the two,
with the same seeds, and its last losses are compared. Held-out clips are the same worlds in both.

Hardware: two CPU cores, about ten minutes.
Expect: equal losses within the spread of a run's own steps; those of videos a little higher, because H.264 and the
change of rate leave something that cannot be foreseen.

    python -m experiments.chime.from_videos --folder out/from_videos --json out/from_videos.json
"""

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np

from experiments import import_contexts, make_latents, stage2_ode
from experiments.chime.world import encoders
from experiments.chime.world.clips import TRAIN_SEED
from experiments.chime.world.latents import prompt_of
from experiments.cli_errors import report
from experiments.script import read_flags
from experiments.videos.scenes import Rules
from omniforcing_jax.cli.main import main as omniforcing
from omniforcing_jax.codecs.mel import LTX2_MEL
from omniforcing_jax.layout import FRAME_RATE, PREFIX, latent_frames
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.stream.mp4 import write_mp4
from omniforcing_jax.strict_json import require
from omniforcing_jax.train.clips import clips_header, open_clips
from omniforcing_jax.train.store import Row, Writer

RATES = (24, 30, 60, 25)
ENLARGED = (1, 2, 3)  # times the 64 pixels of the world
SIDE = 64
SECONDS = 5
SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)
ALL = Rules(quietest_db=-120.0, most_silence=1.0, least_motion=0.0)  # the same worlds must be in both
LAST = 5  # lines of metrics at the end of a run that are compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare a student of videos with one of rendered clips."""

    folder: Path
    """Folder to write videos, clips and runs into; must be empty or missing."""
    count: int = 30
    """Worlds."""
    steps: int = 200
    """Steps of each training."""
    batch: int = 8
    """Clips at once."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""


def write_videos(folder: Path, count: int) -> None:
    """Write worlds as MP4s, each with its caption and a second longer than a clip needs."""
    folder.mkdir(parents=True)
    for index in range(count):
        seed, rate, times = TRAIN_SEED + index, RATES[index % len(RATES)], ENLARGED[index % len(ENLARGED)]
        (pixels,), (sound,) = encoders.render_worlds(range(seed, seed + 1), SECONDS + 1)
        shown = np.round(np.arange(rate * (SECONDS + 1)) / rate * FRAME_RATE).astype(int)
        large = pixels[shown].repeat(times, 1).repeat(times, 2)
        path = folder / f"{index:03}.mp4"
        write_mp4(path, large, sound, frame_rate=rate, sample_rate=LTX2_MEL.sample_rate)
        path.with_suffix(".txt").write_text(prompt_of(seed), encoding="utf-8")


def write_rendered(folder: Path, count: int) -> None:
    """Encode the same worlds as they were rendered into a store of clips."""
    codecs, frames = encoders.load_encoders(), PREFIX.frames_for(SECONDS)
    size = SIDE, SIDE, frames
    writer = None
    for index in range(count):
        seed = TRAIN_SEED + index
        pixels, sound = encoders.render_clips(range(seed, seed + 1), SECONDS)
        video, audio = (np.asarray(x[0]) for x in (codecs.encode_video(pixels), codecs.encode_sound(sound)))
        if writer is None:
            channels, grid = (video.shape[-1], audio.shape[-1]), (latent_frames(frames), *video.shape[1:3])
            header = clips_header(count=count, shards=1, size=size, video=grid, channels=channels, codecs="rendered")
            writer = Writer(folder / f"{SIDE}x{SIDE}-{SECONDS}s", header)
        arrays = {
            "video": video.astype(np.float16),
            "audio": audio.astype(np.float16),
            "start_s": np.zeros((), np.float32),
        }
        writer.put(index, Row(prompt_of(seed), arrays))


def train(folder: Path, clips: Path, arguments: Arguments) -> list[dict[str, float]]:
    """Train stage 2 on clips; returns the lines of its metrics."""
    stage2_ode.main(
        stage2_ode.Arguments(
            student=CHIME_WEIGHTS / "teacher",
            contexts=arguments.folder / "contexts",
            clips=clips,
            folder=folder,
            layout="prefix",
            config=dataclasses.replace(stage2_ode.CONFIG, seconds=SECONDS, sigmas=SIGMAS),
            steps=arguments.steps,
            batch=arguments.batch,
            dtype="float32",
            held_out=0.2,
            evaluate_every=arguments.steps,
            log_every=10,
            sample_every=0,
        )
    )
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(arguments: Arguments) -> dict[str, dict[str, float]]:
    """Make both kinds of clips, train on each, and return the last losses with their spread.

    Raises:
        ValueError: In one line, whatever is wrong with the arguments.
    """
    folder = arguments.folder
    require(not folder.exists() or not any(folder.iterdir()), "folder", str(folder), "must be empty or missing")
    write_videos(folder / "videos", arguments.count)
    shipped = CHIME_WEIGHTS / "teacher"
    make_latents.main(
        make_latents.Arguments(videos=folder / "videos", weights=shipped, folder=folder / "of_videos", rules=ALL)
    )
    write_rendered(folder / "rendered", arguments.count)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(sorted({prompt_of(TRAIN_SEED + i) for i in range(arguments.count)})), encoding="utf-8")
    text = folder / "prompts.safetensors"
    words = ["contexts", "--weights", str(shipped), "--prompts", str(prompts), "--out", str(text)]
    require(omniforcing(words) == 0, "contexts", str(text), "could not be made")
    import_contexts.main(import_contexts.Arguments(from_=text, folder=folder / "contexts"))
    figures = {}
    for name in ("of_videos", "rendered"):
        lines = train(folder / f"run_{name}", folder / name, arguments)
        last = np.array([[line["real/video"], line["real/audio"]] for line in lines[-LAST:]])
        held = {name: value for name, value in lines[-1].items() if name.startswith("held_out/real/")}
        figures[name] = {
            "clips": float(sum(map(len, open_clips(folder / name).values()))),
            "video": float(last[:, 0].mean()),
            "video, deviation": float(last[:, 0].std()),
            "audio": float(last[:, 1].mean()),
            "audio, deviation": float(last[:, 1].std()),
            **held,
        }
    return figures


def tabulate(figures: dict[str, dict[str, float]]) -> list[str]:
    """Format the figures as a Markdown table."""
    names = list(figures)
    rows = [f"| {row} | {' | '.join(f'{figures[name][row]:.4g}' for name in names)} |" for row in figures[names[0]]]
    return [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}", *rows]


def main(arguments: Arguments) -> None:
    """Print the table, and write the figures if asked to; bad input is one line on stderr and exit code 2."""
    report(arguments.json, partial(run, arguments), tabulate)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
