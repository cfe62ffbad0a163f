"""The one seam of attention: which kernel computes a softmax over keys in parts, and on which device.

By default the backend says: splash on TPU, cuDNN on GPU, the plain form elsewhere. `using` says otherwise, for instance
where programs are compiled on a CPU for a TPU that is not there. What a kernel cannot express goes to the plain form,
and a log line says so, once for each kind of attention. Under a mesh (`jax.set_mesh`) kernels run on each device's own
rows and heads, because no compiler can cut them.
"""

import enum
import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import jax
from jaxtyping import Array, Float

from omniforcing_jax.nn import cudnn, splash
from omniforcing_jax.nn.kv_segments import KVSegment, plain_attention
from omniforcing_jax.parallel.sharding import activation_spec, mesh_in_use


class Kernel(enum.StrEnum):
    """What computes attention.

    AUTO: what suits the backend. PLAIN: XLA, scores written out. SPLASH: Pallas on TPU. CUDNN: on NVIDIA GPUs.
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
    """Trace what is inside with this kernel."""
    return _chosen(Kernel(kernel))


def chosen() -> Kernel:
    """Return the kernel of what is traced now; never AUTO."""
    kernel = _chosen.value
    return OF_BACKEND.get(jax.default_backend(), Kernel.PLAIN) if kernel is Kernel.AUTO else kernel


def dot_product_attention(q: Float[Array, "B T N H"], parts: Sequence[KVSegment]) -> Float[Array, "B T N H"]:
    """Softmax attention over the union of the parts' keys; scores and sums in float32, returned in q's type."""
    kernel = chosen()
    if kernel is Kernel.PLAIN:
        return plain_attention(q, parts)
    if (reason := REFUSALS[kernel](q, parts)) is not None:
        _say_once(kernel, q.shape[1:], tuple(part.k.shape[1] for part in parts), reason)
        return plain_attention(q, parts)
    return _on_each_device(KERNELS[kernel], q, parts)


def _on_each_device(
    attention: Callable[[Array, Sequence[KVSegment]], Array], q: Float[Array, "B T N H"], parts: Sequence[KVSegment]
) -> Float[Array, "B T N H"]:
    """Give each device of the mesh its own rows and heads; what an axis does not divide stays whole."""
    mesh = mesh_in_use()
    if mesh is None or mesh.size == 1:
        return attention(q, parts)
    of_tokens = activation_spec(q.shape, ("batch", None, "heads", None), mesh)
    arrays = [(part.k, part.v, part.bias) for part in parts]
    of_biases = [
        None if part.bias is None else activation_spec(part.bias.shape, ("batch", None, None, None), mesh)
        for part in parts
    ]
    specs = [(of_tokens, of_tokens, of_bias) for of_bias in of_biases]

    def local(q: Array, arrays: list) -> Array:
        return attention(
            q, [KVSegment(k, v, bias, part.prefix) for (k, v, bias), part in zip(arrays, parts, strict=True)]
        )

    run = jax.shard_map(local, in_specs=(of_tokens, specs), out_specs=of_tokens, check_vma=False)
    return run(q, arrays)


@functools.cache
def _say_once(kernel: Kernel, queries: tuple[int, ...], keys: tuple[int, ...], reason: str) -> None:
    logging.info("attention of %s over %s keys is plain, not %s: %s", queries, keys, kernel, reason)
