"""LTX-2's latent upsamplers: latents of a small picture, or of few frames, to those of a larger one, or of more.

The network works on raw latents, so its callers undo and redo the normalisation of the video VAE around it
(`upsample_clip`). It is not causal, and its norms look at a whole clip. A stream runs the same network block by block
(see `carry.py`, `upsample_next`): convolutions keep past frames, and norms keep the moments of past frames.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import VariableDict
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike, Float

from omniforcing_jax.codecs.carry import COLLECTION
from omniforcing_jax.codecs.conv import SpatialPadding, TemporalConv
from omniforcing_jax.codecs.folding import unfold
from omniforcing_jax.codecs.upsampler_config import GROUPS, Resampling, UpsamplerConfig

EPS = 1e-5
MEMORY = 16
"""Past latent frames that weigh in a norm of a stream, about: a clip of five seconds, as LTX-2 is trained on."""


def conv(features: int, ahead: int, name: str | None = None) -> TemporalConv:
    """Build a 3x3x3 convolution with zeros around a clip on all sides."""
    return TemporalConv(features, SpatialPadding.ZEROS, causal=False, ahead=ahead, repeats=False, name=name)


class ClipNorm(nn.Module):
    """Group norm over all frames of a clip; in a stream over those so far, of which old ones are forgotten.

    Attributes:
        ahead: Look-ahead frames at the end of a call. They weigh in this call, and are not kept.
    """

    ahead: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "B frames h w C"]) -> Float[Array, "B frames h w C"]:
        """Normalise; moments are computed in float32."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        groups = x.reshape(*x.shape[:-1], GROUPS, -1).astype(jnp.float32)
        mean, var = (each[:, None, None, None, :, None] for each in self._moments(groups)[1:])
        normed = ((groups - mean) * lax.rsqrt(var + EPS)).reshape(x.shape)
        return (normed * _last(scale, jnp.float32) + _last(bias, jnp.float32)).astype(x.dtype)

    def _moments(self, groups: Array) -> "Moments":
        """Return the moments of past and fresh frames, and keep those of all but the look-ahead."""
        past = None
        if self.has_variable(COLLECTION, "mean"):
            past = Moments(*(self.get_variable(COLLECTION, name) for name in Moments._fields))
        if self.is_mutable_collection(COLLECTION) and not self.is_initializing():
            kept = _join(past, _measure(groups[:, : groups.shape[1] - self.ahead]))
            for name, value in kept._replace(frames=jnp.minimum(kept.frames, MEMORY))._asdict().items():
                self.put_variable(COLLECTION, name, value)
        return _join(past, _measure(groups))


class Moments(NamedTuple):
    """Moments of each group of channels over some frames: their number [], mean and variance [B, groups], float32."""

    frames: Array
    mean: Array
    variance: Array


def _measure(groups: Array) -> Moments:
    axes = (1, 2, 3, 5)
    return Moments(jnp.float32(groups.shape[1]), jnp.mean(groups, axes), jnp.var(groups, axes))


def _join(past: Moments | None, fresh: Moments) -> Moments:
    if past is None:
        return fresh
    frames = past.frames + fresh.frames
    share, apart = fresh.frames / frames, fresh.mean - past.mean
    variance = (1 - share) * past.variance + share * fresh.variance + share * (1 - share) * jnp.square(apart)
    return Moments(frames, past.mean + share * apart, variance)


def _last(vector: ArrayLike, dtype: DTypeLike) -> Float[Array, "1 1 1 1 C"]:
    return jnp.asarray(vector, dtype)[None, None, None, None]


class ResBlock(nn.Module):
    """SiLU of x plus two rounds of convolution and norm."""

    width: int
    ahead: int

    def setup(self) -> None:
        """Make the parts."""
        self.conv1, self.conv2 = conv(self.width, self.ahead), conv(self.width, self.ahead)
        self.norm1, self.norm2 = ClipNorm(self.ahead), ClipNorm(self.ahead)

    def __call__(self, x: Float[Array, "B frames h w C"]) -> Float[Array, "B frames h w C"]:
        """Refine the input."""
        return nn.silu(x + self.norm2(self.conv2(nn.silu(self.norm1(self.conv1(x))))))


class Resample(nn.Module):
    """Depth-to-space of a convolution; a rational one then leaves out cells of a blurred picture.

    Where it doubles time, it drops the first frame: F frames become 2 F - 1.
    """

    config: UpsamplerConfig
    ahead: int

    @nn.compact
    def __call__(self, x: Float[Array, "B F h w C"]) -> Float[Array, "B frames h_out w_out C"]:
        """Resample."""
        time, side, _ = stride = self.config.stride
        features = x.shape[-1] * time * side**2
        if self.config.doubles_time:
            return unfold(conv(features, self.ahead, "conv")(x), stride)[:, 1:]
        y = unfold(nn.Conv(features, (3, 3), padding=1, dtype=x.dtype, name="conv")(x), stride)
        return self._blur(y, self.config.ratio[1]) if self.config.resampling is Resampling.RATIONAL else y

    def _blur(self, x: Array, step: int) -> Array:
        """Blur the picture and take every second to fourth cell. Files have the kernel even where the step is 1."""
        kernel = self.variable("constants", "blur", lambda: jnp.zeros((5, 5, 1, 1))).value
        if step == 1:
            return x
        batch, frames, *_, channels = x.shape
        blurred = lax.conv_general_dilated(
            x.reshape(batch * frames, *x.shape[2:]),
            jnp.tile(jnp.asarray(kernel, x.dtype), (1, 1, 1, channels)),
            (step, step),
            ((2, 2), (2, 2)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        return blurred.reshape(batch, frames, *blurred.shape[1:])


class LatentUpsampler(nn.Module):
    """Raw latents to raw latents, through two stages of residual blocks with the resampling between them.

    Attributes:
        config: Its shape.
        ahead: Look-ahead latent frames at the end of a call (see `TemporalConv`). They are returned too, and are
            returned again, better, when the next call begins with them.

    Source: ltx-core@1.0.0:model/upsampler/model.py, LatentUpsampler.
    """

    config: UpsamplerConfig
    ahead: int = 0

    def setup(self) -> None:
        """Make the parts."""
        width, layers, ahead = self.config.width, range(self.config.layers), self.ahead
        self.initial_conv, self.initial_norm = conv(width, ahead), ClipNorm(ahead)
        self.res_blocks = [ResBlock(width, ahead) for _ in layers]
        self.upsampler = Resample(self.config, ahead)
        self.post_upsample_res_blocks = [ResBlock(width, ahead) for _ in layers]
        self.final_conv = conv(self.config.latent_channels, ahead)

    def __call__(self, latents: Float[Array, "B F h w C"]) -> Float[Array, "B frames h_out w_out C"]:
        """Upsample.

        Raises:
            ValueError: The latents' channels are not the config's.
        """
        if latents.shape[-1] != self.config.latent_channels:
            expected = self.config.latent_channels
            raise ValueError(f"video latents have {latents.shape[-1]} channels, expected {expected}")
        x = nn.silu(self.initial_norm(self.initial_conv(latents)))
        for block in self.res_blocks:
            x = block(x)
        x = self.upsampler(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        return self.final_conv(x)


def init_upsampler(config: UpsamplerConfig) -> VariableDict:
    """Return the shapes of an upsampler's variables."""
    latents = jax.ShapeDtypeStruct((1, 2, 2, 2, config.latent_channels), jnp.float32)
    return jax.eval_shape(LatentUpsampler(config).init, jax.random.key(0), latents)


def upsample_clip(
    config: UpsamplerConfig, variables: VariableDict, vae: VariableDict, latents: Float[Array, "B F h w C"]
) -> Float[Array, "B frames h_out w_out C"]:
    """Upsample the normalised latents of whole clips.

    Args:
        config: The upsampler.
        variables: Its variables.
        vae: Variables of the video VAE, whose statistics normalise the latents.
        latents: Normalised latents.
    """
    return _renormalise(vae, latents, lambda raw: cast(Array, LatentUpsampler(config).apply(variables, raw)))


def upsample_next(
    config: UpsamplerConfig,
    variables: VariableDict,
    vae: VariableDict,
    latents: Float[Array, "B F h w C"],
    carry: VariableDict | None,
    ahead: int = 0,
) -> tuple[Float[Array, "B F h_out w_out C"], VariableDict]:
    """Upsample the next latent frames of a stream; also returns the upsampler's state, which keeps its shapes.

    The result is not the whole clip's: it sees `ahead` later frames only, and its norms know no later ones.

    Args:
        config: The upsampler.
        variables: Its variables.
        vae: As in `upsample_clip`.
        latents: Normalised latents. The last `ahead` frames are look-ahead: pass them again in the next call.
        carry: State that the call before returned; None for the first one.
        ahead: Number of look-ahead frames.

    Raises:
        ValueError: The upsampler doubles time, or there is only look-ahead.
    """
    if config.doubles_time:
        raise ValueError(f"resampling={config.resampling.value!r}: only pictures are upsampled block by block")
    if not 0 <= ahead < latents.shape[1]:
        raise ValueError(f"ahead={ahead}: must be from 0 to {latents.shape[1] - 1}, fewer than the latent frames given")
    kept: list[VariableDict] = []

    def run(raw: Array) -> Array:
        past = {} if carry is None else {COLLECTION: carry}
        y, updated = LatentUpsampler(config, ahead).apply({**variables, **past}, raw, mutable=[COLLECTION])
        kept.append(updated[COLLECTION])
        return y

    return _renormalise(vae, latents, run), kept[0]


def _renormalise(vae: VariableDict, latents: Array, run: Callable[[Array], Array]) -> Array:
    """Run a network on raw latents: undo the normalisation before it, and redo it behind it."""
    mean, std = (_last(vae["stats"][name], latents.dtype) for name in ("latents_mean", "latents_std"))
    return (run(latents * std + mean) - mean) / std
