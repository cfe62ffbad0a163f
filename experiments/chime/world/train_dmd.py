"""What chime's trainings with a critic share: their values, what they begin from, and the run.

The generator is a causal student, teacher and critic are bidirectional. What clip is scored is the recipe's
(train_self_forcing.py, train_causal_dmd.py).
"""

import dataclasses
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.judge import samples
from experiments.chime.world import recipe
from experiments.script import start_logging
from omniforcing_jax.cli.sample import parse_guidance
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.generator_critic import Frozen
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.presets import CHIME_STREAM
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.text import words
from omniforcing_jax.train import data, state
from omniforcing_jax.train.distil import DistillConfig, Networks, distil
from omniforcing_jax.train.optimiser import OptimiserConfig
from omniforcing_jax.train.step import DistillMethod

STEPS, GUIDANCE = 700, ("3",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DistillConfig):
    """One run.

    Attributes:
        sampler: The student's, fresh noise at each level: the nine that stage 2 was trained at.
        dmd: How clips are scored.
    """

    sampler: SamplerConfig = recipe.SAMPLER
    dmd: DmdConfig = DmdConfig(guidance=parse_guidance(GUIDANCE))
    batch: int = 8
    steps: int = STEPS
    ratio: int = 2
    generator: OptimiserConfig = OptimiserConfig(
        kind="adam", learning_rate=1e-4, steps=STEPS // 2, warmup=10, decay_from=0.4, b1=0.0, b2=0.99
    )
    critic: OptimiserConfig = OptimiserConfig(
        kind="adam", learning_rate=3e-4, steps=STEPS, warmup=20, decay_from=0.8, b1=0.0, b2=0.99
    )
    ema_decay: float = 0.97
    ema_from: int = 40
    seed: int = 50


C = TypeVar("C", bound=Config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(recipe.RunArguments):
    """What a training with a critic takes."""

    teacher: Path = CHIME_WEIGHTS / "teacher"
    """Weights folder of the teacher; the critic begins as it."""
    student: Path = recipe.RUNS / "weights" / "stage2"
    """Weights folder of the stage-2 student that the generator begins as."""
    guidance: tuple[str, ...] = GUIDANCE
    """Of the teacher's score, as `omniforcing sample` takes it."""
    guidance_from: float = Config.dmd.guidance_from
    """Least share of it that a clip has, drawn evenly from there to 1."""
    steps: int = Config.steps
    """Steps of the critic in all; the rates fall to zero by then."""
    seed: int = Config.seed
    """Random seed of clips, order and scores."""
    sample_every: int | None = None
    """Steps after which clips and their contact sheets go to FOLDER/samples; by default never."""

    def configure(self, config: C) -> C:
        """Put the flags into a run's values; both rates fall to zero by the last step.

        Raises:
            ValueError: In one line that names the flag.
        """
        if self.steps < config.ratio:
            raise ValueError(f"--steps {self.steps}: must be at least {config.ratio}, which update the generator once")
        return dataclasses.replace(
            config,
            dmd=dataclasses.replace(
                config.dmd, guidance=parse_guidance(self.guidance), guidance_from=self.guidance_from
            ),
            steps=self.steps,
            generator=dataclasses.replace(config.generator, steps=self.steps // config.ratio),
            critic=dataclasses.replace(config.critic, steps=self.steps),
            seed=self.seed,
        )


def with_contexts(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Give each prompt, ids [N, X], its text features, as a store of contexts has them."""
    video, audio, mask = words.contexts(recipe.word_vectors(), jnp.asarray(ids))
    return {"context_video": np.asarray(video), "context_audio": np.asarray(audio), "context_mask": np.asarray(mask)}


def trained(folder: Path) -> Transformer:
    """Read the generator's average from a run's newest checkpoint.

    Raises:
        ValueError: If there is none.
    """
    config, key = Config(), jax.random.key(0)
    generator, critic = (spec.init(transformer_spec(m), key) for m in (presets.CHIME, presets.CHIME_TEACHER))
    like = state.create_pair(generator, critic, config.optimisers(), config.seed)
    return recipe.newest(folder, like).generator.ema


def train(config: Config, arguments: Arguments, method: DistillMethod, rows: dict[str, np.ndarray]) -> None:
    """Train or continue generator and critic.

    Args:
        config: The run's values.
        arguments: Where it is, and what it begins from.
        method: The gradients of both networks.
        rows: `ids` of the prompts, and what else the method begins from; a prompt comes as often as it has balls.
    """
    start_logging()
    student = recipe.read_transformer(arguments.student, presets.CHIME)
    teacher = recipe.read_transformer(arguments.teacher, presets.CHIME_TEACHER)
    rows = recipe.by_balls(rows)
    ids = rows.pop("ids")
    batches = data.batches(data.ArraySource({**with_contexts(ids), **rows}), config.batch, config.seed)
    empty = words.contexts(recipe.word_vectors(), words.blank(jnp.asarray(ids[:1])))
    critic, frozen = jax.tree.map(jnp.copy, teacher), Frozen(teacher, empty)
    networks = Networks(student, critic, frozen, transformer_spec(presets.CHIME), config.seed)
    shipped = dataclasses.replace(CHIME_STREAM, sampler=config.sampler)
    hooks = samples.hooks(arguments.folder, arguments.sample_every, shipped, lambda now: now.generator.ema)
    run, described = arguments.loop(config.steps, save_every=50), dataclasses.asdict(config)
    distil(method, config, networks, batches, run, hooks=hooks, describe=described)
