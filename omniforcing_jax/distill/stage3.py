"""Stage 3 as its two players, the generator and the critic, each a function that the trainer can differentiate or run.

Rollouts, scores and keys put together; what each of them does is said in self_forcing.py and dmd.py. Both players make
rollouts of their own. Source: specs/omniforcing.md 7.1, 7.4.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array

from omniforcing_jax.config import Config, ModelConfig
from omniforcing_jax.distill import dmd, self_forcing
from omniforcing_jax.distill.dmd import DmdConfig, Scorer
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.place import clip_block, place, rotaries
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.rollout import Latents, Setting, make_prompt
from omniforcing_jax.text.contexts import Contexts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage3Config(Config):
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


class Stage3:
    """The players for one student's setting; holds host tables and static values only.

    Args:
      setting: the student's network, sampler and latent grid.
      scorer: the network that teacher and critic are.
      config: see Stage3Config.
      remat: wraps the scan over layers where the critic learns.

    Raises:
      ValueError: if no whole number of blocks fills the clip, or the student's horizon is another length.
    """

    def __init__(
        self, setting: Setting, scorer: ModelConfig, config: Stage3Config, *, remat: Callable | None = None
    ) -> None:
        layout = setting.sampler.layout
        self.blocks = layout.blocks(latent_frames(layout.frames_for(config.seconds)))
        if setting.sampler.horizon_seconds != config.seconds:
            raise ValueError(f"seconds={config.seconds}: the student's horizon is {setting.sampler.horizon_seconds} s")
        self.setting, self.scorer, self.config, self.remat = setting, scorer, config, remat
        self.tables = self_forcing.clip_tables(setting, len(self.blocks))
        end = self.blocks[-1]
        self.places = place(scorer, clip_block(end.video_end, end.audio_end), setting.grid)

    def generator(
        self,
        params: Transformer,
        contexts: Contexts,
        negative: Contexts,
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
        scorer = Scorer(
            teacher=teacher,
            critic=critic,
            rotaries=rotaries(self.scorer, self.places),
            model=self.scorer,
            dtype=self.setting.dtype,
        )

        def score(clip: Latents) -> tuple[Latents, dict[str, Array]]:
            return dmd.score_clip(clip, scorer, contexts, negative, for_score, self.blocks, self.config.dmd)

        gradient, _, metrics = self_forcing.two_pass_gradient(
            params,
            contexts,
            score,
            exits,
            draw,
            self.tables,
            self.blocks,
            self.setting,
            text_gradient=self.config.text_gradient,
        )
        return metrics.pop("dmd"), metrics, gradient

    def critic(
        self, params: Transformer, contexts: Contexts, key: Array, generator: Transformer
    ) -> tuple[Array, dict[str, Array]]:
        """Return the critic's loss, to be differentiated by `params`, on a rollout of its own.

        Args:
          params: the critic's.
          contexts: text features of a batch of prompts.
          key: spent on exit steps, rollout, noise level and noise.
          generator: the student as it stands.
        """
        for_loss, exits, draw = self._draws(key, contexts)
        prompt = make_prompt(generator, *contexts, setting=self.setting)
        made = self_forcing.roll_out(generator, prompt, exits, draw, self.tables, self.setting, contexts.video.shape[0])
        learn = partial(dmd.critic_loss, dtype=self.setting.dtype, remat=self.remat)
        turned = rotaries(self.scorer, self.places)
        return learn(params, self.scorer, made.x0.joined(), contexts, turned, for_loss, self.config.dmd)

    def _draws(self, key: Array, contexts: Contexts) -> tuple[Array, Array, self_forcing.Draw]:
        for_exits, for_rows, rest = jax.random.split(key, 3)
        exits = self_forcing.draw_exits(for_exits, len(self.blocks), self.setting, shared=self.config.shared_exit)
        keys = jax.random.split(for_rows, contexts.video.shape[0])
        return rest, exits, self_forcing.noise_from_keys(keys, self.setting)
