"""Train chime's teacher: flow matching of both streams at once, bidirectional, on 5 s clips.

Source: LTX-2's objective (specs/ltx2.md 2.9) at 4 million parameters.
Hardware: two CPU cores, about 75 minutes.
Command: python -m experiments.chime.train_teacher [--begin omniforcing_jax/assets/chime/teacher] [--minutes M]
  (after codecs and latents; --begin goes on from weights that were exported, with a schedule and optimiser of its own)
Expect: the velocity losses `video` and `audio` fall below 0.25 both; evaluate judges the rest.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.chime import latents
from omniforcing_jax import config as configs
from omniforcing_jax import weights
from omniforcing_jax.distill.flow import flow_loss
from omniforcing_jax.layout import Block
from omniforcing_jax.model.place import place, rotaries
from omniforcing_jax.model.transformer import Transformer, keep_projections, predict, text_kv, transformer_spec
from omniforcing_jax.model.view import bidirectional, one_sigma
from omniforcing_jax.nn import spec
from omniforcing_jax.text import words
from omniforcing_jax.train import checkpoint, data, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig

WORDS_SEED = 7


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
    """

    model: configs.ModelConfig = configs.CHIME_TEACHER
    stages: tuple[Stage, ...] = (Stage(seconds=2, batch=20, steps=1400), Stage(seconds=5, batch=8, steps=4000))
    optimiser: OptimiserConfig = OptimiserConfig(
        kind="muon", learning_rate=3e-3, steps=5400, warmup=100, decay_from=0.4, b2=0.99
    )
    empty_prompts: float = 0.1
    seed: int = 30


CONFIG = Config()


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
    empty = jnp.where(jnp.arange(ids.shape[1]) == 0, words.START, words.PAD)[None]
    return jnp.where(jax.random.uniform(key, (ids.shape[0], 1)) < share, empty, ids)


def whole_clip(model: configs.ModelConfig, seconds: int, grid: tuple[int, int] = (4, 4)):
    """Host tables of a clip of whole seconds and a frame."""
    return place(model, Block(0, 1 + 3 * seconds, 0, 1 + 25 * seconds), grid)


def make_loss(config: Config, vectors: words.Words):
    """Build the trainer's loss for clips of `seconds`."""

    def for_seconds(seconds: int):
        places = whole_clip(config.model, seconds)

        def loss(params: Transformer, batch: dict, key: jax.Array, extra: None):
            for_prompts, for_flow = jax.random.split(key)
            ids = drop_prompts(batch["ids"], for_prompts, config.empty_prompts)
            context = words.embed(vectors, ids)
            text = text_kv(params, context, context, ids != words.PAD)
            rotation = rotaries(config.model, places)

            def velocities(video: jax.Array, audio: jax.Array, sigma: jax.Array):
                view = bidirectional(config.model, rotation, one_sigma(sigma))
                prediction = predict(params, config.model, video, audio, view, text, remat=keep_projections)
                return prediction.video, prediction.audio

            value, metrics = flow_loss(velocities, *cut(batch, seconds), for_flow)
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
    found = checkpoint.restore(checkpoint.open_manager(folder / "checkpoints"), start(CONFIG)[0])
    if found is None:
        raise ValueError(f"{folder}: no checkpoint of train_teacher")
    logging.info("%s: step %d", folder, int(found[0].step))
    return found[0].params


def exported(folder: Path, model: configs.ModelConfig) -> Transformer:
    """Read the transformer of a weights folder, in float32."""
    return weights.load_component(folder, "transformer", spec.abstract(transformer_spec(model)))


def main(
    folder: Path = Path("runs/chime/teacher"),
    data_file: Path = Path("runs/chime/latents.safetensors"),
    begin: Path | None = None,
    minutes: float | None = None,
) -> None:
    """Train or continue in `folder`; a new run begins from the weights in folder `begin`, if one is given."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    config = CONFIG
    rows = latents.read(data_file)
    trainer, rule = start(config)
    if begin is not None:
        trainer = state.create(exported(begin, config.model), rule, config.seed)
    logging.info("%d parameters, %d clips", state.parameter_count(trainer.params), len(rows["ids"]))
    loss, done = make_loss(config, word_vectors()), 0
    for number, stage in enumerate(config.stages):
        done += stage.steps
        update = step.make_step(loss(stage.seconds), rule)
        batches = data.batches(data.ArraySource(rows), stage.batch, config.seed + number)
        run = loop.LoopConfig(folder=folder, steps=done, save_every=250, minutes=minutes)
        trainer = loop.train(run, trainer, update, batches, describe=dataclasses.asdict(config))


if __name__ == "__main__":
    tyro.cli(main)
