"""What chime's trainings with a critic share: sampler, schedules, the players' gradients, and the loop around them.

The generator is a causal student, teacher and critic are bidirectional; what clip is scored is the recipe's
(train_self_forcing.py, train_causal_dmd.py).
"""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime import pairs, samples, train_teacher
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.generator_critic import SelfForcing, WholeClip
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.presets import CHIME_STREAM
from omniforcing_jax.pipeline.weights_folder import load_pipeline
from omniforcing_jax.streams import Streams
from omniforcing_jax.text import words
from omniforcing_jax.train import checkpoint, data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig

GUIDED = DmdConfig(guidance=GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=3.0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
      sampler: the student's, fresh noise at each level: the nine that stage 2 was trained at.
      dmd: how clips are scored.
      ratio: critic updates per update of the generator.
      ema_decay, ema_from: of the generator's average, which is what ships.
    """

    sampler: SamplerConfig = SamplerConfig(sigmas=pairs.student_sigmas(), horizon_seconds=5, context_noise=0.1)
    dmd: DmdConfig = GUIDED
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begin:
    """Where a run stands, and what it begins from.

    Attributes:
      folder: checkpoints and metrics; a run goes on with what it holds.
      teacher, student: weights folders, the student's of stage 2.
      minutes: ends the run sooner; what is left is for the next one.
      sample_every: steps after which clips and their contact sheets go to `folder`/samples.
    """

    folder: Path
    teacher: Path
    student: Path
    minutes: float | None
    sample_every: int | None = None


def gradients(
    players: SelfForcing | WholeClip, clips_of: Callable[[dict[str, Any]], Streams] | None = None
) -> tuple[gradient.Gradient, gradient.Gradient]:
    """Build what the trainer asks of the generator and of the critic.

    Args:
      players: of one of the methods.
      clips_of: takes the clips that they begin from out of a batch; None where they begin from noise.
    """
    contexts = partial(words.contexts, train_teacher.word_vectors())

    def given(batch: dict[str, Any]) -> dict[str, Streams]:
        return {} if clips_of is None else {"clips": clips_of(batch)}

    def generator(params: Any, batch: dict, key: jax.Array, extra: None, critic: Any, teacher: Any):
        prompts, empty = contexts(batch["ids"]), contexts(words.blank(batch["ids"]))
        value, metrics, grads = players.generator(params, prompts, empty, key, critic, teacher, **given(batch))
        return gradient.Graded(value, metrics, extra, grads)

    def critic_loss(params: Any, batch: dict, key: jax.Array, extra: None, generator: Any, teacher: Any):
        value, metrics = players.critic(params, contexts(batch["ids"]), key, generator, **given(batch))
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
    blanks = (spec.init(transformer_spec(model), jax.random.key(0)) for model in (presets.CHIME, presets.CHIME_TEACHER))
    found = checkpoint.restore(checkpoint.open_manager(folder / "checkpoints"), start(Config(), *blanks)[0])
    if found is None:
        raise ValueError(f"{folder}: no checkpoint of a training with a critic")
    logging.info("%s: step %d", folder, int(found.state.step))
    return found.state.generator.ema


def train(
    config: Config,
    begin: Begin,
    players: SelfForcing | WholeClip,
    rows: dict[str, np.ndarray],
    clips_of: Callable[[dict[str, Any]], Streams] | None = None,
) -> None:
    """Train or continue both players on batches of the rows.

    Args:
      config: the run's values.
      begin: where it stands.
      players: see `gradients`.
      rows: `ids` of the prompts, and what `clips_of` takes.
      clips_of: see `gradients`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    frozen = train_teacher.exported(begin.teacher, presets.CHIME_TEACHER)
    trainer, rules = start(config, train_teacher.exported(begin.student, presets.CHIME), frozen)
    both = step.make_distill_step(
        *gradients(players, clips_of), *rules, ratio=config.ratio, ema_decay=config.ema_decay, ema_from=config.ema_from
    )
    run = loop.LoopConfig(folder=begin.folder, steps=config.steps, save_every=50, minutes=begin.minutes)
    batches = data.batches(data.ArraySource(train_teacher.by_balls(rows)), config.batch, config.seed)
    hooks = ()
    if begin.sample_every is not None:
        shipped = dataclasses.replace(CHIME_STREAM, sampler=config.sampler)
        pipeline = load_pipeline(train_teacher.ASSETS / "student", shipped)
        show = samples.sampler(begin.folder / "samples", pipeline, lambda trainer: trainer.generator.ema)
        hooks = (loop.Hook(begin.sample_every, show),)
    loop.train(run, trainer, both, batches, beside=(frozen,), hooks=hooks, describe=dataclasses.asdict(config))
