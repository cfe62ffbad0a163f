"""Alias-free periodic activations (BigVGAN): double the rate, apply the sine, halve the rate.

A checkpoint holds the low-pass filters beside the weights, in its own precision. Hence they are variables here
(collection `constants`), not computed.

Source: ltx-core@1.0.0:model/audio_vae/vocoder.py, SnakeBeta and Activation1d.
"""

import functools
import operator

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from omniforcing_jax.codecs.carry import with_past
from omniforcing_jax.codecs.timeline import SoundPosition

CONSTANTS = "constants"
TAPS = 12
REACH = 5
"""Samples on each side that an output depends on."""
SPREAD = 1e-9


@functools.cache
def low_pass() -> Float[np.ndarray, "taps 1 1"]:
    """Make the filter of both resamplings: a Kaiser-windowed sinc of sum one, with cutoff at a quarter of the rate."""
    attenuation = 2.285 * (TAPS // 2 - 1) * np.pi * 4 * 0.3 + 7.95
    at = np.arange(TAPS) - (TAPS - 1) / 2
    taps = np.kaiser(TAPS, 0.1102 * (attenuation - 8.7)) * np.sinc(0.5 * at)
    return (taps / taps.sum()).astype(np.float32)[:, None, None]


class Snake(nn.Module):
    """x + sin(alpha x)^2 / beta at twice the rate; alpha and beta are logarithmic, one per channel.

    Both resamplings are padded with the edge samples.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "B samples C"], position: SoundPosition | None
    ) -> tuple[Float[Array, "B samples C"], SoundPosition | None]:
        """Apply the activation; return the result and its position."""
        features = (x.shape[-1],)
        alpha = self.param("alpha", nn.initializers.zeros, features)
        beta = self.param("beta", nn.initializers.zeros, features)
        up, down = (
            self.variable(CONSTANTS, name, lambda: jnp.asarray(low_pass())).value for name in ("upsample", "downsample")
        )
        if position is None:
            at, joined = (
                SoundPosition(start=-REACH, end=x.shape[1]),
                jnp.pad(x, ((0, 0), (REACH, REACH), (0, 0)), mode="edge"),
            )
        else:
            at, joined = position.delayed(2 * REACH), with_past(self, x, 2 * REACH)
            joined = at.hold_outside(joined)
        fast = _double(joined, jnp.asarray(up, x.dtype))
        bent = fast + jnp.square(jnp.sin(fast * jnp.exp(alpha)[None, None])) / (jnp.exp(beta)[None, None] + SPREAD)
        bent = at.faster(2).delayed(-REACH).hold_outside(bent)
        y = _halve(bent, jnp.asarray(down, x.dtype))
        if position is None:
            return y, None
        position = position.delayed(REACH)
        return position.silence_outside(y), position


def _double(x: Float[Array, "B samples_in C"], taps: Float[Array, "taps 1 1"]) -> Float[Array, "B samples_out C"]:
    """Double the rate; the output leaves out 2 * REACH half steps at each end.

    Output 2 i + p takes input i + b through tap 10 - 2 b + p.
    """
    pairs, count = taps.reshape(-1, 2)[::-1], x.shape[1] - REACH
    terms = [x[:, b : b + count, None] * pair[None, None, :, None] for b, pair in enumerate(pairs)]
    return 2 * functools.reduce(operator.add, terms).reshape(x.shape[0], 2 * count, x.shape[2])


def _halve(x: Float[Array, "B samples_in C"], taps: Float[Array, "taps 1 1"]) -> Float[Array, "B samples_out C"]:
    """Filter and keep every second sample: output i takes inputs 2 i to 2 i + 11."""
    pairs = x.reshape(x.shape[0], -1, 2, x.shape[2])
    count = pairs.shape[1] - REACH
    terms = [
        (pairs[:, b : b + count] * pair[None, None, :, None]).sum(axis=2) for b, pair in enumerate(taps.reshape(-1, 2))
    ]
    return functools.reduce(operator.add, terms)
