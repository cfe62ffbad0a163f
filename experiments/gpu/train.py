"""Chime's teacher, then its student, trained at large batch for as long as there is time.

Recipes are those of chime/train_teacher.py and chime/train_student.py; batch and number of steps are not. How many
steps fit is not known before the device is. So the rate is first held at its peak, for the share of the time that the
recipe holds it. Then the pace is known, and the rate falls to zero over the steps that are left. Clips are rendered
here by several processes, and encoded by the device.

The teacher goes on from weights that exist, by default those that ship; the student begins as the new teacher. Weights
are written as `teacher.tar` and `student.tar` beside the JSON file, in float16, also at the peak rate. Each holds a
weights folder that wants chime's codecs beside it. To judge a student, or to go on from it:

    mkdir -p runs/weights && cp -r omniforcing_jax/assets/chime/codecs runs/weights/
    tar -C runs/weights -xf out/gpu/student.tar
    python -m experiments.chime.evaluate --source student --weights runs/weights/student --prompts 160 --seconds 5
    python -m experiments.gpu.train --json out/train.json --minutes 6 --student-begin runs/weights/student
"""

import dataclasses
import json
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.chime import train_student, train_teacher
from experiments.chime.export_networks import save
from experiments.chime.world import encoders, latents, recipe
from experiments.cli_errors import refusing
from experiments.gpu.falling import held_rates, let_fall
from experiments.gpu.sheet import Figures, Sheet, markdown
from experiments.script import read_flags, start_logging
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io import machine
from omniforcing_jax.io.atomic_write import replacing
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.train import data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.metrics import FILE as METRICS

BEGIN_STEPS, MOST_STEPS = 3, 10**9
END_S = 5.0  # seconds to end a run and to write its weights
COLUMNS = ("network", "batch", "steps", "step_ms", "clips_per_s", "compile_s", "video_first", "video_last")
COLUMNS = (*COLUMNS, "audio_first", "audio_last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train chime's networks against the clock."""

    json: Path
    """JSON file for the figures; weights go beside it."""
    minutes: float = 6.0
    """Time for everything."""
    teacher_share: float = 0.6
    """Share of the training time that the teacher has; at 0 or 1 only one network is trained."""
    teacher_batch: int = 256
    """Clips of a batch of the teacher's."""
    student_batch: int = 128
    """Clips of a batch of the student's."""
    phase: Literal["first", "second", "third"] = "second"
    """Which phase's noise levels and rate the teacher is trained with."""
    teacher_begin: Path | None = CHIME_WEIGHTS / "teacher"
    """Weights folder that the teacher begins from; None begins from random weights."""
    student_begin: Path | None = None
    """Weights folder that the student begins from, instead of the teacher's weights and fresh sinks."""
    tiny: bool = False
    """Try the code: one layer, random weights, Adam, and a student without guidance, conditioning and other prompts."""
    most_steps: int = MOST_STEPS
    """Steps at most, at the peak rate and again as the rate falls."""
    clips: int = 2000
    """Clips to train on, a multiple of 8."""
    workers: int = max(1, (os.cpu_count() or 2) - 1)
    """Processes that render them."""
    folder: Path = Path("runs/gpu")
    """Folder for clips and checkpoints. Clips that are found there are not rendered again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One network's training.

    Attributes:
        name: "teacher" or "student".
        params: weights to begin from.
        loss: the trainer's.
        optimiser: the recipe's, whose number of steps is not taken.
        rows: clips.
        batch: clips of a batch.
        seed: of the order, and of all that a step draws.
        pipeline: of the weights folder that is written.
    """

    name: str
    params: Transformer
    loss: Callable[..., Any]
    optimiser: optimiser.OptimiserConfig
    rows: dict[str, np.ndarray]
    batch: int
    seed: int
    pipeline: PipelineConfig


class Pace:
    """When each step was begun, which is when the step before it had ended."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.times: list[float] = []

    def note(self, done: int, state: Any) -> None:
        """Note a step, as a `loop.Hook` does."""
        self.times.append(time.monotonic())

    def figures(self, batch: int) -> Figures:
        """Return the figures of the speed, for batches of so many clips."""
        speed = {"step_ms": 1000 * self.step_s, "clips_per_s": batch / self.step_s, "compile_s": self.compile_s}
        return {"batch": batch, **{name: round(value, 2) for name, value in speed.items()}}

    @property
    def compile_s(self) -> float:
        """Seconds until the first step was begun, nearly all of them compilation."""
        return self.times[0] - self.begun

    @property
    def step_s(self) -> float:
        """Median seconds of a step, without the first two where there are more."""
        gaps = np.diff(self.times)
        return statistics.median(gaps[1:] if len(gaps) > 1 else gaps) if len(gaps) else self.compile_s


def train_for(training: Training, seconds: float, arguments: Arguments, report: Callable[[Figures], None]) -> None:
    """Train for so many seconds and write the weights: at the peak rate first, then as the rate falls.

    Args:
        training: what is trained.
        seconds: until the weights are written.
        arguments: where checkpoints and weights go; checkpoints that are there are removed.
        report: takes all figures so far, now and then.
    """
    ends, out = time.monotonic() + seconds, arguments.json.parent / f"{training.name}.tar"
    folder, rates = arguments.folder / training.name, held_rates(training.optimiser)
    shutil.rmtree(folder, ignore_errors=True)
    batches = data.batches(data.ArraySource(training.rows), training.batch, training.seed)
    update = step.make_step(gradient.of_loss(training.loss), rates)
    pace = Pace()

    def show(done: int) -> None:
        curve = [json.loads(line) for file in sorted(folder.glob(f"*/{METRICS}")) for line in file.open()]
        report({"network": training.name, "steps": done, **pace.figures(training.batch), "curve": curve})

    def go_on(trainer: state.TrainState, name: str, steps: int, seconds: float) -> state.TrainState:
        config = loop.LoopConfig(
            folder=folder / name, steps=steps, save_every=MOST_STEPS, minutes=max(seconds, 0.1) / 60
        )
        hooks = (loop.Hook(1, pace.note), loop.Hook(config.log_every, lambda done, _: show(done)))
        trainer = loop.train(config, trainer, update, batches, hooks=hooks)
        write_weights(out, training.pipeline, trainer.params)
        show(int(trainer.step))
        return trainer

    trainer = state.create(training.params, rates, training.seed)
    trainer = go_on(trainer, "0-begin", BEGIN_STEPS, seconds)  # compiles, which is no part of the time at the peak
    left = ends - time.monotonic() - END_S
    trainer = go_on(trainer, "1-hold", BEGIN_STEPS + arguments.most_steps, training.optimiser.decay_from * left)
    left, done = ends - time.monotonic() - END_S, int(trainer.step)
    if (falling := min(int(left / pace.step_s), arguments.most_steps)) > 0:
        go_on(let_fall(trainer, falling), "2-fall", done + falling, left)


def write_weights(path: Path, config: PipelineConfig, params: Transformer) -> None:
    """Write a weights folder, named as the file, into one file."""
    with tempfile.TemporaryDirectory() as folder, replacing(path) as new:
        save(Path(folder) / path.stem, config, params)
        with tarfile.open(new, "w") as tar:
            tar.add(Path(folder) / path.stem, arcname=path.stem)


def teacher(arguments: Arguments, rows: dict[str, np.ndarray]) -> Training:
    """Set up the teacher's training."""
    model = model_of(presets.CHIME_TEACHER, arguments)
    config = dataclasses.replace(train_teacher.PHASES[arguments.phase], model=model)
    rates = dataclasses.replace(config.optimiser, kind="adam") if arguments.tiny else config.optimiser
    begin = None if arguments.tiny else arguments.teacher_begin
    fresh = spec.init(transformer_spec(model), jax.random.key(config.seed))
    return Training(
        name="teacher",
        params=fresh if begin is None else recipe.read_transformer(begin, model),
        loss=train_teacher.make_loss(config, recipe.word_vectors())(recipe.SECONDS),
        optimiser=rates,
        rows=recipe.by_balls(rows) if config.more_of_many else rows,
        batch=arguments.teacher_batch,
        seed=config.seed,
        pipeline=dataclasses.replace(presets.CHIME_CLIP, model=model),
    )


def student(arguments: Arguments, rows: dict[str, np.ndarray], teacher: Path) -> Training:
    """Set up the training of a student of the teacher in a weights folder."""
    model, begin = model_of(presets.CHIME, arguments), None if arguments.tiny else arguments.student_begin
    config = dataclasses.replace(train_student.CONFIG, model=model)
    if arguments.tiny:
        plain = dataclasses.replace(config.ode, guidance=1.0, conditioned=0.0)
        rates = dataclasses.replace(config.optimiser, kind="adam")
        config = dataclasses.replace(config, ode=plain, changes=0.0, optimiser=rates)
    if begin is None:
        of_teacher = recipe.read_transformer(teacher, model_of(presets.CHIME_TEACHER, arguments))
        params = train_student.from_teacher(config, of_teacher)
    else:
        params = recipe.read_transformer(begin, model)
    return Training(
        name="student",
        params=params,
        loss=train_student.make_loss(config, recipe.word_vectors()),
        optimiser=config.optimiser,
        rows=recipe.by_balls(rows),
        batch=arguments.student_batch,
        seed=config.seed,
        pipeline=dataclasses.replace(recipe.student_config(), model=model),
    )


def model_of(model: ModelConfig, arguments: Arguments) -> ModelConfig:
    """Return a network of chime's, or one layer of it."""
    return dataclasses.replace(model, layers=1) if arguments.tiny else model


def run(arguments: Arguments) -> Figures:
    """Make clips, train both networks; returns what the JSON file holds."""
    sheet = Sheet(arguments.json, arguments.minutes, device=jax.devices()[0].device_kind)
    rows = _clips(arguments, sheet)
    if arguments.teacher_share > 0:
        seconds = (sheet.left_s - END_S) * arguments.teacher_share
        train_for(teacher(arguments, rows), seconds, arguments, lambda figures: sheet.put(teacher=figures))
    if arguments.teacher_share < 1:
        folder = _unpacked(arguments)
        train_for(student(arguments, rows, folder), sheet.left_s - END_S, arguments, lambda f: sheet.put(student=f))
    return sheet.finish()


def _clips(arguments: Arguments, sheet: Sheet) -> dict[str, np.ndarray]:
    path, begun = arguments.folder / "latents.safetensors", time.monotonic()
    if not path.exists():
        latents.write(path, encoders.load_encoders(), arguments.clips, recipe.SECONDS, workers=arguments.workers)
    rows = latents.read(path)
    sheet.put(clips={"count": len(rows["ids"]), "seconds": round(time.monotonic() - begun, 1)})
    return rows


def _unpacked(arguments: Arguments) -> Path:
    """Return the weights folder of the teacher that was just trained, or of the one to begin from.

    Raises:
        ValueError: if there is none.
    """
    if arguments.teacher_share > 0:
        with tarfile.open(arguments.json.parent / "teacher.tar") as tar:
            tar.extractall(arguments.folder / "weights", filter="data")
        return arguments.folder / "weights" / "teacher"
    if arguments.teacher_begin is None:
        raise ValueError("--teacher-begin: is needed for a student without a teacher's training")
    return arguments.teacher_begin


def table(figures: Figures) -> str:
    """Write a row for each network."""
    rows = [figures[name] for name in ("teacher", "student") if name in figures]
    return markdown(COLUMNS, [row | _ends_of(row.get("curve", [])) for row in rows])


def _ends_of(curve: list[Figures]) -> Figures:
    """Return the first and last losses of a curve."""
    ends = {"first": curve[0], "last": curve[-1]} if curve else {}
    return {f"{name}_{end}": line.get(name) for end, line in ends.items() for name in ("video", "audio")}


def main(arguments: Arguments) -> None:
    """Print the table and write figures and weights; bad input is one line on stderr and exit code 2."""
    start_logging()
    machine.use_compilation_cache()
    with refusing(arguments.json):
        if not 0 <= arguments.teacher_share <= 1:
            raise ValueError(f"--teacher-share {arguments.teacher_share}: must lie between 0 and 1")
        if arguments.clips < 8 or arguments.clips % 8:
            raise ValueError(f"--clips {arguments.clips}: must be a multiple of 8")
        print(table(run(arguments)))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
