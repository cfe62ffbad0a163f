"""A learning rate that begins to fall when it is told to: one compiled program, whatever the number of steps."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from omniforcing_jax.train.optimiser import OptimiserConfig, optimiser
from omniforcing_jax.train.state import TrainState

NEVER = 2**30


class Fall(NamedTuple):
    """State: updates so far, and between which of them the rate falls to zero."""

    count: Any
    begins: Any
    ends: Any


def held_rates(rates: OptimiserConfig) -> optax.GradientTransformation:
    """Make the optimiser of a recipe: its rate warms up and stays until `let_fall`, then falls along its cosine.

    Only the last rate, zero, is the recipe's otherwise.

    Raises:
        ValueError: if the recipe ends at another rate.
    """
    if rates.last_rate:
        raise ValueError(f"last_rate={rates.last_rate}: must be 0")
    whole = dataclasses.replace(rates, steps=NEVER, decay_from=1.0)
    return optax.chain(optimiser(whole), optax.GradientTransformation(_begin, _scale))


def let_fall(trainer: TrainState, steps: int) -> TrainState:
    """Let the rate fall to zero over the next so many steps."""
    before, fall = trainer.opt_state
    # A copy: a step donates every buffer, and none twice.
    falling = fall._replace(begins=jnp.array(fall.count), ends=fall.count + steps)
    return dataclasses.replace(trainer, opt_state=(before, falling))


def _begin(params: Any) -> Fall:
    return Fall(count=jnp.int32(0), begins=jnp.int32(NEVER), ends=jnp.int32(NEVER))


def _scale(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    """Scale updates, which are in proportion to the rate."""
    done = jnp.clip((state.count - state.begins) / jnp.maximum(state.ends - state.begins, 1), 0, 1)
    factor = (1 + jnp.cos(jnp.pi * done)) / 2
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state._replace(count=state.count + 1)
