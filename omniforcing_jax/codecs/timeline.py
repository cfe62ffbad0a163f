"""Layers of a vocoder that work on whole clips, and as fixed delay lines in a stream.

In a stream a layer outputs as many samples as it takes, delayed by its look-ahead, and a `SoundPosition` tracks where
they belong. Samples before the start or after the end of the sound are kept at the padding of a whole clip.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omniforcing_jax.codecs.carry import with_past
from omniforcing_jax.parallel.spec import ArrayLeaf


@flax.struct.dataclass
class SoundPosition:
    """Where an array's samples are in the sound, at their own rate.

    Attributes:
        start: Index of the array's first sample; negative before the sound begins.
        end: Length of the whole sound, or None while it is not known.
    """

    start: ArrayLeaf | int  # int32 []
    end: ArrayLeaf | int | None  # int32 []

    def delayed(self, samples: int) -> "SoundPosition":
        """Return the position after a layer that looks `samples` ahead."""
        return dataclasses.replace(self, start=self.start - samples)

    def faster(self, rate: int) -> "SoundPosition":
        """Return the position in samples of a higher rate."""
        return dataclasses.replace(self, start=self.start * rate, end=None if self.end is None else self.end * rate)

    def slower(self, rate: int) -> "SoundPosition":
        """Return the position in rows of `rate` samples, of which both numbers must be multiples."""
        return dataclasses.replace(self, start=self.start // rate, end=None if self.end is None else self.end // rate)

    def silence_outside(self, x: Float[Array, "B samples C"]) -> Float[Array, "B samples C"]:
        """Zero the samples before the start and after the end of the sound: the padding of most layers."""
        at = self.start + jnp.arange(x.shape[1])
        inside = at >= 0 if self.end is None else (at >= 0) & (at < self.end)
        return jnp.where(inside[None, :, None], x, jnp.zeros((), x.dtype))

    def hold_outside(self, x: Float[Array, "B samples C"]) -> Float[Array, "B samples C"]:
        """Repeat the first sample before the start and the last one after the end: the padding of resampling.

        If the array has neither, those samples influence no sample inside the sound.
        """
        at = self.start + jnp.arange(x.shape[1])
        x = jnp.where((at < 0)[None, :, None], _sample(x, -self.start), x)
        if self.end is None:
            return x
        return jnp.where((at >= self.end)[None, :, None], _sample(x, self.end - 1 - self.start), x)


def _sample(x: Float[Array, "B samples C"], at: Int[Array, ""] | int) -> Float[Array, "B 1 C"]:
    return jax.lax.dynamic_slice_in_dim(x, jnp.clip(at, 0, x.shape[1] - 1), 1, axis=1)


class Conv(nn.Module):
    """An odd-width convolution that keeps the length."""

    features: int
    width: int
    dilation: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B samples _"], position: SoundPosition | None
    ) -> tuple[Float[Array, "B samples _"], SoundPosition | None]:
        """Convolve; return the result and its position."""
        reach = self.width // 2 * self.dilation
        border = reach if position is None else 0
        conv = nn.Conv(
            *(self.features, self.width),
            kernel_dilation=self.dilation,
            padding=border,
            use_bias=self.use_bias,
            name="conv",
        )
        if position is None:
            return conv(x), None
        position = position.delayed(reach)
        return position.silence_outside(conv(with_past(self, x, 2 * reach))), position


class Delay(nn.Module):
    """Delay a shortcut by as much as the layers that it bypasses look ahead."""

    samples: int

    @nn.compact
    def __call__(self, x: Float[Array, "B samples C"], position: SoundPosition | None) -> Float[Array, "B samples C"]:
        """Return the input from `samples` ago."""
        if position is None or self.samples == 0:
            return x
        return with_past(self, x, self.samples)[:, : x.shape[1]]


class UpConv(nn.Module):
    """A transposed convolution, computed as a plain one with `rate` outputs per input (no zeros are multiplied).

    Output q takes input q // rate - t through tap q % rate + t * rate, for t from 0 to the kernel's end. The kernel is
    [width, in, out] in the reference's tap order, not flipped.
    """

    features: int
    width: int
    rate: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B samples _"], position: SoundPosition | None
    ) -> tuple[Float[Array, "B samples_fast _"], SoundPosition | None]:
        """Upsample; return the result and its position."""
        channels, past, cut = x.shape[-1], (self.width - 1) // self.rate, (self.width - self.rate) // 2
        init = nn.initializers.variance_scaling(self.rate, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (self.width, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        taps = jnp.pad(kernel, ((0, (past + 1) * self.rate - self.width), (0, 0), (0, 0)))
        taps = taps.reshape(past + 1, self.rate, channels, self.features)[::-1].swapaxes(1, 2)
        joined = jnp.pad(x, ((0, 0), (past, past), (0, 0))) if position is None else with_past(self, x, past)
        y = jax.lax.conv_general_dilated(
            joined, taps.reshape(past + 1, channels, -1), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        y = y.reshape(x.shape[0], -1, self.features) + bias[None, None]
        if position is None:
            return y[:, cut : cut + x.shape[1] * self.rate], None
        position = position.faster(self.rate).delayed(cut)
        return position.silence_outside(y), position
