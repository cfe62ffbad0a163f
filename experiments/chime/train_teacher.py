"""Train chime's teacher: flow matching of both streams at once, bidirectional, on 5 s clips.

Source: LTX-2's objective (specs/ltx2.md 2.9) at 4 million parameters.
Three phases. From truth with noise up to sigma 0.7 the first phase's teacher finds its way back (nine impacts in ten
are heard and seen); from 0.95 it is as lost as from pure noise. What happens in a clip is decided between 0.8 and
0.98, where its own draws of sigma seldom fall, so the second phase goes on with draws from there
(experiments/LOG.md), and the third does so once more, at a lower rate.

Hardware: two CPU cores, 75 and 68 minutes, and an hour beside other jobs for the third.
Commands, after codecs and latents:
  python -m experiments.chime.train_teacher [--minutes M]
  python -m experiments.chime.export --part teacher --run runs/chime/teacher
  python -m experiments.chime.train_teacher --phase second --begin omniforcing_jax/assets/chime/teacher \
    --folder runs/chime/teacher_second
  and, when that is exported, the same with `third`
Expect: the first phase's velocity losses `video` and `audio` fall below 0.25 both; the others' lie higher, being
taken at higher levels; evaluate judges the rest.
"""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.chime import latents
from experiments.chime.prompts import COLOURS
from omniforcing_jax import config as configs
from omniforcing_jax.distill.flow import draw_sigma, flow_loss
from omniforcing_jax.io import weights
from omniforcing_jax.layout import Block
from omniforcing_jax.model.positions import make_positions, rotaries
from omniforcing_jax.model.transformer import Transformer, keep_projections, transformer_spec
from omniforcing_jax.model.whole_clip import predict_velocity
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets
from omniforcing_jax.streams import Streams
from omniforcing_jax.text import words
from omniforcing_jax.train import checkpoint, data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig

WORDS_SEED = 7
ASSETS = Path("omniforcing_jax/assets/chime")


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
      stages: short clips first, which are cheaper by more than their length.
      empty_prompts: share of samples that see the empty prompt, for classifier-free guidance.
      sigma_mean, sigma_spread: of the logit of the noise level.
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


def word_vectors() -> words.Words:
    """The word vectors, drawn once and never trained: the network's own caption projections learn to read them."""
    return words.init_words(latents.WORDS_CONFIG, jax.random.key(WORDS_SEED))


def cut(batch: dict[str, Any], seconds: int) -> tuple[jax.Array, jax.Array]:
    """Take the first seconds of a batch of clips, as tokens [B, T, C] and [B, A, C] in float32.

    The codecs are causal, so the beginning of a clip's latents is the latents of its beginning.
    """
    video = batch["video"][:, : 1 + 3 * seconds].astype(jnp.float32)
    audio = batch["audio"][:, : 1 + 25 * seconds].astype(jnp.float32)
    return video.reshape(video.shape[0], -1, video.shape[-1]), audio


def drop_prompts(ids: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Replace a share of the prompts by the empty one."""
    return jnp.where(jax.random.uniform(key, (ids.shape[0], 1)) < share, words.blank(ids), ids)


def whole_clip(model: configs.ModelConfig, seconds: int, grid: tuple[int, int] = (4, 4)):
    """Host tables of a clip of whole seconds and a frame."""
    return make_positions(model, Block(0, 1 + 3 * seconds, 0, 1 + 25 * seconds), grid)


def by_balls(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Repeat each clip as often as its prompt names colours, which is once per ball."""
    colours = [words.FIRST_WORD + latents.WORDS_CONFIG.vocabulary.index(colour) for colour in COLOURS]
    balls = np.isin(rows["ids"], colours).sum(axis=1)
    return {name: np.repeat(array, balls, axis=0) for name, array in rows.items()}


def make_loss(config: Config, vectors: words.Words):
    """Build the trainer's loss for clips of `seconds`."""

    def for_seconds(seconds: int):
        positions = whole_clip(config.model, seconds)

        def loss(params: Transformer, batch: dict, key: jax.Array, extra: None):
            for_prompts, for_flow = jax.random.split(key)
            ids = drop_prompts(batch["ids"], for_prompts, config.empty_prompts)
            contexts = words.contexts(vectors, ids)
            rotation = rotaries(config.model, positions)

            def velocities(video: jax.Array, audio: jax.Array, sigma: jax.Array):
                noisy = Streams(video, audio)
                return predict_velocity(params, config.model, noisy, sigma, contexts, rotation, remat=keep_projections)

            draw = partial(draw_sigma, mean=config.sigma_mean, spread=config.sigma_spread)
            value, metrics = flow_loss(velocities, *cut(batch, seconds), for_flow, draw)
            return value, (metrics, extra)

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
      ValueError: if there is none.
    """
    found = checkpoint.restore(checkpoint.open_manager(folder / "checkpoints"), start(FIRST)[0])
    if found is None:
        raise ValueError(f"{folder}: no checkpoint of train_teacher")
    logging.info("%s: step %d", folder, int(found.state.step))
    return found.state.params


def exported(folder: Path, model: configs.ModelConfig) -> Transformer:
    """Read the transformer of a weights folder, in float32."""
    return weights.load_component(folder, "transformer", spec.abstract(transformer_spec(model)))


def main(
    phase: Literal["first", "second", "third"] = "first",
    folder: Path = Path("runs/chime/teacher"),
    data_file: Path = latents.FILE,
    begin: Path | None = None,
    minutes: float | None = None,
) -> None:
    """Train or continue in `folder`; a new run begins from the weights in folder `begin`, if one is given."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    config = PHASES[phase]
    rows = latents.read(data_file)
    if config.more_of_many:
        rows = by_balls(rows)
    trainer, rule = start(config)
    if begin is not None:
        trainer = state.create(exported(begin, config.model), rule, config.seed)
    logging.info("%d parameters, %d clips", state.parameter_count(trainer.params), len(rows["ids"]))
    loss, done = make_loss(config, word_vectors()), 0
    for number, stage in enumerate(config.stages):
        done += stage.steps
        update = step.make_step(gradient.of_loss(loss(stage.seconds)), rule)
        batches = data.batches(data.ArraySource(rows), stage.batch, config.seed + number)
        run = loop.LoopConfig(folder=folder, steps=done, save_every=250, minutes=minutes)
        trainer = loop.train(run, trainer, update, batches, describe=dataclasses.asdict(config))


if __name__ == "__main__":
    tyro.cli(main)
