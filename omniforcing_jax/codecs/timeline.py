"""Layers of a vocoder on a time line: each works on whole clips, and as a fixed delay line in a stream.

In a stream as many samples leave a layer as enter it, shifted by what it looks ahead, and a `Span` says where they
stand. What stands before the start (or after the end) of the sound is held at what a whole clip is padded with.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omniforcing_jax.codecs.carry import with_past


@flax.struct.dataclass
class Span:
    """Where the samples at hand stand, at their own rate: the first one at `start`, the sound's end at `end`."""

    start: Any  # int32 []
    end: Any  # int32 [], or None while it is not known

    def delayed(self, samples: int) -> "Span":
        """Step back, as a layer that looks ahead does."""
        return dataclasses.replace(self, start=self.start - samples)

    def faster(self, rate: int) -> "Span":
        """Count in samples of a higher rate."""
        return dataclasses.replace(self, start=self.start * rate, end=None if self.end is None else self.end * rate)

    def slower(self, rate: int) -> "Span":
        """Count in rows of `rate` samples, which both numbers must be a multiple of."""
        return dataclasses.replace(self, start=self.start // rate, end=None if self.end is None else self.end // rate)

    def silence_outside(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Set what lies before the start or after the end of the sound to zero, as most layers are padded."""
        at = self.start + jnp.arange(x.shape[1])
        inside = at >= 0 if self.end is None else (at >= 0) & (at < self.end)
        return jnp.where(inside[None, :, None], x, jnp.zeros((), x.dtype))

    def hold_outside(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Repeat the first sample before the start and the last one after the end, as resampling is padded.

        Where neither is at hand, what stands there is of no consequence to any sample inside.
        """
        at = self.start + jnp.arange(x.shape[1])
        x = jnp.where((at < 0)[None, :, None], _sample(x, -self.start), x)
        if self.end is None:
            return x
        return jnp.where((at >= self.end)[None, :, None], _sample(x, self.end - 1 - self.start), x)


def _sample(x: Float[Array, "B T C"], at: Any) -> Float[Array, "B 1 C"]:
    return jax.lax.dynamic_slice_in_dim(x, jnp.clip(at, 0, x.shape[1] - 1), 1, axis=1)


class Conv(nn.Module):
    """An odd-width convolution that keeps the length."""

    features: int
    width: int
    dilation: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T _"], span: Span | None) -> tuple[Float[Array, "B T _"], Span | None]:
        """Convolve, and say where the results stand."""
        reach = self.width // 2 * self.dilation
        border = reach if span is None else 0
        conv = nn.Conv(
            *(self.features, self.width),
            kernel_dilation=self.dilation,
            padding=border,
            use_bias=self.use_bias,
            name="conv",
        )
        if span is None:
            return conv(x), None
        span = span.delayed(reach)
        return span.silence_outside(conv(with_past(self, x, 2 * reach))), span


class Delay(nn.Module):
    """Hold a shortcut back until the layers beside it have seen as far ahead as they need."""

    samples: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], span: Span | None) -> Float[Array, "B T C"]:
        """Return what entered `samples` ago."""
        if span is None or self.samples == 0:
            return x
        return with_past(self, x, self.samples)[:, : x.shape[1]]


class UpConv(nn.Module):
    """A transposed convolution, computed as a plain one with `rate` results per place (no zeros are multiplied).

    Result q takes input q // rate - t through tap q % rate + t * rate, for t from 0 to the kernel's end.
    The kernel is [width, in, out] in the reference's tap order, not flipped.
    """

    features: int
    width: int
    rate: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T _"], span: Span | None) -> tuple[Float[Array, "B T_fast _"], Span | None]:
        """Upsample, and say where the results stand."""
        channels, past, cut = x.shape[-1], (self.width - 1) // self.rate, (self.width - self.rate) // 2
        init = nn.initializers.variance_scaling(self.rate, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (self.width, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        taps = jnp.pad(kernel, ((0, (past + 1) * self.rate - self.width), (0, 0), (0, 0)))
        taps = taps.reshape(past + 1, self.rate, channels, self.features)[::-1].swapaxes(1, 2)
        joined = jnp.pad(x, ((0, 0), (past, past), (0, 0))) if span is None else with_past(self, x, past)
        y = jax.lax.conv_general_dilated(
            joined, taps.reshape(past + 1, channels, -1), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        y = y.reshape(x.shape[0], -1, self.features) + bias[None, None]
        if span is None:
            return y[:, cut : cut + x.shape[1] * self.rate], None
        span = span.faster(self.rate).delayed(cut)
        return span.silence_outside(y), span
