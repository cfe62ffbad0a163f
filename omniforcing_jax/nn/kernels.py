"""The one place that chooses a kernel for attention, by backend and by what the kernel can compute.

The backend's default is splash on TPU, cuDNN on GPU, and the plain form elsewhere. `using` overrides it, for instance
to compile on a CPU for a TPU that is not there. What a kernel cannot compute goes to the plain form; a log line says
so, once for each kind of attention. Under a mesh (`jax.set_mesh`) each device runs the kernel on its own rows and
heads, because no compiler can partition a kernel.
"""

import enum
import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import jax
from jaxtyping import Array, Float, PyTree

from omniforcing_jax.nn import cudnn, splash
from omniforcing_jax.nn.kv_segments import KVSegment, plain_attention
from omniforcing_jax.nn.rope import Rotary
from omniforcing_jax.parallel.sharding import activation_spec, mesh_in_use


class Kernel(enum.StrEnum):
    """What computes attention.

    AUTO: the backend's default. PLAIN: XLA, scores written out. SPLASH: Pallas on TPU. CUDNN: on NVIDIA GPUs.
    SPLASH_INTERPRETED: splash in Pallas's interpreter, on any backend, for tests.
    """

    AUTO = "auto"
    PLAIN = "plain"
    SPLASH = "splash"
    CUDNN = "cudnn"
    SPLASH_INTERPRETED = "splash-interpreted"


OF_BACKEND = {"tpu": Kernel.SPLASH, "gpu": Kernel.CUDNN}
REFUSALS = {Kernel.SPLASH: splash.refusal, Kernel.SPLASH_INTERPRETED: splash.refusal, Kernel.CUDNN: cudnn.refusal}
KERNELS = {
    Kernel.SPLASH: splash.splash_attention,
    Kernel.SPLASH_INTERPRETED: functools.partial(splash.splash_attention, interpret=True),
    Kernel.CUDNN: cudnn.cudnn_attention,
}
_chosen = jax.make_user_context(default_value=Kernel.AUTO)  # part of the key under which jax keeps compiled programs


def using(kernel: Kernel) -> AbstractContextManager:
    """Context manager: functions traced inside use this kernel."""
    return _chosen(Kernel(kernel))


def chosen() -> Kernel:
    """Return the kernel for functions traced now; never AUTO."""
    kernel = _chosen.value
    return OF_BACKEND.get(jax.default_backend(), Kernel.PLAIN) if kernel is Kernel.AUTO else kernel


@jax.named_scope("dot_product_attention")
def dot_product_attention(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> Float[Array, "B T N H"]:
    """Softmax attention over the union of the segments; scores and sums in float32, returned in q's type."""
    kernel = chosen()
    if kernel is Kernel.PLAIN:
        return plain_attention(q, segments)
    if (reason := REFUSALS[kernel](q, segments)) is not None:
        _log_once(kernel, q.shape[1:], tuple(s.k.shape[1] for s in segments), reason)
        return plain_attention(q, segments)
    return _on_each_device(KERNELS[kernel], q, segments)


def _on_each_device(
    attention: Callable[[Array, Sequence[KVSegment]], Array], q: Float[Array, "B T N H"], segments: Sequence[KVSegment]
) -> Float[Array, "B T N H"]:
    """Run on each device's own rows and heads; an axis that the mesh does not divide stays whole."""
    mesh = mesh_in_use()
    if mesh is None or mesh.size == 1:
        return attention(q, segments)
    of_tokens = activation_spec(q.shape, ("batch", None, "heads", None), mesh)
    arrays = [(s.k, s.v, s.bias, s.shift) for s in segments]

    def spec_of(tree: PyTree, *axes: str | None) -> PyTree:
        return jax.tree.map(lambda x: activation_spec(x.shape, axes, mesh), tree)

    def local(q: Array, arrays: list[tuple[Array, Array, Array | None, Rotary | None]]) -> Array:
        return attention(
            q, [s._replace(k=k, v=v, bias=b, shift=r) for s, (k, v, b, r) in zip(segments, arrays, strict=True)]
        )

    of_bias, of_shift = ("batch", None, None, None), (None, None, "heads", None)
    specs = (
        of_tokens,
        [(of_tokens, of_tokens, spec_of(s.bias, *of_bias), spec_of(s.shift, *of_shift)) for s in segments],
    )
    run = jax.shard_map(local, in_specs=specs, out_specs=of_tokens, check_vma=False)
    return run(q, arrays)


@functools.cache
def _log_once(kernel: Kernel, queries: tuple[int, ...], keys: tuple[int, ...], reason: str) -> None:
    logging.info("attention of %s over %s keys is plain, not %s: %s", queries, keys, kernel, reason)
