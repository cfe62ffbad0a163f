r"""Train chime's teacher: flow matching of both streams at once, bidirectional, on 5 s clips.

There are three phases. From truth with noise up to sigma 0.7 the first phase's teacher finds its way back: nine
impacts in ten are heard and seen. From 0.95 it is as lost as from pure noise. What happens in a clip is decided
between 0.8 and 0.98, where the first phase's draws of sigma seldom fall. So the second phase goes on with draws from
there, and the third does so once more, at a lower rate (experiments/LOG.md). Clips come from encode_clips.

Source: LTX-2's objective, at 4 million parameters.
Hardware: two CPU cores, 75 and 68 minutes, and an hour beside other jobs for the third.
Expect: the first phase's velocity losses `video` and `audio` fall below 0.25 both. The others' are higher, being taken
at higher levels. Evaluate judges the rest.

    python -m experiments.chime.train_teacher
    python -m experiments.chime.export_networks --part teacher --run runs/chime/teacher
    python -m experiments.chime.train_teacher --phase second --begin omniforcing_jax/assets/chime/teacher \
        --folder runs/chime/teacher_second
    python -m experiments.chime.export_networks --part teacher --run runs/chime/teacher_second
    python -m experiments.chime.train_teacher --phase third --begin omniforcing_jax/assets/chime/teacher \
        --folder runs/chime/teacher_third
"""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.chime.world import latents, recipe
from experiments.script import read_flags, start_logging
from omniforcing_jax import config as configs
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.flow import draw_sigma, flow_loss
from omniforcing_jax.model.transformer import Transformer, keep_projections, transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets
from omniforcing_jax.streams import Streams
from omniforcing_jax.text import words
from omniforcing_jax.train import data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Clips of so many whole seconds (and a frame) for so many steps."""

    seconds: int
    batch: int
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
        stages: Short clips first, which are cheaper by more than their length.
        empty_prompts: Share of samples that see the empty prompt, for classifier-free guidance. sigma_mean,
            sigma_spread: of the logit of the noise level.
        more_of_many: a clip of n balls comes n times as often: one ball is learned first, three are what is hard.
    """

    model: configs.ModelConfig = presets.CHIME_TEACHER
    stages: tuple[Stage, ...] = (Stage(seconds=2, batch=20, steps=1400), Stage(seconds=5, batch=8, steps=4000))
    optimiser: OptimiserConfig = OptimiserConfig(
        kind="muon", learning_rate=3e-3, steps=5400, warmup=100, decay_from=0.4, b2=0.99
    )
    empty_prompts: float = 0.1
    sigma_mean: float = 0.8
    sigma_spread: float = 1.2
    more_of_many: bool = False
    seed: int = 30


FIRST = Config()
SECOND = Config(
    stages=(Stage(seconds=5, batch=8, steps=5000),),
    optimiser=OptimiserConfig(kind="muon", learning_rate=2e-3, steps=5000, warmup=100, decay_from=0.25, b2=0.99),
    sigma_mean=2.2,
    sigma_spread=1.0,
    more_of_many=True,
    seed=31,
)
THIRD = dataclasses.replace(
    SECOND,
    stages=(Stage(seconds=5, batch=8, steps=3000),),
    optimiser=OptimiserConfig(kind="muon", learning_rate=1.5e-3, steps=3000, warmup=50, decay_from=0.3, b2=0.99),
    seed=32,
)
PHASES = {"first": FIRST, "second": SECOND, "third": THIRD}


def make_loss(config: Config, vectors: words.Words):
    """Build the trainer's loss for clips of `seconds`."""

    def for_seconds(seconds: int):
        places = recipe.whole_clip(config.model, seconds)

        def loss(params: Transformer, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            for_prompts, for_flow = jax.random.split(key)
            ids = recipe.drop_prompts(batch["ids"], for_prompts, config.empty_prompts)
            network, contexts = clip_network(config.model, places, remat=keep_projections), words.contexts(vectors, ids)
            clip = Streams(*(x.astype(jnp.float32) for x in recipe.cut(batch, seconds)))
            draw = partial(draw_sigma, mean=config.sigma_mean, spread=config.sigma_spread)
            return flow_loss(lambda x, sigma: network.velocity(params, x, sigma, contexts), clip, for_flow, draw)

        return loss

    return for_seconds


def start(config: Config) -> tuple[state.TrainState, Any]:
    """Make a fresh trainer and its optimiser."""
    params = spec.init(transformer_spec(config.model), jax.random.key(config.seed))
    rule = optimiser.optimiser(config.optimiser)
    return state.create(params, rule, config.seed), rule


def trained(folder: Path) -> Transformer:
    """Read the weights of a run's newest checkpoint: its own, not the average, because the rate ends at zero.

    Raises:
        ValueError: If there is none.
    """
    return recipe.newest(folder, start(FIRST)[0]).params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(recipe.RunArguments):
    """Train chime's teacher."""

    folder: Path = recipe.RUNS / "teacher"
    phase: Literal["first", "second", "third"] = "first"
    """Which of the three phases."""
    data_file: Path = latents.FILE
    """Clips to train on, from encode_clips."""
    begin: Path | None = None
    """Weights folder that a new run begins from; by default weights are random."""


def main(arguments: Arguments) -> None:
    """Run the phase's stages one after the other, from where the folder is."""
    start_logging()
    config = PHASES[arguments.phase]
    rows = latents.read(arguments.data_file)
    if config.more_of_many:
        rows = recipe.by_balls(rows)
    trainer, rule = start(config)
    if arguments.begin is not None:
        trainer = state.create(recipe.read_transformer(arguments.begin, config.model), rule, config.seed)
    logging.info("%d parameters, %d clips", state.parameter_count(trainer.params), len(rows["ids"]))
    loss, done = make_loss(config, recipe.word_vectors()), 0
    for number, stage in enumerate(config.stages):
        done += stage.steps
        update = step.make_step(gradient.of_loss(loss(stage.seconds)), rule)
        batches = data.batches(data.ArraySource(rows), stage.batch, config.seed + number)
        run = arguments.loop(done, save_every=250)
        trainer = loop.train(run, trainer, update, batches, describe=dataclasses.asdict(config))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
