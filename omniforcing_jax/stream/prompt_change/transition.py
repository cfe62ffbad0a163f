"""A prompt that changes at block borders.

A change replaces the text keys and values of both streams and recomputes a part of the past (`recache.py`). With a fade
the contexts change in equal steps over several blocks, and every step is a change of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from omniforcing_jax.model.cache import Cache
from omniforcing_jax.rollout import PromptKV, StaticConfig, StreamNetwork, make_prompt_kv
from omniforcing_jax.stream.prompt_change.recache import CommitInputs, recache
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.contexts import TextContexts

LONGEST_FADE = 1_000_000  # blocks


@struct.dataclass
class PromptTransition:
    """The text of a stream, and the text that it changes to.

    Attributes:
        now: Contexts of the stream's present text keys and values.
        goal: Contexts that the stream changes to.
        left: Block borders until the goal is reached, an int on the host; 0 changes nothing.
        recompute: Clean passes at each of these borders, an int on the host.
    """

    now: TextContexts
    goal: TextContexts
    left: int
    recompute: int


class Advanced(NamedTuple):
    """The parts of a stream's state that a step of a transition replaces."""

    transition: PromptTransition
    prompt: PromptKV
    cache: Cache


def no_transition(contexts: TextContexts) -> PromptTransition:
    """Make the transition of a stream whose prompt does not change."""
    return PromptTransition(now=contexts, goal=contexts, left=0, recompute=0)


def begin_transition(
    transition: PromptTransition, goal: TextContexts, *, recompute: int, fade: int
) -> PromptTransition:
    """Change to `goal` from the next border on.

    Args:
        transition: The transition so far, finished or not.
        goal: Contexts to change to.
        recompute: Clean passes at each border of the change.
        fade: Blocks under mixed contexts before the goal is reached.

    Raises:
        ValueError: If the shapes of the contexts differ from those of the stream, or a number is negative.
    """
    require(recompute >= 0, "recompute", recompute, "must not be negative")
    require(0 <= fade <= LONGEST_FADE, "fade", fade, f"must be between 0 and {LONGEST_FADE}")
    for name, old, new in zip(TextContexts._fields, transition.now, goal, strict=True):
        shapes = [None if x is None else x.shape for x in (old, new)]
        require(shapes[0] == shapes[1], f"contexts: {name}", shapes[1], f"must be {shapes[0]}, as in the first prompt")
    return dataclasses.replace(transition, goal=goal, left=1 + fade, recompute=recompute)


def advance_transition(
    network: StreamNetwork,
    transition: PromptTransition,
    cache: Cache,
    inputs: CommitInputs,
    *,
    done: int,
    static: StaticConfig,
    trace: Callable[[str, int, PyTree], None],
) -> Advanced:
    """Take the next step of a transition at the border before block `done`.

    Args:
        network: The network.
        transition: A transition with borders left.
        cache: The cache after `done` commits; it is donated.
        inputs: Keys and latents of the stream. Its prompt is replaced.
        done: Number of blocks committed so far.
        static: Static config.
        trace: Called with "text", and with "recompute" for every clean pass.
    """
    now = transition.goal if transition.left == 1 else _mix(transition.now, transition.goal, 1 / transition.left)
    prompt = make_prompt_kv(network.params, *now, static=static)
    trace("text", done, prompt)
    inputs = dataclasses.replace(inputs, prompt=prompt)
    cache = recache(network, cache, inputs, transition.recompute, done=done, static=static, trace=trace)
    return Advanced(dataclasses.replace(transition, now=now, left=transition.left - 1), prompt, cache)


@jax.jit
def _mix(now: TextContexts, goal: TextContexts, part: Float[Array, ""] | float) -> TextContexts:
    """Mix contexts: a part of the way from `now` to `goal`. A token that only one of them has is zero in the other."""

    def mix(one: Array, other: Array) -> Array:
        if now.mask is not None and goal.mask is not None:
            one, other = one * (now.mask != 0)[..., None], other * (goal.mask != 0)[..., None]
        return one + part * (other - one)

    mask = None if now.mask is None or goal.mask is None else jnp.maximum(now.mask, goal.mask)
    return TextContexts(mix(now.video, goal.video), mix(now.audio, goal.audio), mask)
