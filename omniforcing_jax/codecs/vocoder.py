"""The vocoders of LTX-2 at any width: log-mel rows to a waveform, 24 kHz (2.0) or 48 kHz with two generators (2.3).

A vocoder looks ahead as well as back, so a stream's sound lags behind its rows by `VocoderConfig.delay` samples; see
`timeline.py`.
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
from omniforcing_jax.codecs.timeline import SoundPosition
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.strict_json import LARGEST_SIZE, require, require_counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderConfig(GeneratorConfig):
    """The shape of a vocoder: a generator and, if any, its bandwidth extension.

    Attributes:
        row_rate: Mel rows per second.
        extension: A second generator after the first; None if the first one's sound is the result.

    Source: LTX-2, `vocoder`.
    """

    row_rate: int = 100
    extension: ExtensionConfig | None = None

    def __post_init__(self):
        """Also refuse an extension that does not fit the generator."""
        super().__post_init__()
        require_counts(self, LARGEST_SIZE, "row_rate", name="VocoderConfig.")
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
        """Samples by which a stream's first waveform is delayed, so that it starts at a row of the extension."""
        return 0 if self.extension is None else -super().delay % self.extension.hop

    @property
    def delay(self) -> int:
        """Samples by which a stream's sound lags behind its rows."""
        if self.extension is None:
            return super().delay
        return (super().delay + self.wait) * self.extension.ratio + self.extension.delay

    @property
    def lookahead_rows(self) -> int:
        """Mel rows after its own that a row's sound may depend on."""
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
# Chime's tones repeat with every row, so one stage that writes whole rows learns in minutes what a cascade did not.
CHIME_VOCODER = VocoderConfig(
    channels=(320, 12), rates=(240,), kernels=(480,), resblock_kernels=(3,), resblock_dilations=((1,),)
)


class Vocoder(nn.Module):
    """Log-mel to waveform: a whole clip or, with a `position`, the next piece of a stream.

    Variables: `params`; with periodic activations or an extension also `constants` (a checkpoint's filters and bases,
    not trained); in a stream also `carry`. Those of the first generator are at the top, of the second under
    `extension`.
    """

    config: VocoderConfig

    @nn.compact
    def __call__(
        self, mel: Float[Array, "B rows bins channels"], position: SoundPosition | None = None
    ) -> Float[Array, "B samples channels"]:
        """Vocode a whole clip, or continue a stream.

        Raises:
            ValueError: Bins or channels are not the config's.
        """
        config = self.config
        if mel.shape[2:] != (config.mel_bins, config.audio_channels):
            expected = f"[B, rows, {config.mel_bins}, {config.audio_channels}]"
            raise ValueError(f"log-mel has shape {mel.shape}, expected {expected}")
        generator = Generator(config)
        nn.share_scope(self, generator)
        samples, position = generator(mel, position)
        if config.extension is None:
            return samples
        return Extension(config.extension, config.first_rate, config.wait, name="extension")(samples, position)[0]


@flax.struct.dataclass
class VocoderCarry:
    """The state of a stream of sound between pieces: every layer's past, and the number of rows so far.

    The count stops at twice the look-ahead, so it cannot overflow. By then no layer's past reaches back to the start.
    """

    past: Any  # the collection `carry`
    rows: ArrayLeaf  # int32 []


def push(
    config: VocoderConfig,
    variables: VariableDict,
    mel: Float[Array, "B rows bins channels"],
    carry: VocoderCarry | None,
) -> tuple[Float[Array, "B samples channels"], VocoderCarry]:
    """Vocode the next rows of a stream; `carry` is None for the first piece, later the last call's.

    Every row becomes `config.samples_per_row` samples, `config.delay` samples late. The first `config.delay` samples
    of a stream are silence before its start; drop them. `flush` returns the last ones.
    """
    rows = jnp.zeros((), jnp.int32) if carry is None else carry.rows
    samples, past = _advance(config, variables, mel, carry, SoundPosition(start=rows, end=None))
    return samples, VocoderCarry(past=past, rows=jnp.minimum(rows + mel.shape[1], 2 * config.lookahead_rows))


def flush(config: VocoderConfig, variables: VariableDict, carry: VocoderCarry) -> Float[Array, "B delay channels"]:
    """End a stream: return its last `config.delay` samples, which waited for further rows."""
    past = jax.tree.leaves(carry.past)[0]
    nothing = jnp.zeros((past.shape[0], config.lookahead_rows, config.mel_bins, config.audio_channels), past.dtype)
    samples, _ = _advance(config, variables, nothing, carry, SoundPosition(start=carry.rows, end=carry.rows))
    return samples[:, : config.delay]


def _advance(
    config: VocoderConfig,
    variables: VariableDict,
    mel: Float[Array, "B rows bins channels"],
    carry: VocoderCarry | None,
    position: SoundPosition,
) -> tuple[Float[Array, "B samples channels"], VariableDict]:
    past = {} if carry is None else {COLLECTION: carry.past}
    samples, updated = Vocoder(config).apply({**variables, **past}, mel, position, mutable=[COLLECTION])
    return samples, updated[COLLECTION]
