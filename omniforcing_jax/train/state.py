"""A trainer's state as a value: parameters, optimiser state, averages, step and key.

Together with the data position (kept by the iterator, see data.py) this is all that a resumed run needs. checkpoint.py
saves it and restores it whole.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from omniforcing_jax.parallel.spec import ArrayLeaf

Optimisers = tuple[optax.GradientTransformation, optax.GradientTransformation]  # of generator and critic


@struct.dataclass
class TrainState:
    """One trainer of one network.

    Attributes:
        step: Optimiser steps done, int32 scalar.
        params: Masters, float32.
        opt_state: Of the optimiser that `create` was given.
        ema: Exponential average of params, float32, or None when it is not kept.
        extra: What a loss carries from step to step beside parameters (running statistics), or None.
        key: PRNG key; step i uses fold_in(key, i), so a resumed run draws what an unbroken one draws.
    """

    step: ArrayLeaf
    params: Any
    opt_state: Any
    ema: Any
    extra: Any
    key: ArrayLeaf

    def key_of_step(self) -> jax.Array:
        """The key that the step about to be made spends."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)


@struct.dataclass
class DistillState:
    """Two networks trained against each other: the generator and the critic of its samples.

    Attributes:
        step: Steps done, int32 scalar (on the host once a step was made); each is one update of the critic.
        generator: Its own `step` counts its updates, one in `ratio` of all; has the average.
        critic: Without an average.
    """

    step: ArrayLeaf
    generator: TrainState
    critic: TrainState


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


def create_pair(generator: Any, critic: Any, optimisers: Optimisers, seed: int) -> DistillState:
    """Start two trainers from float32 parameters, which may not share buffers; each draws from a key of its own."""
    pair = create(generator, optimisers[0], seed), create(critic, optimisers[1], seed, ema=False)
    keys = jax.random.key_data(jax.random.split(jax.random.key(seed)))
    first, second = (dataclasses.replace(one, key=key) for one, key in zip(pair, keys, strict=True))
    return DistillState(step=jnp.zeros((), jnp.int32), generator=first, critic=second)


def parameter_count(params: Any) -> int:
    """Count the numbers in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
