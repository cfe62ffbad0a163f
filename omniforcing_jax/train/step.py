"""One step as a pure, compiled function of (state, batch): of one network, or of generator and critic.

Both are made of `_advance`, which is an update of one network. The old state's buffers are donated; what is frozen (a
teacher) is an argument that stays.
"""

import dataclasses
from collections.abc import Callable
from functools import reduce
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from omniforcing_jax.parallel.sharding import mesh_in_use
from omniforcing_jax.parallel.spec import ArrayLeaf, path_name
from omniforcing_jax.strict_json import require
from omniforcing_jax.train import gradient as gradients
from omniforcing_jax.train.gradient import Graded, Gradient, Metrics
from omniforcing_jax.train.state import DistillState, Optimisers, TrainState

S = TypeVar("S")  # a trainer's state
SiteOf = Callable[[str], str]


@struct.dataclass
class Report:
    """What a step reports beside the new state.

    Attributes:
        metrics: float32 scalars by name, on the device.
        finite: Bool [N], whether each checked tensor holds numbers only.
        checked: Names of the N tensors: the loss, each leaf of the gradient, each parameter after the update.
    """

    metrics: Metrics
    finite: ArrayLeaf
    checked: tuple[str, ...] = struct.field(pytree_node=False)

    def named(self, network: str) -> "Report":
        """Put the name of a network before all names."""
        metrics = {f"{network}/{name}": value for name, value in self.metrics.items()}
        return Report(metrics=metrics, finite=self.finite, checked=tuple(f"{network}/{name}" for name in self.checked))


def together(first: Report, second: Report) -> Report:
    """Join the reports of two updates."""
    return Report(
        metrics={**first.metrics, **second.metrics},
        finite=jnp.concatenate([first.finite, second.finite]),
        checked=first.checked + second.checked,
    )


class Program(Generic[S]):
    """A compiled step: the new state has the old one's sharding, on any mesh, and takes its buffers.

    Batches of other shapes or names may follow each other; each kind has a program and a report of its own.
    """

    def __init__(self, step: Callable[[S, Any, Any], tuple[S, Report]]) -> None:
        self._step = step
        self._compiled: dict[Any, tuple[Any, list[Any]]] = {}

    def __call__(self, state: S, batch: Any, frozen: Any = None) -> tuple[S, Report]:
        """Run the step, which takes over the buffers of `state`."""
        program, report = self._program_of(state, batch)
        leaves, said = program(state, batch, frozen)
        return jax.tree.unflatten(jax.tree.structure(state), leaves), jax.tree.unflatten(report[0], said)

    def lower(self, state: S, batch: Any, frozen: Any = None) -> jax.stages.Lowered:
        """Lower the step for shapes with shardings, without values."""
        return self._program_of(state, batch)[0].lower(state, batch, frozen)

    def _program_of(self, state: S, batch: Any) -> tuple[Any, list[Any]]:
        """Return the program for a state that lies so and such a batch, and the tree of its report once traced."""
        shardings = None
        if mesh_in_use() is not None:
            shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(state)]
        rows, names = jax.tree.flatten(batch)
        key = shardings and tuple(shardings), names, tuple(map(jnp.shape, rows))
        if key not in self._compiled:
            report: list[Any] = []

            def leaves_of(state: S, batch: Any, frozen: Any) -> tuple[list[Any], list[Any]]:
                state, said = self._step(state, batch, frozen)
                leaves, tree = jax.tree.flatten(said)
                report[:] = [tree]
                return jax.tree.leaves(state), leaves

            program = jax.jit(leaves_of, donate_argnums=0, out_shardings=(shardings, None) if shardings else None)
            self._compiled[key] = program, report
        return self._compiled[key]


@runtime_checkable
class DistillMethod(Protocol):
    """How generator and critic learn from each other; distill/generator_critic.py has the methods that there are.

    Both gradients are pure functions that give (loss, metrics, gradient of `params`).
    """

    def generator(
        self, params: Any, batch: Any, key: jax.Array, critic: Any, frozen: Any
    ) -> tuple[jax.Array, Metrics, Any]:
        """Find the generator's gradient; `frozen` is never trained, such as a teacher."""
        ...

    def critic(
        self, params: Any, batch: Any, key: jax.Array, generator: Any, frozen: Any
    ) -> tuple[jax.Array, Metrics, Any]:
        """Find the critic's gradient."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSchedule:
    """How often generator and critic are updated, and the generator's average.

    Attributes:
        ratio: Steps, each with an update of the critic, per update of the generator.
        ema_decay: Average = decay * average + (1 - decay) * parameters, after the generator's updates.
        ema_from: Until so many steps are done the average is a copy of the parameters.
    """

    ratio: int = 5
    ema_decay: float = 0.99
    ema_from: int = 200

    def __post_init__(self):
        """Check ranges."""
        require(self.ratio >= 1, "ratio", self.ratio, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class DistillStep:
    """A step of two networks: the generator first, if the step's number is a multiple of `ratio`, then the critic.

    Two programs instead of one for both: the critic's is compiled once, and neither is larger than it must be.
    """

    generator: Program[DistillState]
    critic: Program[DistillState]
    ratio: int
    frozen: Any = None

    def __call__(self, state: DistillState, batch: Any) -> tuple[DistillState, Report]:
        """Run the programs of this step; they take over the buffers of `state`."""
        number = int(state.step)  # the host's own number after the first step, so that nothing waits for the device
        reports = []
        for program in (self.critic,) if number % self.ratio else (self.generator, self.critic):
            state = dataclasses.replace(state, step=np.asarray(number, np.int32))
            state, report = program(state, batch, self.frozen)
            reports.append(report)
        return dataclasses.replace(state, step=np.asarray(number + 1, np.int32)), reduce(together, reports)


def make_step(
    gradient: Gradient,
    optimiser: optax.GradientTransformation,
    *,
    ema_decay: float = 0.999,
    ema_from: int = 0,
    site_of: SiteOf | None = None,
) -> Program[TrainState]:
    """Compile `(TrainState, batch) -> (TrainState, Report)`.

    Args:
        gradient: From `gradient.of_loss`, or made by hand.
        optimiser: Applied to the gradient.
        ema_decay: Of the average; it warms up as (1 + n) / (10 + n), so early steps are forgotten.
        ema_from: Until so many steps are done the average is a copy of the parameters.
        site_of: From a weight's name to its site, for gradient norms by site, such as `gradient.network_site`.

    Returns:
        The step. Its metrics are the gradient's own plus `loss`, `grad_norm` and, by site, `grad_norm/SITE`.
    """

    def decay(step: jax.Array) -> jax.Array:
        since = jnp.maximum(step - ema_from, 0)
        return jnp.where(step < ema_from, 0.0, jnp.minimum(ema_decay, (1 + since) / (10 + since)))

    def step(state: TrainState, batch: Any, frozen: None) -> tuple[TrainState, Report]:
        graded = gradient(state.params, batch, state.key_of_step(), state.extra)
        return _advance(state, graded, optimiser, decay(state.step), site_of)

    return Program(step)


def make_distill_step(
    method: DistillMethod,
    optimisers: Optimisers,
    schedule: DistillSchedule,
    frozen: Any = None,
    *,
    site_of: SiteOf | None = None,
) -> DistillStep:
    """Compile `(DistillState, batch) -> (DistillState, Report)`, for two networks.

    At every step whose number (from 0) is a multiple of `schedule.ratio` the generator is updated first. Then the
    critic is, on the same batch, with keys of its own and against the new generator. Each has its program.

    Args:
        method: The gradients of both networks.
        optimisers: Of generator and critic. The generator's counts its own updates, so its schedule is `ratio` times
            slower.
        schedule: See DistillSchedule.
        frozen: What the method needs beside both networks; an argument of the programs.
        site_of: See `make_step`.

    Returns:
        The step. Metrics are named `generator/...`, in steps that update it, and `critic/...`.

    Source: OmniForcing@50a271f:ltx_distillation/train_distillation.py, Trainer.train_one_step.
    """

    def train_generator(state: DistillState, batch: Any, frozen: Any) -> tuple[DistillState, Report]:
        own, critic = state.generator, state.critic.params
        graded = Graded(*method.generator(own.params, batch, own.key_of_step(), critic, frozen))
        decay = jnp.where(state.step < schedule.ema_from, 0.0, schedule.ema_decay)
        trained, report = _advance(own, graded, optimisers[0], decay, site_of)
        return dataclasses.replace(state, generator=trained), report.named("generator")

    def train_critic(state: DistillState, batch: Any, frozen: Any) -> tuple[DistillState, Report]:
        own, generator = state.critic, state.generator.params
        graded = Graded(*method.critic(own.params, batch, own.key_of_step(), generator, frozen))
        trained, report = _advance(own, graded, optimisers[1], None, site_of)
        return dataclasses.replace(state, critic=trained), report.named("critic")

    return DistillStep(Program(train_generator), Program(train_critic), schedule.ratio, frozen)


def _advance(
    state: TrainState,
    graded: Graded,
    optimiser: optax.GradientTransformation,
    decay: jax.Array | None,
    site_of: SiteOf | None,
) -> tuple[TrainState, Report]:
    """Update one network by its gradient."""
    updates, opt_state = optimiser.update(graded.grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    metrics = {**graded.metrics, "loss": graded.value, "grad_norm": optax.tree.norm(graded.grads)}
    if site_of is not None:
        metrics |= gradients.norms(graded.grads, site_of)
    ema = state.ema
    if ema is not None and decay is not None:
        ema = optax.incremental_update(params, ema, 1 - decay)
    checked = {"loss": graded.value, "gradient": graded.grads, "parameter": params}
    moved = {"params": params, "opt_state": opt_state, "ema": ema, "extra": graded.extra}
    return dataclasses.replace(state, step=state.step + 1, **moved), _report(metrics, checked)


def _report(metrics: Metrics, checked: dict[str, Any]) -> Report:
    leaves = jax.tree_util.tree_flatten_with_path(checked)[0]
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for _, leaf in leaves])
    return Report(metrics=metrics, finite=finite, checked=tuple(path_name(path) for path, _ in leaves))
