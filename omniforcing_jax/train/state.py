"""What a trainer is, as a value: parameters, optimiser state, averages, step and key.

Together with the data position (kept by the iterator, see data.py) this is everything
that a resumed run needs; checkpoint.py saves it and restores it whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """One trainer.

    Attributes:
      step: optimiser steps done, int32 scalar.
      params: masters, float32.
      opt_state: of the optimiser that `create` was given.
      ema: exponential average of params, float32, or None when it is not kept.
      extra: what a loss carries from step to step beside parameters (running statistics), or None.
      key: PRNG key; step i uses fold_in(key, i), so a resumed run draws what an unbroken one draws.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    extra: Any
    key: Any


def create(
    params: Any, optimiser: optax.GradientTransformation, seed: int, *, ema: bool = True, extra: Any = None
) -> TrainState:
    """Start a trainer from float32 parameters; the average starts as a copy of them."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimiser.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        extra=extra,
        key=jax.random.key_data(jax.random.key(seed)),
    )


def parameter_count(params: Any) -> int:
    """Count the numbers in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


Loss = Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]
