"""The causal 3-D convolution of the video VAE, channel-last, with its temporal state.

One function decides how a convolution is computed on which backend; one Linen module
pads in time (first-frame copies, or the frames a stream has kept) and calls it.
Only kernel size 3 exists here, because LTX-2 uses no other.
"""

from enum import Enum

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

REACH = 2
"""Frames a kernel of size 3 reaches into the past: what a stream keeps per convolution."""


class SpatialPadding(Enum):
    """What lies outside the picture: black, or the mirrored inside (edge not repeated)."""

    ZEROS = "zeros"
    REFLECT = "reflect"


def convolve(
    x: Float[Array, "B T_in H_in W_in C_in"], kernel: Float[Array, "3 3 3 C_in C_out"], border: int
) -> Float[Array, "B T H W C_out"]:
    """Convolve, valid in time and with `border` zeros around each frame, as the backend does it fastest.

    XLA's direct 3-D convolution is the right one on accelerators. On CPU it runs at 10 to 50
    GFLOP/s where 2-D convolutions run at 100, hence the sum over the three temporal taps.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _sum_over_taps(x, kernel, border),
        default=lambda x, kernel: _direct(x, kernel, border),
    )


def _direct(x: Array, kernel: Array, border: int) -> Array:
    padding = ((0, 0), (border, border), (border, border))
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def _sum_over_taps(x: Array, kernel: Array, border: int) -> Array:
    frames = x.shape[1] - REACH
    return sum(_frame_by_frame(x[:, tap : tap + frames], kernel[tap], border) for tap in range(REACH + 1))


def _frame_by_frame(x: Array, kernel: Array, border: int) -> Array:
    batch, frames = x.shape[:2]
    padding = ((border, border), (border, border))
    y = lax.conv_general_dilated(
        x.reshape(batch * frames, *x.shape[2:]), kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(batch, frames, *y.shape[1:])


class TemporalConv(nn.Module):
    """A 3x3x3 convolution whose time border repeats edge frames.

    Causal: two copies of the first frame in front, or, in a stream past its first chunk, the
    last two frames of the chunk before. Otherwise one copy of the first frame in front and one
    of the last behind. A caller that makes the collection `carry` mutable gets the two frames
    to keep; one that does not has convolved a whole clip.

    Source: LTX-2 CausalConv3d.
    """

    features: int
    padding: SpatialPadding
    causal: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C_in"], first: bool = True) -> Float[Array, "B T H W C_out"]:
        """Convolve one chunk (or, with `first`, a whole clip)."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x = self._extend_in_time(x, first)
        border = 1
        if self.padding is SpatialPadding.REFLECT:
            x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
            border = 0
        return convolve(x, kernel.astype(x.dtype), border) + bias.astype(x.dtype)[None, None, None, None]

    def _extend_in_time(self, x: Array, first: bool) -> Array:
        head = x[:, :1]
        if not self.causal:
            return jnp.concatenate([head, x, x[:, -1:]], axis=1)
        past = jnp.concatenate([head] * REACH, axis=1) if first else self.get_variable("carry", "past")
        x = jnp.concatenate([past, x], axis=1)
        if self.is_mutable_collection("carry") and not self.is_initializing():
            self.put_variable("carry", "past", x[:, -REACH:])
        return x


def pixel_norm(x: Float[Array, "... C"], eps: float = 1e-8) -> Float[Array, "... C"]:
    """Divide each position by the root mean square of its channels; statistics in float32.

    Source: LTX-2 PixelNorm; eps is 1e-8 in the video VAE and 1e-6 in the audio VAE.
    """
    mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + eps).astype(x.dtype)
