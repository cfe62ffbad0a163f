"""The states of both streams after each layer: the network's own scan, with its states returned."""

import jax
import jax.numpy as jnp

from omniforcing_jax.model.transformer import NO_PERTURBATION, LayerInputs, embed_times, embed_tokens, layer_body
from omniforcing_jax.nn.attention import NO_PAST
from omniforcing_jax.streams import Streams, map_streams


def layer_states(params, config, noisy, view, text, *, past=NO_PAST, dtype=jnp.float32) -> Streams:
    """[L, B, T, D] of each stream, audio sinks included; arguments as `predict`."""
    rows = map_streams(lambda m: m.rows, embed_times(params, config, view))
    layer = layer_body(config, view, rows, text.site, dtype)

    def body(x, inputs):
        x, _ = layer(x, inputs)
        return x, x

    inputs = LayerInputs(params.layers, text.kv, past, NO_PERTURBATION)
    return jax.lax.scan(body, embed_tokens(params, noisy, view, dtype), inputs)[1]
