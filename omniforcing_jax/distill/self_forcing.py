"""Stage 3, joint self-forcing: the student learns from clips that it made itself, against its own cache.

Two passes. The first rolls a clip out without gradient and keeps, of every block, the noisy input of its exit step and
the result. Whatever scores the whole clip then says how each block should change. The second pass walks the blocks
again with a fresh cache: one vjp of the exit step and one clean pass each. Nothing else is replayed, so the memory of a
step is that of one block. `single_graph` is the same as one differentiable function, which tests hold against it; its
memory grows with the clip.

No gradient crosses a block's border: history is a constant, and only the exit step of a block, with its own keys and
values, is differentiated. Text keys and values belong to the graph. The reference cuts them out, so its caption
projections and parts of its text attentions are never trained.

Source: OmniForcing (arXiv 2603.11647), stage 3; OmniForcing@50a271f:ltx_distillation/dmd.py.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int, Key

from omniforcing_jax import rollout
from omniforcing_jax.layout import Block
from omniforcing_jax.model.cache import Cache
from omniforcing_jax.model.dual_stream import Text
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.rollout import BlockPositions, PromptKV, StaticConfig
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

DrawNoise = Callable[
    [Array, Array | int, BlockPositions], Streams
]  # (block, denoise step, tables) -> noise of the block
M = TypeVar("M")


class BlockwiseClip(NamedTuple):
    """A clip block by block: block 0, and all later ones stacked on a leading axis."""

    first: Streams
    later: Streams

    def joined(self) -> Streams:
        """Join the blocks to tokens [B, T, C] and [B, A, E]."""
        return jax.tree.map(_join, self.first, self.later)


class Rollout(NamedTuple):
    """What the first pass keeps.

    Attributes:
        noisy: Input of every block's exit step.
        x0: Its clean estimate, which is the clip.
    """

    noisy: BlockwiseClip
    x0: BlockwiseClip


class Draws(NamedTuple):
    """What is drawn for a rollout.

    Attributes:
        exits: The exit step of every block, 0 to M - 1, [K].
        noise: Where noise comes from.
    """

    exits: Int[Array, " K"]
    noise: DrawNoise


@struct.dataclass
class ClipTables:
    """Positions of a clip's blocks: block 0, and all later ones stacked on a leading axis."""

    first: BlockPositions
    later: BlockPositions


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RolloutPlan:
    """What is fixed when clips of one length are rolled out.

    Attributes:
        static: The student's network, sampler and latent grid.
        blocks: Block table of the clip.
        positions: Positions of the blocks, host arrays.
        text_gradient: Whether gradients go through text keys and values to the caption projections and the text
            attentions; off is the reference's reading.
        remat: Wraps the scan over layers of what is differentiated.
    """

    static: StaticConfig
    blocks: tuple[Block, ...]
    positions: ClipTables
    text_gradient: bool = True
    remat: Callable | None = None


class _At(NamedTuple):
    """A block about to be made: the cache before it, its positions, and its exit step."""

    cache: Cache
    positions: BlockPositions
    exit_step: Int[Array, ""]


def plan_rollout(
    static: StaticConfig, blocks: int, *, text_gradient: bool = True, remat: Callable | None = None
) -> RolloutPlan:
    """Plan rollouts of `blocks` blocks; makes their tables, on the host.

    Raises:
        ValueError: If there is no block beside block 0.
    """
    if blocks < 2:
        raise ValueError(f"blocks={blocks}: a rollout needs block 0 and at least one later block")
    positions = [rollout.block_positions(static, k) for k in range(blocks)]
    later = jax.tree.map(lambda *leaves: np.stack(leaves), *positions[1:])
    return RolloutPlan(
        static=static,
        blocks=tuple(static.sampler.layout.block(k) for k in range(blocks)),
        positions=ClipTables(first=positions[0], later=later),
        text_gradient=text_gradient,
        remat=remat,
    )


def draw_exits(key: Key[Array, ""], blocks: int, static: StaticConfig, *, shared: bool = True) -> Int[Array, " K"]:
    """Draw the denoise step after which each block stops: one for all blocks, or one per block."""
    drawn = jax.random.randint(key, (1 if shared else blocks,), 0, static.sampler.steps)
    return jnp.broadcast_to(drawn, (blocks,))


def noise_from_keys(keys: Key[Array, " B"], static: StaticConfig) -> DrawNoise:
    """Draw noise as a stream with these keys does."""
    return lambda block, step, positions: rollout.draw_noise(keys, block, step, static, positions)


def split_blocks(clip: Streams, blocks: tuple[Block, ...]) -> BlockwiseClip:
    """Cut the tokens of a clip into blocks; the inverse of `BlockwiseClip.joined`."""
    first, per_frame = blocks[0], clip.video.shape[1] // blocks[-1].video_end

    def cut(x: Array, tokens: int) -> tuple[Array, Array]:
        later = x[:, tokens:].reshape(len(x), len(blocks) - 1, -1, x.shape[-1])
        return x[:, :tokens], jnp.moveaxis(later, 1, 0)

    video, later_video = cut(clip.video, first.video_frames * per_frame)
    audio, later_audio = cut(clip.audio, first.audio_frames)
    return BlockwiseClip(first=Streams(video, audio), later=Streams(later_video, later_audio))


def roll_out(params: Transformer, prompt: PromptKV, draws: Draws, plan: RolloutPlan, batch: int) -> Rollout:
    """Roll a clip out with the real cache, each block up to its exit step: the first pass.

    Args:
        params: The student's.
        prompt: What `rollout.make_prompt` made of the prompts.
        draws: Exit steps and noise.
        plan: See RolloutPlan.
        batch: Clips.
    """

    def block(cache: Cache, each: tuple[BlockPositions, Array]) -> tuple[Cache, tuple[Streams, Streams]]:
        at = _At(cache, *each)
        noisy, x0 = _to_exit(params, prompt, at, draws.noise, plan.static)
        return _commit(params, prompt, at, x0, draws.noise, plan.static), (noisy, x0)

    cache = rollout.make_cache(plan.static, batch)
    cache, (noisy, x0) = block(cache, (plan.positions.first, draws.exits[0]))
    _, (noisy_later, x0_later) = jax.lax.scan(block, cache, (plan.positions.later, draws.exits[1:]))
    made = Rollout(noisy=BlockwiseClip(noisy, noisy_later), x0=BlockwiseClip(x0, x0_later))
    return jax.lax.stop_gradient(made)


def pull_back(
    params: Transformer, prompt: PromptKV, made: Rollout, cotangent: BlockwiseClip, draws: Draws, plan: RolloutPlan
) -> tuple[Transformer, PromptKV]:
    """Carry a gradient on the clip back to the parameters: the second pass.

    Args:
        params: The student's.
        prompt: As in the first pass, like all that follows.
        made: What the first pass kept.
        cotangent: Gradient with respect to the clip.
        draws: Exit steps and noise.
        plan: See RolloutPlan.

    Returns:
        The gradient with respect to the parameters (those that lie behind the prompt excepted), and the one with
        respect to the prompt, which the caller pulls back through `make_prompt`.
    """
    static, zeros = plan.static, partial(jax.tree.map, jnp.zeros_like)

    def block(state, each):
        cache, sums = state
        positions, exit_step, noisy, x0, wanted = each
        at = _At(cache, positions, exit_step)
        _, pull = jax.vjp(lambda p, text: _exit(p, text, at, noisy, static, plan.remat), params, prompt)
        sums = jax.tree.map(jnp.add, sums, pull(wanted))
        return (_commit(params, prompt, at, x0, draws.noise, static), sums), None

    batch = made.x0.first.video.shape[0]
    state = (rollout.make_cache(static, batch), zeros((params, prompt)))
    first = (plan.positions.first, draws.exits[0], made.noisy.first, made.x0.first, cotangent.first)
    later = (plan.positions.later, draws.exits[1:], made.noisy.later, made.x0.later, cotangent.later)
    (_, sums), _ = jax.lax.scan(block, block(state, first)[0], later)
    return sums


def two_pass_gradient(
    params: Transformer,
    contexts: TextContexts,
    score: Callable[[Streams], tuple[Streams, M]],
    draws: Draws,
    plan: RolloutPlan,
) -> tuple[Transformer, Streams, M]:
    """Roll out, score, pull back.

    Args:
        params: The student's.
        contexts: Text features of the prompts.
        score: Takes the clip [B, T, C] and [B, A, E] and gives the gradient with respect to it, and anything else.
        draws: Exit steps and noise.
        plan: See RolloutPlan.

    Returns:
        The gradient of the parameters, the clip, and what else `score` gave.
    """
    prompt, pull_text = jax.vjp(lambda p: _prompt(p, contexts, plan.static), params)
    made = roll_out(params, prompt, draws, plan, contexts.video.shape[0])
    clip = made.x0.joined()
    cotangent, more = score(clip)
    gradient, of_prompt = pull_back(params, prompt, made, split_blocks(cotangent, plan.blocks), draws, plan)
    if plan.text_gradient:
        gradient = jax.tree.map(jnp.add, gradient, pull_text(of_prompt)[0])
    return gradient, clip, more


def single_graph(
    params: Transformer, contexts: TextContexts, draws: Draws, plan: RolloutPlan, *, through_cache: bool = False
) -> Streams:
    """Roll a clip out as one differentiable function of the parameters: the oracle, slow and plain.

    Arguments as `two_pass_gradient`; with `through_cache` clean passes are differentiated, too. Returns the clip.
    """
    static, prompt = plan.static, _prompt(params, contexts, plan.static)
    if not plan.text_gradient:
        prompt = jax.lax.stop_gradient(prompt)
    held = jax.lax.stop_gradient((params, prompt))
    cache, made = rollout.make_cache(static, contexts.video.shape[0]), []
    for k in range(len(plan.blocks)):
        at = _At(cache, rollout.block_positions(static, k), draws.exits[k])
        noisy, _ = jax.lax.stop_gradient(_to_exit(*held, at, draws.noise, static))
        made.append(_exit(params, prompt, at, noisy, static))
        kept = jax.lax.stop_gradient(made[-1])
        writer = (params, prompt) if through_cache else held
        cache = _commit(*writer, at, kept, draws.noise, static)
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces, axis=1), *made)


def _prompt(params: Transformer, contexts: TextContexts, static: StaticConfig) -> PromptKV:
    return rollout.make_prompt_kv(params, *contexts, static=static)


def _to_exit(
    params: Transformer, prompt: PromptKV, at: _At, draw: DrawNoise, static: StaticConfig
) -> tuple[Streams, Streams]:
    """Denoise up to the exit step; returns its noisy input and its clean estimate."""
    sigmas, shares = rollout.levels(static)

    def one(step: Array, state: tuple[Streams, rollout.CleanEstimate]) -> tuple[Streams, rollout.CleanEstimate]:
        fresh = draw(at.cache.blocks_done, step, at.positions)
        noisy = rollout.renoise(state[1], fresh, sigmas[step], shares[step], static)
        text = _text_at(prompt, step)
        return noisy, rollout.denoise_step(params, at.cache, text, noisy, sigmas[step], at.positions, static)

    start = rollout.first_estimate(draw(at.cache.blocks_done, 0, at.positions))
    noisy, last = jax.lax.fori_loop(0, at.exit_step + 1, one, (start.noise, start))
    return noisy, last.x0


def _exit(
    params: Transformer, prompt: PromptKV, at: _At, noisy: Streams, static: StaticConfig, remat: Callable | None = None
) -> Streams:
    """Make the clean estimate of the exit step: what is differentiated."""
    sigma, text = rollout.levels(static)[0][at.exit_step], _text_at(prompt, at.exit_step)
    return rollout.denoise_step(params, at.cache, text, noisy, sigma, at.positions, static, remat=remat).x0


def _commit(
    params: Transformer, prompt: PromptKV, at: _At, x0: Streams, draw: DrawNoise, static: StaticConfig
) -> Cache:
    """Run the clean pass and commit the block."""
    noise = None
    if static.sampler.context_noise:
        noise = draw(at.cache.blocks_done, static.sampler.steps, at.positions)
    return rollout.clean_pass(params, at.cache, prompt, x0, noise, at.positions, static)


def _text_at(prompt: PromptKV, step: Int[Array, ""]) -> Text:
    return prompt.clean if prompt.steps is None else jax.tree.map(lambda x: x[step], prompt.steps)


def _join(first: Array, later: Array) -> Array:
    rest = jnp.moveaxis(later, 0, 1)
    return jnp.concatenate([first, rest.reshape(len(first), -1, first.shape[-1])], axis=1)
