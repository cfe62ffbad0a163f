"""Optimisers and learning-rate schedules, as data.

Muon is Adam with the momentum of each matrix made orthogonal. On chime's small networks it needs fewer steps than Adam
for the same loss (experiments/LOG.md). Which axes of a weight are its inputs and outputs depends on the layout: core
matrices are `[..., out, in]`, Flax convolution kernels `[..., in, out]`.
"""

import dataclasses
from typing import Any, Literal

import jax
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """An optimiser with warm-up, a constant stretch and a cosine to a last rate.

    Attributes:
        kind: "adam" (AdamW) or "muon" (matrices by Muon, the rest by AdamW).
        learning_rate: The peak, reached after `warmup` steps, at once where that is 0.
        steps: The length that the schedule is made for; the rate is `last_rate` from there on.
        warmup: Updates over which the rate rises from 0.
        decay_from: Fraction of `steps` at which the cosine begins; 1 keeps the rate to the end.
        last_rate: Where the cosine ends.
        b1: Decay of Adam's mean of gradients.
        b2: Decay of Adam's mean of squared gradients.
        weight_decay: Of AdamW, in units of the rate.
        clip: Global-norm bound on the gradient.
        out_axis: Axis of a matrix that counts its outputs: -2 for core matrices, -1 for Flax kernels.
    """

    kind: Literal["adam", "muon"] = "muon"
    learning_rate: float
    steps: int
    warmup: int = 50
    decay_from: float = 0.4
    last_rate: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.0
    clip: float = 1.0
    out_axis: Literal[-2, -1] = -2

    def __post_init__(self):
        """Check ranges."""
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup={self.warmup}: must be at least 0 and below steps={self.steps}")
        if not 0 <= self.decay_from <= 1:
            raise ValueError(f"decay_from={self.decay_from}: must be a fraction of the run, in [0, 1]")
        if not 0 <= self.last_rate <= self.learning_rate:
            raise ValueError(f"last_rate={self.last_rate}: must lie in [0, learning_rate={self.learning_rate}]")


def learning_rate(config: OptimiserConfig) -> optax.Schedule:
    """Warm up linearly, stay, then fall along a cosine."""
    plateau_end = max(int(config.steps * config.decay_from), config.warmup)
    peak = config.learning_rate
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, max(config.warmup, 1)),
            optax.constant_schedule(peak),
            optax.cosine_decay_schedule(peak, max(config.steps - plateau_end, 1), config.last_rate / peak),
        ],
        [config.warmup, plateau_end],
    )


def _matrix_axes(out_axis: int):
    """Say, leaf by leaf, which axes Muon treats as a matrix; None leaves the leaf to Adam."""
    numbers = optax.contrib.MuonDimensionNumbers

    def axes(path: Any, leaf: Any):
        name = jax.tree_util.keystr(path)
        if leaf.ndim < 2 or min(leaf.shape[-2:]) < 8 or "table" in name or "embedding" in name:
            return None
        if out_axis == -2:
            return numbers(reduction_axis=(leaf.ndim - 1,), output_axis=(leaf.ndim - 2,))
        return numbers(reduction_axis=tuple(range(leaf.ndim - 1)), output_axis=(leaf.ndim - 1,))

    return lambda params: jax.tree_util.tree_map_with_path(axes, params)


def optimiser(config: OptimiserConfig) -> optax.GradientTransformation:
    """Build the optax transformation that a config describes."""
    rate = learning_rate(config)
    if config.kind == "adam":
        rule = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    else:
        rule = optax.contrib.muon(
            rate,
            beta=0.95,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=_matrix_axes(config.out_axis),
            consistent_rms=0.2,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), rule)
