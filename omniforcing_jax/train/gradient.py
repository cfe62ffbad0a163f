"""How one update of one network is found: a value, what to log of it, and a gradient.

A gradient is a function, so a trainer does not ask whether it came from a scalar loss (`of_loss`) or from passes
that make it by hand, block by block. What is not trained here, such as a frozen teacher or the other network of a
pair, is an argument of it and never a constant: constants are compiled into a program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from omniforcing_jax.parallel.spec import path_name


class Graded(NamedTuple):
    """What a gradient function gives.

    Attributes:
      value: the loss, a float32 scalar.
      metrics: float32 scalars by name.
      extra: what is carried to the next update, or None; the same tree as came in.
      grads: the same tree as the parameters.
    """

    value: jax.Array
    metrics: dict[str, jax.Array]
    extra: Any
    grads: Any


# (params, batch, key, extra, *beside) -> Graded, pure; `beside` is what stands beside the parameters, untrained.
Gradient = Callable[..., Graded]
# (params, batch, key, extra, *beside) -> (scalar, (metrics, extra)), pure.
Loss = Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]


def of_loss(loss: Loss) -> Gradient:
    """Make the gradient of `(params, batch, key, extra, *beside) -> (scalar, (metrics, extra))` by its params."""
    differentiate = jax.value_and_grad(loss, has_aux=True)

    def gradient(params: Any, batch: Any, key: jax.Array, extra: Any, *beside: Any) -> Graded:
        (value, (metrics, extra)), grads = differentiate(params, batch, key, extra, *beside)
        return Graded(value, metrics, extra, grads)

    return gradient


def accumulated(gradient: Gradient, parts: int) -> Gradient:
    """Take a batch in `parts` equal parts, one after the other: the memory of one part, the mean over all.

    Value, metrics and gradient are means over the parts; `extra` goes from part to part. Part i takes the rows
    i, i + parts, ..., so that on several devices each keeps the rows that it has. Keys differ by part, so random draws
    are not those of the whole batch.

    Raises:
      ValueError: when traced, if the batch cannot be cut into `parts`.
    """
    if parts < 1:
        raise ValueError(f"parts={parts}: must be at least 1")

    def cut(rows: jax.Array) -> jax.Array:
        if rows.shape[0] % parts:
            raise ValueError(f"parts={parts}: a batch of {rows.shape[0]} cannot be cut into so many")
        return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)

    def by_parts(params: Any, batch: Any, key: jax.Array, extra: Any, *beside: Any) -> Graded:
        def add(carry: tuple[Any, Any], part: tuple[Any, jax.Array]):
            extra, total = carry
            rows, number = part
            graded = gradient(params, rows, jax.random.fold_in(key, number), extra, *beside)
            total = jax.tree.map(jnp.add, total, (graded.value, graded.metrics, graded.grads))
            return (graded.extra, total), None

        rows = jax.tree.map(cut, batch)
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], rows), key, extra, *beside)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes.value, shapes.metrics, shapes.grads))
        (extra, total), _ = jax.lax.scan(add, (extra, nothing), (rows, jnp.arange(parts)))
        value, metrics, grads = jax.tree.map(lambda x: x / parts, total)
        return Graded(value, metrics, extra, grads)

    return gradient if parts == 1 else by_parts


def network_site(name: str) -> str:
    """Say to which site of a dual-stream network a weight belongs.

    `layers/video/self_attn/q/w` is of `layers/video/self_attn`, `layers/a2v/k/b` of `layers/a2v`, everything of a
    stream outside the layers of `video` or `audio`, the sinks of `sinks`.
    """
    parts = name.split("/")
    if parts[0] != "layers":
        return parts[0]
    return "/".join(parts[: 3 if parts[1] in ("video", "audio") else 2])


def norms(grads: Any, site_of: Callable[[str], str]) -> dict[str, jax.Array]:
    """Measure the gradient by site, over all layers together: `grad_norm/SITE`, float32 scalars."""
    sites: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        sites.setdefault(site_of(path_name(path)), []).append(leaf)
    return {f"grad_norm/{site}": optax.tree.norm(leaves) for site, leaves in sites.items()}
