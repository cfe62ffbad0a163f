"""One optimiser step as a pure, compiled function of (state, batch)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from omniforcing_jax.train.state import Loss, TrainState


def make_step(
    loss: Loss, optimiser: optax.GradientTransformation, *, ema_decay: float = 0.999
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Compile `(state, batch) -> (state, metrics)`; the old state's buffers are donated.

    Args:
      loss: `(params, batch, key, extra) -> (scalar, (metrics, extra))`, pure.
      optimiser: applied to the gradient of the scalar with respect to params.
      ema_decay: of the average; it warms up as (1 + step) / (10 + step), so early steps are forgotten.

    Returns:
      The step. Its metrics are the loss's own plus `loss` and `grad_norm`, float32 scalars on the device.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, (metrics, extra)), grads = gradient(state.params, batch, key, state.extra)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "loss": value, "grad_norm": optax.tree.norm(grads)}
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = None if state.ema is None else optax.incremental_update(params, state.ema, 1 - decay)
        next_state = dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema, extra=extra
        )
        return next_state, metrics

    return jax.jit(step, donate_argnums=0)
