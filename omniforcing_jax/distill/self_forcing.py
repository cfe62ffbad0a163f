"""Stage 3, joint self-forcing: the student learns from clips that it made itself, against its own cache.

Two passes. The first rolls a clip out without gradient and keeps, of every block, the noisy input of its exit step and
the result. Whatever scores the whole clip then says how each block should change. The second pass walks the blocks
again with a fresh cache: one vjp of the exit step and one clean pass each, nothing else is replayed, so that the
memory of a step is that of one block. `single_graph` is the same in one differentiable function, which tests hold
against it; its memory grows with the clip.

No gradient crosses a block's border: history is a constant, and only the exit step of a block, with its own keys and
values, is differentiated. Text keys and values belong to the graph; the reference cuts them out, so that its caption
projections and parts of its text attentions are never trained (specs/omniforcing.md 8.2, 3).

Source: OmniForcing stage 3, specs/omniforcing.md 7.4; DESIGN 4.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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

Draw = Callable[[Array, Array | int, BlockPositions], Streams]  # (block, denoise step, tables) -> noise of the block


class Clip(NamedTuple):
    """A clip block by block: block 0, and all later ones stacked on a leading axis."""

    first: Streams
    later: Streams

    def joined(self) -> Streams:
        """Join the blocks to tokens [B, T, C] and [B, A, E]."""
        return Streams(*(_join(first, later) for first, later in zip(self.first, self.later, strict=True)))


class Rollout(NamedTuple):
    """What the first pass keeps.

    Attributes:
      noisy: input of every block's exit step.
      x0: its clean estimate, which is the clip.
    """

    noisy: Clip
    x0: Clip


@struct.dataclass
class ClipTables:
    """Where the blocks of a clip stand: block 0, and all later ones stacked on a leading axis."""

    first: BlockPositions
    later: BlockPositions


def clip_positions(static: StaticConfig, blocks: int) -> ClipTables:
    """Make the tables of a clip of `blocks` blocks, on the host.

    Raises:
      ValueError: if there is no block beside block 0.
    """
    if blocks < 2:
        raise ValueError(f"blocks={blocks}: a rollout needs block 0 and at least one later block")
    later = [rollout.block_positions(static, k) for k in range(1, blocks)]
    return ClipTables(
        first=rollout.block_positions(static, 0), later=jax.tree.map(lambda *leaves: np.stack(leaves), *later)
    )


def draw_exits(key: Key[Array, ""], blocks: int, static: StaticConfig, *, shared: bool = True) -> Int[Array, " K"]:
    """Draw the denoise step after which each block stops: one for all blocks, or one per block."""
    drawn = jax.random.randint(key, (1 if shared else blocks,), 0, static.sampler.steps)
    return jnp.broadcast_to(drawn, (blocks,))


def noise_from_keys(keys: Key[Array, " B"], static: StaticConfig) -> Draw:
    """Draw noise just as a stream of these keys does."""
    return lambda block, step, positions: rollout.draw_noise(keys, block, step, static, positions)


def split_blocks(clip: Streams, blocks: tuple[Block, ...]) -> Clip:
    """Cut the tokens of a clip into blocks; the inverse of `Clip.joined`."""
    first = blocks[0]
    per_frame = clip.video.shape[1] // blocks[-1].video_end
    cuts = (first.video_frames * per_frame, first.audio_frames)

    def later(x: Array, start: int) -> Array:
        rest = x[:, start:]
        return jnp.moveaxis(rest.reshape(len(x), len(blocks) - 1, -1, x.shape[-1]), 1, 0)

    return Clip(
        first=Streams(*(x[:, :cut] for x, cut in zip(clip, cuts, strict=True))),
        later=Streams(*(later(x, cut) for x, cut in zip(clip, cuts, strict=True))),
    )


def roll_out(
    params: Transformer,
    prompt: PromptKV,
    exits: Int[Array, " K"],
    draw: Draw,
    positions: ClipTables,
    static: StaticConfig,
    batch: int,
) -> Rollout:
    """Roll a clip out with the real cache, each block up to its exit step: the first pass.

    Args:
      params: the student's.
      prompt: what `rollout.make_prompt` made of the prompts.
      exits: the exit step of every block, 0 to M - 1.
      draw: where noise comes from.
      positions: of the clip.
      static: what is static.
      batch: clips.
    """

    def block(cache: Cache, positions: BlockPositions, exit_step: Array) -> tuple[Cache, tuple[Streams, Streams]]:
        noisy, x0 = _to_exit(params, cache, prompt, exit_step, draw, positions, static)
        return _commit(params, cache, prompt, x0, draw, positions, static), (noisy, x0)

    cache = rollout.make_cache(static, batch)
    cache, first = block(cache, positions.first, exits[0])
    _, later = jax.lax.scan(lambda cache, each: block(cache, *each), cache, (positions.later, exits[1:]))
    return jax.lax.stop_gradient(Rollout(*(Clip(f, rest) for f, rest in zip(first, later, strict=True))))


def pull_back(
    params: Transformer,
    prompt: PromptKV,
    made: Rollout,
    cotangent: Clip,
    exits: Int[Array, " K"],
    draw: Draw,
    positions: ClipTables,
    static: StaticConfig,
    *,
    remat: Callable | None = None,
) -> tuple[Transformer, PromptKV]:
    """Carry a gradient on the clip back to the parameters: the second pass.

    Args:
      params: the student's.
      prompt: as in the first pass, like all that follows.
      made: what the first pass kept.
      cotangent: gradient with respect to the clip.
      exits: the exit step of every block.
      draw: where noise comes from.
      positions: of the clip.
      static: what is static.
      remat: wraps the scan over layers of what is differentiated.

    Returns:
      The gradient with respect to the parameters (those that lie behind the prompt excepted), and the one with
      respect to the prompt, which the caller pulls back through `make_prompt`.
    """
    zeros = partial(jax.tree.map, jnp.zeros_like)

    def block(state, each):
        cache, sums = state
        positions, exit_step, noisy, x0, wanted = each

        def exit_x0(params: Transformer, prompt: PromptKV) -> Streams:
            return _exit(params, cache, prompt, exit_step, noisy, positions, static, remat)

        _, pull = jax.vjp(exit_x0, params, prompt)
        sums = jax.tree.map(jnp.add, sums, pull(wanted))
        return (_commit(params, cache, prompt, x0, draw, positions, static), sums), None

    batch = made.x0.first.video.shape[0]
    state = (rollout.make_cache(static, batch), zeros((params, prompt)))
    state, _ = block(state, (positions.first, exits[0], made.noisy.first, made.x0.first, cotangent.first))
    later = (positions.later, exits[1:], made.noisy.later, made.x0.later, cotangent.later)
    (_, sums), _ = jax.lax.scan(block, state, later)
    return sums


def two_pass_gradient(
    params: Transformer,
    contexts: TextContexts,
    score: Callable[[Streams], tuple[Streams, Any]],
    exits: Int[Array, " K"],
    draw: Draw,
    positions: ClipTables,
    blocks: tuple[Block, ...],
    static: StaticConfig,
    *,
    text_gradient: bool = True,
    remat: Callable | None = None,
) -> tuple[Transformer, Streams, Any]:
    """Roll out, score, pull back.

    Args:
      params: the student's.
      contexts: text features of the prompts.
      score: takes the clip [B, T, C] and [B, A, E] and gives the gradient with respect to it, and anything else.
      exits: exit step of every block.
      draw: where noise comes from.
      positions: of the clip.
      blocks: block table of the clip.
      static: what is static.
      text_gradient: whether gradients go through text keys and values to the caption projections and the text
        attentions; off is the reference's reading.
      remat: wraps the scan over layers of what is differentiated.

    Returns:
      The gradient of the parameters, the clip, and what else `score` gave.
    """
    prompt, pull_text = jax.vjp(lambda p: _prompt(p, contexts, static), params)
    made = roll_out(params, prompt, exits, draw, positions, static, contexts.video.shape[0])
    clip = made.x0.joined()
    cotangent, extra = score(clip)
    wanted = split_blocks(cotangent, blocks)
    gradient, of_prompt = pull_back(params, prompt, made, wanted, exits, draw, positions, static, remat=remat)
    if text_gradient:
        gradient = jax.tree.map(jnp.add, gradient, pull_text(of_prompt)[0])
    return gradient, clip, extra


def single_graph(
    params: Transformer,
    contexts: TextContexts,
    exits: Int[Array, " K"],
    draw: Draw,
    static: StaticConfig,
    *,
    text_gradient: bool = True,
) -> Streams:
    """Roll a clip out as one differentiable function of the parameters: the oracle, slow and plain.

    Arguments as `two_pass_gradient`; returns the clip.
    """
    prompt = _prompt(params, contexts, static)
    if not text_gradient:
        prompt = jax.lax.stop_gradient(prompt)
    held = jax.lax.stop_gradient((params, prompt))
    cache, made = rollout.make_cache(static, contexts.video.shape[0]), []
    for k in range(len(exits)):
        positions = rollout.block_positions(static, k)
        noisy, _ = jax.lax.stop_gradient(_to_exit(held[0], cache, held[1], exits[k], draw, positions, static))
        x0 = _exit(params, cache, prompt, exits[k], noisy, positions, static)
        made.append(x0)
        kept = jax.lax.stop_gradient(x0)
        cache = jax.lax.stop_gradient(_commit(held[0], cache, held[1], kept, draw, positions, static))
    return Streams(*(jnp.concatenate(pieces, axis=1) for pieces in zip(*made, strict=True)))


def _prompt(params: Transformer, contexts: TextContexts, static: StaticConfig) -> PromptKV:
    return rollout.make_prompt_kv(params, *contexts, static=static)


def _to_exit(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    exit_step: Int[Array, ""],
    draw: Draw,
    positions: BlockPositions,
    static: StaticConfig,
) -> tuple[Streams, Streams]:
    """Denoise up to the exit step; returns its noisy input and its clean estimate."""
    sigmas, shares = rollout.levels(static)

    def one(step: Array, state: tuple[Streams, rollout.CleanEstimate]) -> tuple[Streams, rollout.CleanEstimate]:
        fresh = draw(cache.blocks_done, step, positions)
        noisy = rollout.renoise(state[1], fresh, sigmas[step], shares[step], static)
        text = _text_at(prompt, step)
        return noisy, rollout.denoise_step(params, cache, text, noisy, sigmas[step], positions, static)

    start = rollout.first_estimate(draw(cache.blocks_done, 0, positions))
    noisy, last = jax.lax.fori_loop(0, exit_step + 1, one, (start.noise, start))
    return noisy, last.x0


def _exit(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    exit_step: Int[Array, ""],
    noisy: Streams,
    positions: BlockPositions,
    static: StaticConfig,
    remat: Callable | None = None,
) -> Streams:
    sigma = rollout.levels(static)[0][exit_step]
    text = _text_at(prompt, exit_step)
    return rollout.denoise_step(params, cache, text, noisy, sigma, positions, static, remat=remat).x0


def _commit(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    x0: Streams,
    draw: Draw,
    positions: BlockPositions,
    static: StaticConfig,
) -> Cache:
    noise = None
    if static.sampler.context_noise:
        noise = draw(cache.blocks_done, static.sampler.steps, positions)
    return rollout.clean_pass(params, cache, prompt, x0, noise, positions, static)


def _text_at(prompt: PromptKV, step: Int[Array, ""]) -> Text:
    return jax.tree.map(lambda x: x[step], prompt.denoise) if prompt.per_step else prompt.denoise


def _join(first: Array, later: Array) -> Array:
    rest = jnp.moveaxis(later, 0, 1)
    return jnp.concatenate([first, rest.reshape(len(first), -1, first.shape[-1])], axis=1)
