"""How one update of one network is found: a value, what to log of it, and a gradient.

Trainings of one network have a loss, of which `of_loss` and `of_carrying_loss` make a gradient. Trainings of two have
an object with two gradients (`DistillMethod` in step.py). What is not trained, such as a frozen teacher, is an argument
of these and never a constant: constants are compiled into a program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import optax

from omniforcing_jax.parallel.spec import path_name

P = TypeVar("P")  # parameters
E = TypeVar("E")  # what a loss carries from step to step
Metrics = dict[str, jax.Array]  # float32 scalars by name


class Graded(NamedTuple):
    """What is found for an update.

    Attributes:
        value: The loss, a float32 scalar.
        metrics: float32 scalars by name.
        grads: The same tree as the parameters.
        extra: What is carried to the next update, or None.
    """

    value: jax.Array
    metrics: Metrics
    grads: Any
    extra: Any = None


Gradient = Callable[[P, Any, jax.Array, Any], Graded]  # (params, batch, key, extra), pure
Loss = Callable[[P, Any, jax.Array], tuple[jax.Array, Metrics]]  # (params, batch, key) -> (scalar, metrics), pure
CarryingLoss = Callable[[P, Any, jax.Array, E], tuple[jax.Array, tuple[Metrics, E]]]  # (params, batch, key, extra)


def of_loss(loss: Loss[P]) -> Gradient[P]:
    """Differentiate a loss by its parameters; it carries nothing."""
    differentiate = jax.value_and_grad(loss, has_aux=True)

    def gradient(params: P, batch: Any, key: jax.Array, extra: Any) -> Graded:
        (value, metrics), grads = differentiate(params, batch, key)
        return Graded(value, metrics, grads, extra)

    return gradient


def of_carrying_loss(loss: CarryingLoss[P, E]) -> Gradient[P]:
    """Differentiate a loss by its parameters that carries something from step to step, such as running statistics."""
    differentiate = jax.value_and_grad(loss, has_aux=True)

    def gradient(params: P, batch: Any, key: jax.Array, extra: Any) -> Graded:
        (value, (metrics, extra)), grads = differentiate(params, batch, key, extra)
        return Graded(value, metrics, grads, extra)

    return gradient


def network_site(name: str) -> str:
    """Say to which site of a dual-stream network a weight belongs.

    `layers/video/self_attn/q/w` is of `layers/video/self_attn`, `layers/a2v/k/b` of `layers/a2v`, everything of a
    stream outside the layers of `video` or `audio`, the sinks of `sinks`.
    """
    parts = name.split("/")
    if parts[0] != "layers":
        return parts[0]
    return "/".join(parts[: 3 if parts[1] in ("video", "audio") else 2])


def norms(grads: Any, site_of: Callable[[str], str]) -> Metrics:
    """Measure the gradient by site, over all layers together: `grad_norm/SITE`, float32 scalars."""
    sites: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        sites.setdefault(site_of(path_name(path)), []).append(leaf)
    return {f"grad_norm/{site}": optax.tree.norm(leaves) for site, leaves in sites.items()}
