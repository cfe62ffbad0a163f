"""Chime's stage 3: joint self-forcing DMD, from the stage-2 student; the critic begins as the teacher.

The student learns from clips of its own, rolled out with the real cache, so it sees what a stream will see: its own
blocks. What is learned is to make clips that the teacher, guided, would make, in a few steps per block with fresh noise
each.

Source: OmniForcing stage 3 (specs/omniforcing.md 7.4). Deviations: 4 million parameters learn at higher rates; the
generator is updated at every second step of the critic, not at every fifth, because the run is short.
Hardware: two CPU cores, 44 minutes for 604 steps.
Commands, after stage 2 (train_student):
  python -m experiments.chime.export --part stage2 --out runs/chime/weights
  python -m experiments.chime.train_self_forcing [--minutes M]
Expect: `generator/dmd` falls slowly and jitters; evaluate judges.
"""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from experiments.chime import latents, pairs, samples, train_teacher
from omniforcing_jax import config as configs
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.players import SelfForcing, SelfForcingConfig
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.model.transformer import Transformer, keep_projections, transformer_spec
from omniforcing_jax.nn import spec
from omniforcing_jax.pipeline import load_pipeline
from omniforcing_jax.presets import CHIME_STREAM, RELEASED_SIGMAS
from omniforcing_jax.rollout import Setting
from omniforcing_jax.text import words
from omniforcing_jax.train import checkpoint, data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
      sampler: the student's, fresh noise at each level: the nine that stage 2 was trained at.
      stage3: see SelfForcingConfig.
      ratio: critic updates per update of the generator.
      ema_decay, ema_from: of the generator's average, which is what ships.
    """

    sampler: SamplerConfig = SamplerConfig(sigmas=pairs.student_sigmas(), horizon_seconds=5, context_noise=0.1)
    stage3: SelfForcingConfig = SelfForcingConfig(
        dmd=DmdConfig(guidance=GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=3.0)))
    )
    batch: int = 8
    steps: int = 700
    ratio: int = 2
    generator: OptimiserConfig = OptimiserConfig(
        kind="adam", learning_rate=1e-4, steps=350, warmup=10, decay_from=0.4, b1=0.0, b2=0.99
    )
    critic: OptimiserConfig = OptimiserConfig(
        kind="adam", learning_rate=3e-4, steps=700, warmup=20, decay_from=0.8, b1=0.0, b2=0.99
    )
    ema_decay: float = 0.97
    ema_from: int = 40
    seed: int = 50


CONFIG = Config()
FOUR = dataclasses.replace(  # the reference's list: four calls per block
    CONFIG, sampler=dataclasses.replace(CONFIG.sampler, sigmas=RELEASED_SIGMAS)
)


def make_gradients(config: Config, vectors: words.Words) -> tuple[gradient.Gradient, gradient.Gradient]:
    """Build what the trainer asks of the generator and of the critic."""
    setting = Setting(configs.CHIME, config.sampler, CHIME_STREAM.grid(*CHIME_STREAM.resolution))
    players = SelfForcing(setting, configs.CHIME_TEACHER, config.stage3, remat=keep_projections)

    contexts = partial(words.contexts, vectors)

    def generator(params: Any, batch: dict, key: jax.Array, extra: None, critic: Any, teacher: Any):
        empty = contexts(words.blank(batch["ids"]))
        value, metrics, grads = players.generator(params, contexts(batch["ids"]), empty, key, critic, teacher)
        return gradient.Graded(value, metrics, extra, grads)

    def critic_loss(params: Any, batch: dict, key: jax.Array, extra: None, generator: Any, teacher: Any):
        value, metrics = players.critic(params, contexts(batch["ids"]), key, generator)
        return value, (metrics, extra)

    return generator, gradient.of_loss(critic_loss)


def start(config: Config, student: Transformer, teacher: Transformer) -> tuple[state.DistillState, tuple[Any, Any]]:
    """Make fresh trainers of both players, and their optimisers; the critic begins as the teacher."""
    rules = optimiser.optimiser(config.generator), optimiser.optimiser(config.critic)
    return state.create_pair(student, jax.tree.map(jnp.copy, teacher), *rules, config.seed), rules


def trained(folder: Path) -> Transformer:
    """Read the generator's average from a run's newest checkpoint.

    Raises:
      ValueError: if there is none.
    """
    blanks = (spec.init(transformer_spec(model), jax.random.key(0)) for model in (configs.CHIME, configs.CHIME_TEACHER))
    found = checkpoint.restore(checkpoint.open_manager(folder / "checkpoints"), start(CONFIG, *blanks)[0])
    if found is None:
        raise ValueError(f"{folder}: no checkpoint of train_self_forcing")
    logging.info("%s: step %d", folder, int(found.state.step))
    return found.state.generator.ema


def main(
    folder: Path = Path("runs/chime/self_forcing"),
    teacher: Path = train_teacher.ASSETS / "teacher",
    student: Path = Path("runs/chime/weights/stage2"),
    data_file: Path = latents.FILE,
    minutes: float | None = None,
    sample_every: int | None = None,
    levels: Literal["nine", "four"] = "nine",
) -> None:
    """Train or continue in `folder`, from the weights folders of a teacher and a stage-2 student.

    Every `sample_every` steps clips and their contact sheets go to `folder`/samples.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    config = CONFIG if levels == "nine" else FOUR
    frozen = train_teacher.exported(teacher, configs.CHIME_TEACHER)
    trainer, rules = start(config, train_teacher.exported(student, configs.CHIME), frozen)
    generator, critic = make_gradients(config, train_teacher.word_vectors())
    both = step.make_distill_step(
        generator, critic, *rules, ratio=config.ratio, ema_decay=config.ema_decay, ema_from=config.ema_from
    )
    rows = {"ids": train_teacher.by_balls(latents.read(data_file))["ids"]}
    run = loop.LoopConfig(folder=folder, steps=config.steps, save_every=50, minutes=minutes)
    batches = data.batches(data.ArraySource(rows), config.batch, config.seed)
    hooks = ()
    if sample_every is not None:
        pipeline = load_pipeline(
            train_teacher.ASSETS / "student", dataclasses.replace(CHIME_STREAM, sampler=config.sampler)
        )
        show = samples.sampler(folder / "samples", pipeline, lambda trainer: trainer.generator.ema)
        hooks = (loop.Hook(sample_every, show),)
    loop.train(run, trainer, both, batches, beside=(frozen,), hooks=hooks, describe=dataclasses.asdict(config))


if __name__ == "__main__":
    tyro.cli(main)
