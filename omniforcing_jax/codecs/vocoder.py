"""The vocoders of LTX-2 at any width: log-mel rows to a waveform, 24 kHz (2.0) or 48 kHz with two generators (2.3).

A vocoder looks into the future as well as into the past, so a stream's sound lags behind its rows by
`VocoderConfig.delay` samples; see `timeline.py`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.typing import VariableDict
from jaxtyping import Array, Float

from omniforcing_jax.codecs.bandwidth import Extension, ExtensionConfig
from omniforcing_jax.codecs.carry import COLLECTION
from omniforcing_jax.codecs.generator import Activation, Final, Generator, GeneratorConfig
from omniforcing_jax.codecs.timeline import Span
from omniforcing_jax.strict_json import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderConfig(GeneratorConfig):
    """The shape of a vocoder: a generator, and what extends its bandwidth.

    Attributes:
        row_rate: Mel rows per second.
        extension: A second generator behind the first; None where the first one's sound is the result.

    Source: LTX-2, `vocoder`.
    """

    row_rate: int = 100
    extension: ExtensionConfig | None = None

    def __post_init__(self):
        """Refuse an extension that does not fit, besides what no generator can be."""
        super().__post_init__()
        if self.extension is not None:
            hop, heard = self.extension.hop, self.extension.generator.audio_channels
            samples = super().samples_per_row
            require(samples % hop == 0, "VocoderConfig.extension.hop", hop, f"must divide the {samples} of a row")
            rule = f"must be {self.audio_channels}, as in the first generator"
            require(heard == self.audio_channels, "VocoderConfig.extension.generator.audio_channels", heard, rule)

    @property
    def samples_per_row(self) -> int:
        """Samples that one mel row becomes."""
        return super().samples_per_row * (1 if self.extension is None else self.extension.ratio)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveform."""
        return self.row_rate * self.samples_per_row

    @property
    def first_rate(self) -> int:
        """Samples per second of the first generator's waveform."""
        return self.row_rate * super().samples_per_row

    @property
    def wait(self) -> int:
        """Samples that a stream's first waveform is held back until it stands at a row of the extension."""
        return 0 if self.extension is None else -super().delay % self.extension.hop

    @property
    def delay(self) -> int:
        """Samples by which a stream's sound lags behind the rows pushed so far."""
        if self.extension is None:
            return super().delay
        return (super().delay + self.wait) * self.extension.ratio + self.extension.delay

    @property
    def lookahead_rows(self) -> int:
        """Mel rows after its own on which a row's sound may depend."""
        return -(-self.delay // self.samples_per_row)


LTX2_VOCODER = VocoderConfig()
LTX23_VOCODER = VocoderConfig(
    channels=(1536, 768, 384, 192, 96, 48, 24),
    rates=(5, 2, 2, 2, 2, 2),
    kernels=(11, 4, 4, 4, 4, 4),
    activation=Activation.SNAKE,
    final=Final.CLAMP,
    final_bias=False,
    extension=ExtensionConfig(
        generator=GeneratorConfig(
            channels=(512, 256, 128, 64, 32, 16),
            kernels=(12, 11, 4, 4, 4),
            activation=Activation.SNAKE,
            final=Final.NONE,
            final_bias=False,
        )
    ),
)
# Chime's tones repeat with every row: one stage that writes whole rows learns in minutes what a cascade did not.
CHIME_VOCODER = VocoderConfig(
    channels=(160, 6), rates=(240,), kernels=(480,), resblock_kernels=(3,), resblock_dilations=((1,),)
)


class Vocoder(nn.Module):
    """Log-mel to waveform; with a `span`, the next piece of a stream.

    Variables: `params`; with periodic activations or an extension `constants` (filters and bases that a checkpoint
    holds, not trained); in a stream `carry`. The first generator's lie at the top, the second's under `extension`.
    """

    config: VocoderConfig

    @nn.compact
    def __call__(
        self, mel: Float[Array, "B rows bins channels"], span: Span | None = None
    ) -> Float[Array, "B samples channels"]:
        """Vocode a whole clip, or continue a stream.

        Raises:
            ValueError: If bins or channels are not the config's.
        """
        config = self.config
        if mel.shape[2:] != (config.mel_bins, config.audio_channels):
            expected = f"[B, rows, {config.mel_bins}, {config.audio_channels}]"
            raise ValueError(f"log-mel has shape {mel.shape}, expected {expected}")
        generator = Generator(config)
        nn.share_scope(self, generator)
        samples, span = generator(mel, span)
        if config.extension is None:
            return samples
        return Extension(config.extension, config.first_rate, config.wait, name="extension")(samples, span)[0]


@flax.struct.dataclass
class VocoderCarry:
    """What a stream of sound keeps between pieces: every layer's past, and how many rows went in.

    The count stops at twice the look-ahead, when no layer's past reaches back to the start: it cannot overflow.
    """

    past: Any  # the collection `carry`
    rows: Any  # int32 []


def push(
    config: VocoderConfig,
    variables: VariableDict,
    mel: Float[Array, "B rows bins channels"],
    carry: VocoderCarry | None,
) -> tuple[Float[Array, "B samples channels"], VocoderCarry]:
    """Vocode the next rows of a stream; `carry` is None for the first piece, and what came back afterwards.

    As many samples come out as rows went in, `config.delay` samples late: the first `config.delay` samples of a
    stream are silence that stands before its start and is dropped, and `flush` has the last ones.
    """
    rows = jnp.zeros((), jnp.int32) if carry is None else carry.rows
    samples, past = _advance(config, variables, mel, carry, Span(start=rows, end=None))
    return samples, VocoderCarry(past=past, rows=jnp.minimum(rows + mel.shape[1], 2 * config.lookahead_rows))


def flush(config: VocoderConfig, variables: VariableDict, carry: VocoderCarry) -> Float[Array, "B delay channels"]:
    """End a stream: return the `config.delay` samples that waited for rows that will not come."""
    past = jax.tree.leaves(carry.past)[0]
    nothing = jnp.zeros((past.shape[0], config.lookahead_rows, config.mel_bins, config.audio_channels), past.dtype)
    samples, _ = _advance(config, variables, nothing, carry, Span(start=carry.rows, end=carry.rows))
    return samples[:, : config.delay]


def _advance(config, variables, mel, carry, span):
    past = {} if carry is None else {COLLECTION: carry.past}
    samples, updated = Vocoder(config).apply({**variables, **past}, mel, span, mutable=[COLLECTION])
    return samples, updated[COLLECTION]
