"""Periodic activations without aliases: doubled in rate, bent, halved again (BigVGAN).

The low-pass filters lie in a checkpoint beside the weights, in its precision, so they are variables here (collection
`constants`) and not computed.

Source: ltx-core@1.0.0:model/audio_vae/vocoder.py, SnakeBeta and Activation1d.
"""

import functools
import operator

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from omniforcing_jax.codecs.carry import with_past
from omniforcing_jax.codecs.timeline import Span

CONSTANTS = "constants"
TAPS = 12
REACH = 5
"""Samples that a result depends on, on each side."""
SPREAD = 1e-9


@functools.cache
def low_pass() -> Float[np.ndarray, "taps 1 1"]:
    """Make the filter of both resamplings: a Kaiser-windowed sinc that cuts a quarter off, of sum one."""
    attenuation = 2.285 * (TAPS // 2 - 1) * np.pi * 4 * 0.3 + 7.95
    at = np.arange(TAPS) - (TAPS - 1) / 2
    taps = np.kaiser(TAPS, 0.1102 * (attenuation - 8.7)) * np.sinc(0.5 * at)
    return (taps / taps.sum()).astype(np.float32)[:, None, None]


class Snake(nn.Module):
    """x + sin(alpha x)^2 / beta with a logarithmic alpha and beta per channel, at twice the rate.

    Both resamplings are padded with the edge samples.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], span: Span | None) -> tuple[Float[Array, "B T C"], Span | None]:
        """Bend, and say where the results stand."""
        features = (x.shape[-1],)
        alpha = self.param("alpha", nn.initializers.zeros, features)
        beta = self.param("beta", nn.initializers.zeros, features)
        up, down = (
            self.variable(CONSTANTS, name, lambda: jnp.asarray(low_pass())).value for name in ("upsample", "downsample")
        )
        if span is None:
            at, joined = Span(start=-REACH, end=x.shape[1]), jnp.pad(x, ((0, 0), (REACH, REACH), (0, 0)), mode="edge")
        else:
            at, joined = span.delayed(2 * REACH), with_past(self, x, 2 * REACH)
            joined = at.hold_outside(joined)
        fast = _double(joined, jnp.asarray(up, x.dtype))
        bent = fast + jnp.square(jnp.sin(fast * jnp.exp(alpha)[None, None])) / (jnp.exp(beta)[None, None] + SPREAD)
        bent = at.faster(2).delayed(-REACH).hold_outside(bent)
        y = _halve(bent, jnp.asarray(down, x.dtype))
        if span is None:
            return y, None
        span = span.delayed(REACH)
        return span.silence_outside(y), span


def _double(x: Float[Array, "B T_in C"], taps: Float[Array, "taps 1 1"]) -> Float[Array, "B T_out C"]:
    """Return the samples at twice the rate from 2 * REACH half steps after the first to as many before the last.

    Result 2 i + p takes input i + b through tap 10 - 2 b + p.
    """
    pairs, count = taps.reshape(-1, 2)[::-1], x.shape[1] - REACH
    terms = [x[:, b : b + count, None] * pair[None, None, :, None] for b, pair in enumerate(pairs)]
    return 2 * functools.reduce(operator.add, terms).reshape(x.shape[0], 2 * count, x.shape[2])


def _halve(x: Float[Array, "B T_in C"], taps: Float[Array, "taps 1 1"]) -> Float[Array, "B T_out C"]:
    """Filter and keep every second sample: result i takes inputs 2 i to 2 i + 11."""
    pairs = x.reshape(x.shape[0], -1, 2, x.shape[2])
    count = pairs.shape[1] - REACH
    terms = [
        (pairs[:, b : b + count] * pair[None, None, :, None]).sum(axis=2) for b, pair in enumerate(taps.reshape(-1, 2))
    ]
    return functools.reduce(operator.add, terms)
