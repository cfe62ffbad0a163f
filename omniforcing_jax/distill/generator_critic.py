"""The two players of a distillation, generator and critic, each a function that a trainer differentiates or runs.

Clips, scores and keys put together; what each of them does is said in dmd.py, self_forcing.py, backward_simulation.py
and causal_dmd.py. `SelfForcing` rolls clips out block by block (stage 3), `WholeClip` takes a clip as one function of
the parameters (stage 1, and causal DMD without a rollout). Both players make clips of their own.
Source: specs/omniforcing.md 7.1, 7.2, 7.4, 7.5.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.distill import backward_simulation, causal_dmd, dmd, self_forcing
from omniforcing_jax.distill.dmd import DmdConfig, Scorer, TextContexts
from omniforcing_jax.layout import Block, latent_frames
from omniforcing_jax.model.positions import Positions, clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.rollout import StaticConfig, make_prompt_kv
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import Config

# (params, contexts, clips, key) -> a clip, differentiable by params; clips are clean ones of the batch, None if unused
MakeClip = Callable[[Transformer, TextContexts, Streams | None, Array], Streams]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfForcingConfig(Config):
    """What stage 3 is made of, beside its networks.

    Attributes:
      seconds: length of the clips that are rolled out.
      dmd: how they are scored.
      shared_exit: one exit step for all blocks of a rollout, or one for each.
      text_gradient: whether the text projections are trained; the reference leaves them out.
    """

    seconds: int = 5
    dmd: DmdConfig = DmdConfig()
    shared_exit: bool = True
    text_gradient: bool = True


@dataclasses.dataclass(kw_only=True, eq=False)
class Players:
    """What all players share: how a clip is scored, and what the critic learns from one.

    Holds host tables and static values only.

    Attributes:
      scorer: the network that teacher and critic are.
      blocks: the block table of the clips.
      grid: latent rows and columns.
      dmd: how clips are scored.
      dtype: type to compute in.
      remat: wraps the scan over layers where the critic learns.
    """

    scorer: ModelConfig
    blocks: tuple[Block, ...]
    grid: tuple[int, int]
    dmd: DmdConfig = DmdConfig()
    dtype: DTypeLike = jnp.float32
    remat: Callable | None = None

    def __post_init__(self):
        """Place the clip's tokens."""
        self.whole_positions = _whole(self.scorer, self.blocks, self.grid)

    def _scoring(
        self, contexts: TextContexts, negative: TextContexts, key: Array, critic: Transformer, teacher: Transformer
    ) -> Callable[[Streams], tuple[Streams, dict[str, Array]]]:
        """Return what takes a clip and gives the gradient of the loss with respect to it, and metrics."""
        turned = rotaries(self.scorer, self.whole_positions)
        scorer = Scorer(teacher=teacher, critic=critic, rotaries=turned, model=self.scorer, dtype=self.dtype)
        return lambda clip: dmd.score_clip(clip, scorer, contexts, negative, key, self.blocks, self.dmd)

    def _critic_loss(
        self, params: Transformer, clip: Streams, contexts: TextContexts, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        turned = rotaries(self.scorer, self.whole_positions)
        learn = partial(dmd.critic_loss, dtype=self.dtype, remat=self.remat)
        return learn(params, self.scorer, clip, contexts, turned, key, self.dmd)


class SelfForcing(Players):
    """The players of stage 3, for one student's setting.

    Args:
      static: the student's network, sampler and latent grid.
      scorer: the network that teacher and critic are.
      config: see SelfForcingConfig.
      remat: wraps the scan over layers of what is differentiated.

    Raises:
      ValueError: if no whole number of blocks fills the clip, or the student's horizon is another length.
    """

    def __init__(
        self, static: StaticConfig, scorer: ModelConfig, config: SelfForcingConfig, *, remat: Callable | None = None
    ) -> None:
        layout = static.sampler.layout
        blocks = layout.blocks(latent_frames(layout.frames_for(config.seconds)))
        if static.sampler.horizon_seconds != config.seconds:
            raise ValueError(f"seconds={config.seconds}: the student's horizon is {static.sampler.horizon_seconds} s")
        super().__init__(
            scorer=scorer, blocks=blocks, grid=static.grid, dmd=config.dmd, dtype=static.dtype, remat=remat
        )
        self.static, self.config = static, config
        self.positions = self_forcing.clip_positions(static, len(blocks))

    def generator(
        self,
        params: Transformer,
        contexts: TextContexts,
        negative: TextContexts,
        key: Array,
        critic: Transformer,
        teacher: Transformer,
    ) -> tuple[Array, dict[str, Array], Transformer]:
        """Roll out, score, and carry the score back.

        Args:
          params: the student's.
          contexts: text features of a batch of prompts.
          negative: those of the negative prompt, as many rows.
          key: spent on exit steps, rollout and scoring.
          critic: as it stands.
          teacher: frozen.

        Returns:
          The loss (half the mean of the gradient on the clip squared), metrics, and the parameters' gradient.
        """
        for_score, exits, draw = self._draws(key, contexts)
        gradient, _, metrics = self_forcing.two_pass_gradient(
            params,
            contexts,
            self._scoring(contexts, negative, for_score, critic, teacher),
            exits,
            draw,
            self.positions,
            self.blocks,
            self.static,
            text_gradient=self.config.text_gradient,
            remat=self.remat,
        )
        return metrics.pop("dmd"), metrics, gradient

    def critic(
        self, params: Transformer, contexts: TextContexts, key: Array, generator: Transformer
    ) -> tuple[Array, dict[str, Array]]:
        """Return the critic's loss, to be differentiated by `params`, on a rollout of its own.

        Args:
          params: the critic's.
          contexts: text features of a batch of prompts.
          key: spent on exit steps, rollout, noise level and noise.
          generator: the student as it stands.
        """
        for_loss, exits, draw = self._draws(key, contexts)
        prompt = make_prompt_kv(generator, *contexts, static=self.static)
        made = self_forcing.roll_out(
            generator, prompt, exits, draw, self.positions, self.static, contexts.video.shape[0]
        )
        return self._critic_loss(params, made.x0.joined(), contexts, for_loss)

    def _draws(self, key: Array, contexts: TextContexts) -> tuple[Array, Array, self_forcing.Draw]:
        for_exits, for_rows, rest = jax.random.split(key, 3)
        exits = self_forcing.draw_exits(for_exits, len(self.blocks), self.static, shared=self.config.shared_exit)
        keys = jax.random.split(for_rows, contexts.video.shape[0])
        return rest, exits, self_forcing.noise_from_keys(keys, self.static)


@dataclasses.dataclass(kw_only=True, eq=False)
class WholeClip(Players):
    """The players of stage 1 and of causal DMD, whose clip is one function of the generator's parameters.

    Attributes:
      make_clip: such as `from_simulation` or `from_clips` make.
    """

    make_clip: MakeClip

    def generator(
        self,
        params: Transformer,
        contexts: TextContexts,
        negative: TextContexts,
        key: Array,
        critic: Transformer,
        teacher: Transformer,
        clips: Streams | None = None,
    ) -> tuple[Array, dict[str, Array], Transformer]:
        """Make a clip, score it, and carry the score back.

        Args:
          params: the generator's.
          contexts: text features of a batch of prompts.
          negative: those of the negative prompt, as many rows.
          key: spent on the clip and on scoring.
          critic: as it stands.
          teacher: frozen.
          clips: what `make_clip` begins from, if anything.

        Returns:
          As `SelfForcing.generator`.
        """
        for_clip, for_score = jax.random.split(key)
        score = self._scoring(contexts, negative, for_score, critic, teacher)
        gradient, _, metrics = dmd.one_graph_gradient(
            lambda params: self.make_clip(params, contexts, clips, for_clip), params, score
        )
        return metrics.pop("dmd"), metrics, gradient

    def critic(
        self,
        params: Transformer,
        contexts: TextContexts,
        key: Array,
        generator: Transformer,
        clips: Streams | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Return the critic's loss, to be differentiated by `params`, on a clip of its own.

        Args:
          params: the critic's.
          contexts: text features of a batch of prompts.
          key: spent on the clip, noise level and noise.
          generator: as it stands.
          clips: as for the generator.
        """
        for_clip, for_loss = jax.random.split(key)
        return self._critic_loss(params, self.make_clip(generator, contexts, clips, for_clip), contexts, for_loss)


def from_simulation(
    model: ModelConfig,
    sigmas: tuple[float, ...],
    blocks: tuple[Block, ...],
    grid: tuple[int, int],
    *,
    dtype: DTypeLike = jnp.float32,
    remat: Callable | None = None,
) -> MakeClip:
    """Make stage 1's clips: predicted from one of the inputs that the few-step sampler simulates from fresh noise.

    Args:
      model: the generator's network, bidirectional.
      sigmas: its noise levels, from 1 to 0.
      blocks: ends with the clip; where the blocks lie does not matter.
      grid: latent rows and columns.
      dtype: type to compute in.
      remat: wraps the scan over layers of what is differentiated.
    """
    whole_positions, end = _whole(model, blocks, grid), blocks[-1]
    sizes_v = end.video_end * grid[0] * grid[1], model.video.latent_channels
    sizes_a = end.audio_end, model.audio.latent_channels

    def make_clip(params: Transformer, contexts: TextContexts, clips: Streams | None, key: Array) -> Streams:
        for_entry, *for_noise = jax.random.split(key, 3)
        levels, turned, batch = (
            jnp.asarray(sigmas, jnp.float32),
            rotaries(model, whole_positions),
            contexts.video.shape[0],
        )
        shapes = ((len(sigmas) - 1, batch, *sizes) for sizes in (sizes_v, sizes_a))
        noise = Streams(*map(jax.random.normal, for_noise, shapes))
        trajectory = backward_simulation.simulate(params, model, noise, levels, contexts, turned, dtype=dtype)
        entry = backward_simulation.draw_entry(for_entry, batch, levels)
        predict = partial(backward_simulation.predict_from, dtype=dtype, remat=remat)
        return predict(params, model, trajectory, entry, levels, contexts, turned)

    return make_clip


def from_clips(
    model: ModelConfig,
    sigmas: tuple[float, ...],
    blocks: tuple[Block, ...],
    grid: tuple[int, int],
    *,
    window: int | None = None,
    pin_prefix: bool = False,
    dtype: DTypeLike = jnp.float32,
    remat: Callable | None = None,
) -> MakeClip:
    """Make causal DMD's clips: clean ones, noised block by block, through one masked forward.

    Args:
      model: the student's network, without text AdaLN.
      sigmas: its noise levels, from 1 to 0.
      blocks: the block table of the clips.
      grid: latent rows and columns.
      window: as in `view.masked`.
      pin_prefix: as there.
      dtype: type to compute in.
      remat: wraps the scan over layers.
    """
    whole_positions = _whole(model, blocks, grid)

    def make_clip(params: Transformer, contexts: TextContexts, clips: Streams | None, key: Array) -> Streams:
        if clips is None:
            raise ValueError("clips=None: causal DMD begins from clean clips")
        for_levels, for_noise = jax.random.split(key)
        levels = jnp.asarray(sigmas, jnp.float32)
        drawn = causal_dmd.draw_levels(for_levels, clips.video.shape[0], len(blocks), levels)
        return causal_dmd.predict_masked(
            params,
            model,
            clips,
            dmd.draw_noise(for_noise, clips),
            drawn,
            contexts,
            rotaries(model, whole_positions),
            blocks,
            window=window,
            pin_prefix=pin_prefix,
            dtype=dtype,
            remat=remat,
        )

    return make_clip


def _whole(model: ModelConfig, blocks: tuple[Block, ...], grid: tuple[int, int]) -> Positions:
    return make_positions(model, clip_block(blocks[-1].video_end, blocks[-1].audio_end), grid)
