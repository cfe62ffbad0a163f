"""A prompt that changes at block borders: the script of a stream's text.

A change replaces the text keys and values of both streams and rebuilds as much of the past as it is told to
(`recache.py`). With a fade the contexts go over in equal parts, and every part is a change of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key, PyTree

from omniforcing_jax.model.cache import Cache
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.rollout import PromptKV, StaticConfig, make_prompt_kv
from omniforcing_jax.stream.prompt_change.history import History
from omniforcing_jax.stream.prompt_change.recache import recache
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.contexts import TextContexts


@struct.dataclass
class PromptTransition:
    """The text of a stream, and where it is going.

    Attributes:
        now: Contexts that the stream's text keys and values were made of.
        goal: Contexts that it changes to.
        left: Block borders until it is there, an int on the host; 0 changes nothing.
        recompute: Clean passes at each of these borders, an int on the host.
    """

    now: TextContexts
    goal: TextContexts
    left: int
    recompute: int


class Advanced(NamedTuple):
    """What a block border did to a stream."""

    transition: PromptTransition
    prompt: PromptKV
    cache: Cache


def no_transition(contexts: TextContexts) -> PromptTransition:
    """Make the script of a stream that keeps to its first prompt."""
    return PromptTransition(now=contexts, goal=contexts, left=0, recompute=0)


def begin_transition(
    transition: PromptTransition, goal: TextContexts, *, recompute: int, fade: int
) -> PromptTransition:
    """Change course: towards `goal` at the next border, with `fade` blocks under mixed contexts before it is reached.

    Raises:
        ValueError: if the contexts have not the form of those before, or a number is negative.
    """
    require(recompute >= 0, "recompute", recompute, "must not be negative")
    require(fade >= 0, "fade", fade, "must not be negative")
    for name, old, new in zip(TextContexts._fields, transition.now, goal, strict=True):
        shapes = [None if x is None else x.shape for x in (old, new)]
        require(shapes[0] == shapes[1], f"contexts: {name}", shapes[1], f"must be {shapes[0]}, as the stream began")
    return dataclasses.replace(transition, goal=goal, left=1 + fade, recompute=recompute)


def advance_transition(
    params: Transformer,
    transition: PromptTransition,
    cache: Cache,
    keys: Key[Array, " B"],
    history: History,
    *,
    done: int,
    static: StaticConfig,
    trace: Callable[[str, int, PyTree], None],
) -> Advanced:
    """Take one step of a script that has steps left, at the border before block `done`; the cache is used up.

    `trace` is told "text" and, for every clean pass, "recompute".
    """
    now = transition.goal if transition.left == 1 else _mix(transition.now, transition.goal, 1 / transition.left)
    prompt = make_prompt_kv(params, *now, static=static)
    trace("text", done, prompt)
    cache = recache(
        *(params, cache, prompt, keys, history, transition.recompute), done=done, static=static, trace=trace
    )
    return Advanced(dataclasses.replace(transition, now=now, left=transition.left - 1), prompt, cache)


@jax.jit
def _mix(now: TextContexts, goal: TextContexts, part: Float[Array, ""] | float) -> TextContexts:
    """Go a part of the way; a token that only one of them has counts as zero in the other."""

    def mix(one: Array, other: Array) -> Array:
        if now.mask is not None and goal.mask is not None:
            one, other = one * (now.mask != 0)[..., None], other * (goal.mask != 0)[..., None]
        return one + part * (other - one)

    mask = None if now.mask is None or goal.mask is None else jnp.maximum(now.mask, goal.mask)
    return TextContexts(mix(now.video, goal.video), mix(now.audio, goal.audio), mask)
