"""Self gradient forcing: stage 3 whose gradient also reaches what a block leaves in the cache.

In plain self-forcing a block's keys and values are history: nothing teaches the clean pass to write what later blocks
need. Here the clip is rolled out as ever, without gradient. Then it is replayed whole, as a teacher-forced sequence:
one masked forward of the clean clip, and one of all exit steps at once on its keys and values. Both are differentiated.
The replay makes the clip that was rolled out, and its memory grows with the clip, where that of two passes does not.

Source: Self Gradient Forcing, arXiv 2607.20368. The clip itself stays a constant: no gradient goes from a block through
an earlier block's pixels, nor through its denoise steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from omniforcing_jax import rollout
from omniforcing_jax.distill.clip_network import ClipNetwork, clip_network, spread_levels
from omniforcing_jax.distill.self_forcing import BlockwiseClip, Draws, M, Rollout, RolloutPlan, roll_out
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.model.transformer import Transformer, predict
from omniforcing_jax.model.view import one_sigma
from omniforcing_jax.nn.attention import as_past
from omniforcing_jax.schedule import add_noise, to_x0
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts


def replayed_gradient(
    params: Transformer,
    contexts: TextContexts,
    score: Callable[[Streams], tuple[Streams, M]],
    draws: Draws,
    plan: RolloutPlan,
) -> tuple[Transformer, Streams, M]:
    """Roll out, score, and differentiate a replay; as `self_forcing.two_pass_gradient`.

    Raises:
        ValueError: As `replay`.
    """
    prompt = rollout.make_prompt_kv(params, *contexts, static=plan.static)
    made = roll_out(params, prompt, draws, plan, contexts.video.shape[0])
    cotangent, more = score(made.x0.joined())
    _, pull = jax.vjp(lambda params: replay(params, contexts, made, draws, plan), params)
    return pull(cotangent)[0], made.x0.joined(), more


def replay(params: Transformer, contexts: TextContexts, made: Rollout, draws: Draws, plan: RolloutPlan) -> Streams:
    """Make a rolled-out clip once more in two forwards, as a differentiable function of the parameters.

    Args:
        params: The student's.
        contexts: Text features of the prompts.
        made: What was rolled out.
        draws: With what.
        plan: See RolloutPlan.

    Raises:
        ValueError: As `ClipNetwork.masked_text` and `view.on_context`.
    """
    network, blocks, batch = _network(plan), plan.blocks, contexts.video.shape[0]
    text = network.masked_text(params, contexts)
    text = text if plan.text_gradient else jax.lax.stop_gradient(text)
    options = {"dtype": network.dtype, "remat": network.remat}
    level = jnp.full((batch,), plan.static.sampler.context_noise, jnp.float32)
    clean = predict(
        params, network.model, _context(made, draws, plan), network.masked(one_sigma(level), blocks), text, **options
    )
    noisy, exits = made.noisy.joined(), rollout.levels(plan.static)[0][draws.exits]
    levels = jnp.broadcast_to(exits, (batch, len(blocks)))
    sigmas, per_token = spread_levels(levels, blocks, noisy.video.shape[1] // blocks[-1].video_end)
    view, past = network.on_context(sigmas, blocks), as_past(clean.fresh)
    velocity = predict(params, network.model, noisy, view, text, past=past, **options).velocity
    return jax.tree.map(to_x0, noisy, velocity, per_token)


def _network(plan: RolloutPlan) -> ClipNetwork:
    static, end = plan.static, plan.blocks[-1]
    positions = make_positions(static.model, clip_block(end.video_end, end.audio_end), static.grid)
    return clip_network(static.model, positions, dtype=static.dtype, remat=plan.remat, student=static.sampler)


def _context(made: Rollout, draws: Draws, plan: RolloutPlan) -> Streams:
    """Noise the clip as the clean passes of its blocks did."""
    sampler = plan.static.sampler
    if not sampler.context_noise:
        return made.x0.joined()
    numbers = jnp.arange(1, len(plan.blocks))
    noise = BlockwiseClip(
        first=draws.noise(jnp.int32(0), sampler.steps, plan.positions.first),
        later=jax.lax.map(lambda each: draws.noise(each[0], sampler.steps, each[1]), (numbers, plan.positions.later)),
    )
    sigma = jnp.float32(sampler.context_noise)
    return jax.tree.map(lambda x, n: add_noise(x, n, sigma), made.x0.joined(), noise.joined())
