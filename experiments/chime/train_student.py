"""Make chime's causal student: stage-2 regression, prefix layout, 4 sinks.

Two choices are open. The context is noisy, as the reference has it, or clean, which is what a stream will see. Entries
are those of the teacher's trajectories (make_pairs), or straight lines from real clips to fresh noise, which is what a
stream's own re-noising between steps looks like. Three things are added to the reference's stage 2: guidance is
learned into the prediction, some samples have a conditioning stream, and some have a past of another prompt. What came
of it is in experiments/LOG.md. All phases of train_teacher come first.

Source: OmniForcing (arXiv 2603.11647), stage 2.
Hardware: two CPU cores, 37 minutes.
Expect: velocity losses near 0.33 both, because guided targets lie farther apart than plain ones; evaluate judges the
rest.

    python -m experiments.chime.train_student
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.chime.judge import samples
from experiments.chime.world import latents, pairs, recipe
from experiments.chime.world.trajectories import BLOCKS, change_pasts, recorded, straight
from experiments.script import read_flags, start_logging
from omniforcing_jax import config as configs
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.ode import Context, Error, OdeConfig, Prompts, ode_loss
from omniforcing_jax.model.dual_stream import Text
from omniforcing_jax.model.transformer import Transformer, keep_projections, text_kv, transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.text import words
from omniforcing_jax.train import data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig

Entries = Literal["data", "teacher"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
        entries: Of rendered clips, or of the teacher's trajectories.
        ode: How the student regresses on them. Guidance is learned into the prediction: without it the teacher itself
            shows the right number of balls in half of its clips only, with a scale of 3 in most of them. Conditioning
            lets the student be driven by a picture or a sound. Context noise, in training and in the stream, hides the
            small errors of a block from the next one.
        empty_prompts: Share of samples that see the empty prompt, which guidance pushes away from.
        changes: Share of samples whose past, up to a border drawn at random, is that of another clip with another
            prompt. A stream sees the same when its prompt changes and its past is made again under the new one.
    """

    model: configs.ModelConfig = presets.CHIME
    entries: Entries = "data"
    ode: OdeConfig = OdeConfig(
        context=Context.CLEAN, context_noise=0.1, error=Error.VELOCITY, guidance=3.0, conditioned=0.2
    )
    batch: int = 8
    optimiser: OptimiserConfig = OptimiserConfig(
        kind="muon", learning_rate=2e-3, steps=1200, warmup=30, decay_from=0.3, b2=0.99
    )
    empty_prompts: float = 0.1
    changes: float = 0.2
    seed: int = 40


CONFIG = Config()


def from_teacher(config: Config, teacher: Transformer) -> Transformer:
    """Start from the teacher's weights and fresh audio sinks."""
    fresh = spec.init(transformer_spec(config.model), jax.random.key(config.seed))
    return dataclasses.replace(teacher, sinks=fresh.sinks)


def make_loss(config: Config, vectors: words.Words):
    """Build the trainer's loss."""
    places = recipe.whole_clip(config.model, recipe.SECONDS)
    sigmas = jnp.array(recipe.STUDENT_SIGMAS, jnp.float32)
    make_trajectory = straight if config.entries == "data" else recorded

    def texts(params: Transformer, ids: jax.Array) -> Text:
        return text_kv(params, *words.contexts(vectors, ids))

    def loss(params: Transformer, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        for_entries, for_loss, for_prompts, for_pasts = jax.random.split(key, 4)
        trajectory = make_trajectory(batch, sigmas, for_entries)
        if config.changes:
            trajectory = change_pasts(trajectory, for_pasts, config.changes)
        ids = recipe.drop_prompts(batch["ids"], for_prompts, config.empty_prompts)
        empty = None if config.ode.guidance == 1 else texts(params, words.blank(ids))
        text, network = Prompts(texts(params, ids), empty), clip_network(config.model, places, remat=keep_projections)
        return ode_loss(params, trajectory, text, for_loss, BLOCKS, network, config.ode)

    return loss


def start(config: Config, teacher: Transformer) -> tuple[state.TrainState, Any]:
    """Make a fresh trainer and its optimiser."""
    rule = optimiser.optimiser(config.optimiser)
    return state.create(from_teacher(config, teacher), rule, config.seed), rule


def trained(folder: Path) -> Transformer:
    """Read the weights of a run's newest checkpoint: its own, not the average, because the rate ends at zero.

    Raises:
        ValueError: If there is none.
    """
    blank = spec.init(transformer_spec(presets.CHIME_TEACHER), jax.random.key(0))
    return recipe.newest(folder, start(CONFIG, blank)[0]).params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(recipe.RunArguments):
    """Make a causal student of chime's teacher, by stage 2."""

    folder: Path = recipe.RUNS / "student"
    context: Context = CONFIG.ode.context
    """What a block sees of its past while it learns."""
    entries: Entries = CONFIG.entries
    """Learn from rendered clips, or from trajectories of the teacher (make_pairs)."""
    teacher: Path = CHIME_WEIGHTS / "teacher"
    """Weights folder of the teacher that a new student begins from, with fresh sinks."""
    begin: Path | None = None
    """Weights folder of a student to begin from instead."""
    data_file: Path = latents.FILE
    """Clips to train on, from encode_clips."""
    steps: int = CONFIG.optimiser.steps
    """Stop after so many steps in all."""
    sample_every: int | None = None
    """Steps after which clips and their contact sheets go to FOLDER/samples; by default never."""


def main(arguments: Arguments) -> None:
    """Train or continue."""
    start_logging()
    rates = dataclasses.replace(CONFIG.optimiser, steps=arguments.steps)
    ode = dataclasses.replace(CONFIG.ode, context=arguments.context)
    config = dataclasses.replace(CONFIG, optimiser=rates, ode=ode, entries=arguments.entries)
    rows = recipe.by_balls(latents.read(arguments.data_file) if config.entries == "data" else pairs.read())
    if arguments.begin is None:
        trainer, rule = start(config, recipe.read_transformer(arguments.teacher, presets.CHIME_TEACHER))
    else:
        rule = optimiser.optimiser(config.optimiser)
        trainer = state.create(recipe.read_transformer(arguments.begin, config.model), rule, config.seed)
    update = step.make_step(gradient.of_loss(make_loss(config, recipe.word_vectors())), rule)
    batches = data.batches(data.ArraySource(rows), config.batch, config.seed)
    hooks = samples.hooks(arguments.folder, arguments.sample_every, recipe.student_config(), lambda now: now.params)
    run = arguments.loop(config.optimiser.steps, save_every=100)
    loop.train(run, trainer, update, batches, hooks=hooks, describe=dataclasses.asdict(config))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
