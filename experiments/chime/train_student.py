"""Make chime's first causal student: stage-2 regression on the teacher's trajectories.

Source: OmniForcing stage 2 (specs/omniforcing.md 7.3), prefix layout, 4 sinks; on noisy context as the reference
has it, or on clean context, which is what a stream will see.
Hardware: two CPU cores, about 20 minutes.
Command: python -m experiments.chime.train_student --context clean|noisy [--minutes M]   (after pairs)
Expect: experiments/LOG.md records both contexts.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.chime import pairs, train_teacher
from omniforcing_jax import config as configs
from omniforcing_jax.distill.ode import Context, Trajectory, ode_loss
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.place import rotaries
from omniforcing_jax.model.transformer import Transformer, text_kv, transformer_spec
from omniforcing_jax.nn import spec
from omniforcing_jax.text import words
from omniforcing_jax.train import checkpoint, data, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: configs.ModelConfig = configs.CHIME
    batch: int = 8
    optimiser: OptimiserConfig = OptimiserConfig(
        kind="muon", learning_rate=2e-3, steps=1200, warmup=50, decay_from=0.3, b2=0.99
    )
    seed: int = 40


CONFIG = Config()
BLOCKS = PREFIX.blocks(1 + 3 * pairs.SECONDS)


def from_teacher(config: Config, teacher: Transformer) -> Transformer:
    """Start from the teacher's weights and fresh audio sinks."""
    fresh = spec.init(transformer_spec(config.model), jax.random.key(config.seed))
    return dataclasses.replace(teacher, sinks=fresh.sinks)


def make_loss(config: Config, vectors: words.Words, sigmas: jax.Array, context: Context):
    """Build the trainer's loss."""
    places = train_teacher.whole_clip(config.model, pairs.SECONDS)

    def loss(params: Transformer, batch: dict, key: jax.Array, extra: None):
        ids = batch["ids"]
        embedded = words.embed(vectors, ids)
        text = text_kv(params, embedded, embedded, ids != words.PAD)
        trajectory = Trajectory(
            video=batch["video"].astype(jnp.float32).swapaxes(0, 1),
            audio=batch["audio"].astype(jnp.float32).swapaxes(0, 1),
            sigmas=sigmas,
        )
        rotation = rotaries(config.model, places)
        value, metrics = ode_loss(params, config.model, trajectory, text, rotation, BLOCKS, key, context=context)
        return value, (metrics, extra)

    return loss


def start(config: Config, teacher: Transformer) -> tuple[state.TrainState, Any]:
    """Make a fresh trainer and its optimiser."""
    rule = optimiser.optimiser(config.optimiser)
    return state.create(from_teacher(config, teacher), rule, config.seed), rule


def averaged(folder: Path) -> Transformer:
    """Read the averaged weights of a run's newest checkpoint.

    Raises:
      ValueError: if there is none.
    """
    blank = spec.init(transformer_spec(configs.CHIME_TEACHER), jax.random.key(0))
    found = checkpoint.restore(checkpoint.open_manager(folder / "checkpoints"), start(CONFIG, blank)[0])
    if found is None:
        raise ValueError(f"{folder}: no checkpoint of train_student")
    logging.info("%s: step %d", folder, int(found[0].step))
    return found[0].ema


def main(
    context: Context,
    folder: Path | None = None,
    teacher: Path = Path("runs/chime/teacher"),
    pairs_file: Path = Path("runs/chime/pairs.safetensors"),
    minutes: float | None = None,
) -> None:
    """Train or continue in `folder` (default runs/chime/student_CONTEXT)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    config = CONFIG
    rows, sigmas = pairs.read(pairs_file)
    trainer, rule = start(config, train_teacher.averaged(teacher))
    update = step.make_step(make_loss(config, train_teacher.word_vectors(), jnp.asarray(sigmas), context), rule)
    batches = data.batches(data.ArraySource(rows), config.batch, config.seed)
    run = loop.LoopConfig(
        folder=folder or Path(f"runs/chime/student_{context}"),
        steps=config.optimiser.steps,
        save_every=200,
        minutes=minutes,
    )
    loop.train(run, trainer, update, batches, describe=dataclasses.asdict(config))


if __name__ == "__main__":
    tyro.cli(main)
