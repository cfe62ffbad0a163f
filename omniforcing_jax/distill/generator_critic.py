"""Generator and critic of a distillation by distribution matching: the gradients that a trainer asks for.

There is one class per method, each with two gradients: `generator` and `critic`. `SelfForcing` rolls clips out block by
block (stage 3). `BackwardSimulation` (stage 1) and `CausalDmd` (without a rollout) make a clip as one function of the
parameters. What a clip is and how it is scored is in self_forcing.py, backward_simulation.py, causal_dmd.py and dmd.py;
here are the random keys, and who sees what.

Source: OmniForcing (arXiv 2603.11647); OmniForcing@50a271f:ltx_distillation/dmd.py (stage 3) and 9c25f15 (stage 1).
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.distill import backward_simulation, causal_dmd, dmd, self_forcing, self_gradient
from omniforcing_jax.distill.clip_network import ClipNetwork, clip_network
from omniforcing_jax.distill.dmd import DmdConfig, Scorer
from omniforcing_jax.distill.flow import noise_like
from omniforcing_jax.layout import Block, latent_frames
from omniforcing_jax.model.positions import Positions, clip_block, make_positions
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.rollout import StaticConfig, make_prompt_kv
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import Config, require
from omniforcing_jax.text.contexts import TextContexts

Batch = Mapping[str, Any]  # arrays by name
Graded = tuple[Array, dict[str, Array], Transformer]  # a loss, metrics, and the parameters' gradient


class Frozen(NamedTuple):
    """What a method needs beside generator and critic, never trained.

    Attributes:
        teacher: The network whose clips are to be matched.
        negative: Context of the prompt that guidance pushes away from, one row.
    """

    teacher: Transformer
    negative: TextContexts


def contexts_of(batch: Batch) -> TextContexts:
    """Take the text features of a batch, as a store of contexts has them."""
    video, audio, mask = (batch[f"context_{name}"] for name in ("video", "audio", "mask"))
    return TextContexts(video, audio, mask.astype(jnp.int32))


def clips_of(batch: Batch) -> Streams:
    """Take the ends of a batch's trajectories, float32, as a store of pairs has them.

    Raises:
        ValueError: If the batch has none.
    """
    if "video" not in batch:
        raise ValueError(f"batch={sorted(batch)}: causal DMD begins from clips, and there are none")
    return Streams(*(batch[name][:, -1].astype(jnp.float32) for name in ("video", "audio")))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GeneratorCritic(abc.ABC):
    """What all methods share: how a clip is scored, and what the critic learns from one.

    Holds host arrays and static values only.

    Attributes:
        scorer: The network that teacher and critic are.
        blocks: The block table of the clips.
        grid: Latent rows and columns.
        dmd: How clips are scored.
        dtype: Type to compute in.
        remat: Wraps the scan over layers of what is differentiated.
    """

    scorer: ModelConfig
    blocks: tuple[Block, ...]
    grid: tuple[int, int]
    dmd: DmdConfig = DmdConfig()
    dtype: DTypeLike = jnp.float32
    remat: Callable | None = None

    @abc.abstractmethod
    def generator(self, params: Transformer, batch: Batch, key: Array, critic: Transformer, frozen: Frozen) -> Graded:
        """Make a clip, score it, and carry the score back to the generator's parameters.

        Args:
            params: The generator's.
            batch: Prompts, and what else the method begins from.
            key: Spent on the clip and on scoring.
            critic: As it is now.
            frozen: Teacher and negative prompt.

        Returns:
            The loss (half the mean of the gradient on the clip squared), metrics, and the parameters' gradient.
        """

    @abc.abstractmethod
    def sample(self, params: Transformer, batch: Batch, key: Array) -> tuple[Streams, Array]:
        """Make a clip for the critic; returns it, and the key that is left."""

    def critic(
        self, params: Transformer, batch: Batch, key: Array, generator: Transformer, frozen: Frozen | None = None
    ) -> Graded:
        """Make a clip and let the critic match its flow.

        Arguments as `generator`, with the networks exchanged; what is frozen has no part in it.
        """
        clip, for_loss = self.sample(generator, batch, key)
        network, contexts = self.network(self.scorer), contexts_of(batch)
        learn = jax.value_and_grad(dmd.critic_loss, has_aux=True)
        (loss, metrics), gradient = learn(params, network, clip, contexts, for_loss, self.dmd)
        return loss, metrics, gradient

    def network(self, model: ModelConfig) -> ClipNetwork:
        """Return the scorer's network on the clips; call it where its rotations may be traced."""
        return clip_network(model, self.positions(model), dtype=self.dtype, remat=self.remat)

    def positions(self, model: ModelConfig) -> Positions:
        """Place the tokens of a whole clip, on the host."""
        end = self.blocks[-1]
        return make_positions(model, clip_block(end.video_end, end.audio_end), self.grid)

    def scored(
        self, contexts: TextContexts, key: Array, critic: Transformer, frozen: Frozen
    ) -> Callable[[Streams], tuple[Streams, dict[str, Array]]]:
        """Return what takes a clip and gives the gradient of the loss with respect to it, and metrics."""
        scorer = Scorer(teacher=frozen.teacher, critic=critic, network=self.network(self.scorer))
        rows = contexts.video.shape[0]
        negative = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), frozen.negative)
        return lambda clip: dmd.score_clip(clip, scorer, contexts, negative, key, self.blocks, self.dmd)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfForcingConfig(Config):
    """Settings of stage 3.

    Attributes:
        seconds: Length of the clips that are rolled out.
        dmd: How they are scored.
        shared_exit: One exit step for all blocks of a rollout, or one for each.
        text_gradient: Whether the text projections are trained; the reference leaves them out.
        cache_gradient: Whether clean passes are trained to write what later blocks need: self gradient forcing, in
            place of two passes.
    """

    seconds: int = 5
    dmd: DmdConfig = DmdConfig()
    shared_exit: bool = True
    text_gradient: bool = True
    cache_gradient: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SelfForcing(GeneratorCritic):
    """Stage 3: clips are rolled out with the real cache. Made by `self_forcing_of`.

    Attributes:
        plan: What is fixed in a rollout.
        shared_exit: See SelfForcingConfig.
        cache_gradient: See SelfForcingConfig.
    """

    plan: self_forcing.RolloutPlan
    shared_exit: bool
    cache_gradient: bool = False

    def generator(self, params: Transformer, batch: Batch, key: Array, critic: Transformer, frozen: Frozen) -> Graded:
        """Roll out, score, and carry the score back in a second pass or a replay."""
        contexts = contexts_of(batch)
        draws, for_score = self._draws(key, contexts.video.shape[0])
        score = self.scored(contexts, for_score, critic, frozen)
        make = self_gradient.replayed_gradient if self.cache_gradient else self_forcing.two_pass_gradient
        gradient, _, metrics = make(params, contexts, score, draws, self.plan)
        return metrics.pop("dmd"), metrics, gradient

    def sample(self, params: Transformer, batch: Batch, key: Array) -> tuple[Streams, Array]:
        """Roll out a clip."""
        contexts = contexts_of(batch)
        rows = contexts.video.shape[0]
        draws, rest = self._draws(key, rows)
        prompt = make_prompt_kv(params, *contexts, static=self.plan.static)
        return self_forcing.roll_out(params, prompt, draws, self.plan, rows).x0.joined(), rest

    def _draws(self, key: Array, rows: int) -> tuple[self_forcing.Draws, Array]:
        for_exits, for_rows, rest = jax.random.split(key, 3)
        static = self.plan.static
        exits = self_forcing.draw_exits(for_exits, len(self.blocks), static, shared=self.shared_exit)
        noise = self_forcing.noise_from_keys(jax.random.split(for_rows, rows), static)
        return self_forcing.Draws(exits=exits, noise=noise), rest


def self_forcing_of(
    static: StaticConfig, scorer: ModelConfig, config: SelfForcingConfig, *, remat: Callable | None = None
) -> SelfForcing:
    """Make stage 3 for one student.

    Args:
        static: The student's network, sampler and latent grid.
        scorer: The network that teacher and critic are.
        config: See SelfForcingConfig.
        remat: Wraps the scan over layers of what is differentiated.

    Raises:
        ValueError: If no whole number of blocks fills the clip, the student's horizon is another length, the cache is
            in eight bits, or a cache gradient is asked of a student whose text depends on the noise level.
    """
    require(static.cache is None, "cache", static.cache, "must be None in a training: eight bits have no gradient")
    held = not static.model.text_needs_sigma or static.sampler.scalar_sigma is not None
    rule = "must be false: the text keys change with the noise level, which a replay has many of; or hold it with "
    require(held or not config.cache_gradient, "cache_gradient", True, f"{rule}the sampler's scalar_sigma")
    layout = static.sampler.layout
    blocks = layout.blocks(latent_frames(layout.frames_for(config.seconds)))
    if static.sampler.horizon_seconds != config.seconds:
        raise ValueError(f"seconds={config.seconds}: the student's horizon is {static.sampler.horizon_seconds} s")
    return SelfForcing(
        plan=self_forcing.plan_rollout(static, len(blocks), text_gradient=config.text_gradient, remat=remat),
        shared_exit=config.shared_exit,
        cache_gradient=config.cache_gradient,
        scorer=scorer,
        blocks=blocks,
        grid=static.grid,
        dmd=config.dmd,
        dtype=static.dtype,
        remat=remat,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OneGraph(GeneratorCritic):
    """A method whose clip is one differentiable function of the generator's parameters.

    Attributes:
        model: The generator's network.
    """

    model: ModelConfig

    @abc.abstractmethod
    def make_clip(self, params: Transformer, batch: Batch, key: Array) -> Streams:
        """Make a clip, differentiable by the parameters."""

    def generator(self, params: Transformer, batch: Batch, key: Array, critic: Transformer, frozen: Frozen) -> Graded:
        """Make a clip, score it, and carry the score back."""
        for_clip, for_score = jax.random.split(key)
        clip, pull = jax.vjp(lambda params: self.make_clip(params, batch, for_clip), params)
        cotangent, metrics = self.scored(contexts_of(batch), for_score, critic, frozen)(clip)
        return metrics.pop("dmd"), metrics, pull(cotangent)[0]

    def sample(self, params: Transformer, batch: Batch, key: Array) -> tuple[Streams, Array]:
        """Make a clip."""
        for_clip, rest = jax.random.split(key)
        return self.make_clip(params, batch, for_clip), rest


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BackwardSimulation(OneGraph):
    """Stage 1: clips are predicted from one of the inputs that the few-step sampler simulates from fresh noise.

    The generator is bidirectional, so where the blocks lie does not matter: the last one ends with the clip.

    Attributes:
        sigmas: The generator's noise levels, from 1 to 0.
    """

    sigmas: tuple[float, ...]

    def make_clip(self, params: Transformer, batch: Batch, key: Array) -> Streams:
        """Simulate the sampler, draw one of its inputs, and predict the clip from it."""
        for_entry, *for_noise = jax.random.split(key, 3)
        contexts, network, end = contexts_of(batch), self.network(self.model), self.blocks[-1]
        rows, levels = contexts.video.shape[0], jnp.asarray(self.sigmas, jnp.float32)
        sizes_v = end.video_end * self.grid[0] * self.grid[1], self.model.video.latent_channels
        sizes_a = end.audio_end, self.model.audio.latent_channels
        shapes = ((len(levels) - 1, rows, *sizes) for sizes in (sizes_v, sizes_a))
        noise = Streams(*map(jax.random.normal, for_noise, shapes))
        trajectory = backward_simulation.simulate(params, noise, levels, contexts, network)
        entry = backward_simulation.draw_entry(for_entry, rows, levels)
        return backward_simulation.predict_from(params, trajectory, entry, levels, contexts, network)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CausalDmd(OneGraph):
    """Causal DMD: the teacher's clips, noised block by block, go through one masked forward of the student.

    Attributes:
        sampler: What makes the generator a causal student.
    """

    sampler: SamplerConfig

    def make_clip(self, params: Transformer, batch: Batch, key: Array) -> Streams:
        """Noise the batch's clips, each block at a level of its own, and predict them.

        Raises:
            ValueError: If the batch has no clips, or as `causal_dmd.predict_masked`.
        """
        clips, for_levels, for_noise = clips_of(batch), *jax.random.split(key)
        levels = jnp.asarray(self.sampler.sigmas, jnp.float32)
        drawn = causal_dmd.draw_levels(for_levels, clips.video.shape[0], len(self.blocks), levels)
        noise = noise_like(jax.random.split(for_noise), clips)
        network = dataclasses.replace(self.network(self.model), student=self.sampler)
        return causal_dmd.predict_masked(params, clips, noise, drawn, contexts_of(batch), self.blocks, network)
