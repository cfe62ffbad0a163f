"""One step as a pure, compiled function of (state, batch, what stands beside): of one network, or of two.

Both are made of `_advance`, which is an update of one network. The old state's buffers are donated; what stands
beside (a frozen teacher) is not.
"""

import dataclasses
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from omniforcing_jax.parallel.sharding import mesh_in_use
from omniforcing_jax.parallel.spec import path_name
from omniforcing_jax.train import gradient as gradients
from omniforcing_jax.train.gradient import Gradient
from omniforcing_jax.train.state import DistillState, TrainState


@struct.dataclass
class Report:
    """What a step says of itself.

    Attributes:
      metrics: float32 scalars by name, on the device.
      finite: bool [N], whether each checked tensor holds numbers only.
      checked: names of the N tensors: the loss, each leaf of the gradient, each parameter after the update.
    """

    metrics: dict[str, jax.Array]
    finite: Any
    checked: tuple[str, ...] = struct.field(pytree_node=False)

    def named(self, player: str) -> "Report":
        """Put the name of a network before all names."""
        metrics = {f"{player}/{name}": value for name, value in self.metrics.items()}
        return Report(metrics=metrics, finite=self.finite, checked=tuple(f"{player}/{name}" for name in self.checked))


def together(first: Report, second: Report) -> Report:
    """Join what two updates say."""
    return Report(
        metrics={**first.metrics, **second.metrics},
        finite=jnp.concatenate([first.finite, second.finite]),
        checked=first.checked + second.checked,
    )


Step = Callable[..., tuple[Any, Report]]  # (state, batch, *beside)
SiteOf = Callable[[str], str]


class Program:
    """A step, compiled: the new state lies where the old one lay, on any mesh, and takes its buffers."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._compiled: dict[Any, tuple[Any, list[Any]]] = {}

    def __call__(self, state: Any, batch: Any, *beside: Any) -> tuple[Any, Report]:
        """Run the step; `state` is gone."""
        program, report = self._on_devices_of(state)
        leaves, said = program(state, batch, *beside)
        return jax.tree.unflatten(jax.tree.structure(state), leaves), jax.tree.unflatten(report[0], said)

    def lower(self, state: Any, batch: Any, *beside: Any) -> jax.stages.Lowered:
        """Lower the step for shapes with shardings, without values."""
        return self._on_devices_of(state)[0].lower(state, batch, *beside)

    def _on_devices_of(self, state: Any) -> tuple[Any, list[Any]]:
        """Return the program for a state that lies so, and the tree of its report once it was traced."""
        places = None
        if mesh_in_use() is not None:
            places = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(state)]
        key = places and tuple(places)
        if key not in self._compiled:
            report: list[Any] = []

            def leaves_of(state: Any, batch: Any, *beside: Any) -> tuple[list[Any], list[Any]]:
                state, said = self._step(state, batch, *beside)
                leaves, tree = jax.tree.flatten(said)
                report[:] = [tree]
                return jax.tree.leaves(state), leaves

            program = jax.jit(leaves_of, donate_argnums=0, out_shardings=(places, None) if places else None)
            self._compiled[key] = program, report
        return self._compiled[key]


@dataclasses.dataclass(frozen=True)
class DistillStep:
    """A step of two networks: the critic moves; before it the generator, if the step's number is a multiple of `ratio`.

    Two programs instead of one for both: the critic's is compiled once, and neither is larger than it must be.

    Attributes:
      generator, critic: `(DistillState, batch, *frozen) -> (DistillState, Report)`.
      ratio: steps per update of the generator.
    """

    generator: Program
    critic: Program
    ratio: int

    def __call__(self, state: DistillState, batch: Any, *frozen: Any) -> tuple[DistillState, Report]:
        """Run the programs whose turn it is; `state` is gone."""
        number = int(state.step)  # the host's own number after the first step, so that nothing waits for the device
        reports = []
        for program in (self.critic,) if number % self.ratio else (self.generator, self.critic):
            state = dataclasses.replace(state, step=np.asarray(number, np.int32))
            state, report = program(state, batch, *frozen)
            reports.append(report)
        return dataclasses.replace(state, step=np.asarray(number + 1, np.int32)), reduce(together, reports)


def make_step(
    gradient: Gradient,
    optimiser: optax.GradientTransformation,
    *,
    ema_decay: float = 0.999,
    ema_from: int = 0,
    site_of: SiteOf | None = None,
) -> Program:
    """Compile `(TrainState, batch, *beside) -> (TrainState, Report)`.

    Args:
      gradient: from `gradient.of_loss`, or made by hand.
      optimiser: applied to the gradient.
      ema_decay: of the average; it warms up as (1 + n) / (10 + n), so early steps are forgotten.
      ema_from: until so many steps are done the average is a copy of the parameters.
      site_of: from a weight's name to its site, for gradient norms by site, such as `gradient.network_site`.

    Returns:
      The step. Its metrics are the gradient's own plus `loss`, `grad_norm` and, by site, `grad_norm/SITE`.
    """

    def decay(step: jax.Array) -> jax.Array:
        since = jnp.maximum(step - ema_from, 0)
        return jnp.where(step < ema_from, 0.0, jnp.minimum(ema_decay, (1 + since) / (10 + since)))

    def step(state: TrainState, batch: Any, *beside: Any) -> tuple[TrainState, Report]:
        return _advance(state, batch, beside, gradient, optimiser, decay(state.step), site_of)

    return Program(step)


def make_distill_step(
    generator: Gradient,
    critic: Gradient,
    generator_optimiser: optax.GradientTransformation,
    critic_optimiser: optax.GradientTransformation,
    *,
    ratio: int = 5,
    ema_decay: float = 0.99,
    ema_from: int = 200,
    site_of: SiteOf | None = None,
) -> DistillStep:
    """Compile `(DistillState, batch, *frozen) -> (DistillState, Report)`, for two networks.

    At every step whose number (from 0) is a multiple of `ratio` the generator is updated first, then the critic is,
    on the same batch, with keys of its own and against the new generator. Each has its program.

    Args:
      generator: `(generator params, batch, key, extra, critic params, *frozen) -> Graded`.
      critic: `(critic params, batch, key, extra, generator params, *frozen) -> Graded`.
      generator_optimiser: counts the generator's updates, so its schedule is `ratio` times slower.
      critic_optimiser: counts every step.
      ratio: steps per update of the generator.
      ema_decay: of the generator's average: average = decay * average + (1 - decay) * parameters, after its updates.
      ema_from: until so many steps are done the average is a copy of the parameters.
      site_of: see `make_step`.

    Returns:
      The step. Metrics are named `generator/...`, in steps that update it, and `critic/...`.

    Raises:
      ValueError: if ratio is below 1.

    Source: the loop of specs/omniforcing.md 7.1.
    """
    if ratio < 1:
        raise ValueError(f"ratio={ratio}: must be at least 1")

    def train_critic(state: DistillState, batch: Any, *frozen: Any) -> tuple[DistillState, Report]:
        beside = (state.generator.params, *frozen)
        trained, report = _advance(state.critic, batch, beside, critic, critic_optimiser, None, site_of)
        return dataclasses.replace(state, critic=trained), report.named("critic")

    def train_generator(state: DistillState, batch: Any, *frozen: Any) -> tuple[DistillState, Report]:
        beside = (state.critic.params, *frozen)
        decay = jnp.where(state.step < ema_from, 0.0, ema_decay)
        trained, report = _advance(state.generator, batch, beside, generator, generator_optimiser, decay, site_of)
        return dataclasses.replace(state, generator=trained), report.named("generator")

    return DistillStep(Program(train_generator), Program(train_critic), ratio)


def _advance(
    state: TrainState,
    batch: Any,
    beside: tuple,
    gradient: Gradient,
    optimiser: optax.GradientTransformation,
    decay: jax.Array | None,
    site_of: SiteOf | None,
) -> tuple[TrainState, Report]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    value, metrics, extra, grads = gradient(state.params, batch, key, state.extra, *beside)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {**metrics, "loss": value, "grad_norm": optax.tree.norm(grads)}
    if site_of is not None:
        metrics |= gradients.norms(grads, site_of)
    ema = state.ema
    if ema is not None and decay is not None:
        ema = optax.incremental_update(params, ema, 1 - decay)
    checked = {"loss": value, "gradient": grads, "parameter": params}
    state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema, extra=extra)
    return state, _report(metrics, checked)


def _report(metrics: dict[str, jax.Array], checked: dict[str, Any]) -> Report:
    leaves = jax.tree_util.tree_flatten_with_path(checked)[0]
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for _, leaf in leaves])
    return Report(metrics=metrics, finite=finite, checked=tuple(path_name(path) for path, _ in leaves))
