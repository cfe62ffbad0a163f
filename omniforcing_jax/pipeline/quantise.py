"""A wide weights file seen as one in eight bits: its matrices are quantised while they are read.

What is read is bit-equal to what `omniforcing convert --quantise` writes of the same weights.
"""

import dataclasses

import numpy as np

from omniforcing_jax.config import EightBits, ModelConfig
from omniforcing_jax.io.tensor_file import Entry, Index, TensorFile
from omniforcing_jax.nn.quantised import EIGHTS, encode, measure_scale

WHOLE = slice(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixInParts:
    """The three tensors of one matrix of all layers, of which some are in eight bits.

    Attributes:
        wide: Name of the matrix in a file that is not quantised, [L, O, I].
    """

    wide: str

    @property
    def values(self) -> str:
        """Name of the eight bits, [layers in eight bits, O, I]."""
        return f"{self.wide}/narrow/values"

    @property
    def scale(self) -> str:
        """Name of their scales, [layers in eight bits, O]."""
        return f"{self.wide}/narrow/scale"

    @property
    def others(self) -> str:
        """Name of the other layers' matrices, [the others, O, I]."""
        return f"{self.wide}/wide"


def matrices(eight_bits: EightBits) -> tuple[MatrixInParts, ...]:
    """List the matrices that are in eight bits."""
    return tuple(MatrixInParts(wide=f"layers/{part}/w") for part in eight_bits.parts)


def kept_layers(eight_bits: EightBits, layers: int) -> tuple[int, ...]:
    """List the layers that are not in eight bits."""
    return tuple(i for i in range(layers) if i not in eight_bits.layers)


def quantising(file: TensorFile, config: ModelConfig) -> TensorFile:
    """View a wide file of a network as the config has it; a file in eight bits already is returned as it is."""
    chosen = config.eight_bits
    if chosen is None or not any(each.wide in file.entries for each in matrices(chosen)):
        return file
    kept = kept_layers(chosen, config.layers)
    entries = _entries(file, chosen, kept)
    return QuantisedView(
        path=file.path, metadata=file.metadata, entries=entries, base=file, eight_bits=chosen, kept=kept
    )


def _entries(file: TensorFile, chosen: EightBits, kept: tuple[int, ...]) -> dict[str, Entry]:
    """List the tensors of the view; those that are quantised have no place in the file."""
    entries, narrow, eights = dict(file.entries), chosen.layers, EIGHTS[chosen.kind]
    for each in matrices(chosen):
        own = entries.get(each.wide)
        if own is None or len(own.shape) != 3 or own.shape[0] != len(narrow) + len(kept):
            continue  # missing or mis-shaped: comparing with the network's shapes names it
        del entries[each.wide]
        sizes = own.shape[1:]
        entries[each.values] = Entry(dtype=eights.dtype, shape=(len(narrow), *sizes), offset=0)
        entries[each.scale] = Entry(dtype=np.dtype(np.float32), shape=(len(narrow), *sizes[:-1]), offset=0)
        if kept:
            entries[each.others] = Entry(dtype=own.dtype, shape=(len(kept), *sizes), offset=0)
    return entries


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantisedView(TensorFile):
    """A file whose matrices are quantised while they are read.

    Attributes:
        base: The file as it is.
        eight_bits: What is in eight bits.
        kept: Layers that are not.
        measured: Scales of what was read, so that nothing is read again for its scale.
    """

    base: TensorFile
    eight_bits: EightBits
    kept: tuple[int, ...]
    measured: dict[tuple[str, int, int | None, int | None], np.ndarray] = dataclasses.field(default_factory=dict)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """Read one tensor or a slice of it; see `TensorFile.read`.

        Raises:
            ValueError: A value is not finite; names file and tensor.
        """
        if name in self.base.entries:
            return self.base.read(name, index)
        layers, *rest = (*index, WHOLE, WHOLE, WHOLE)[:3]
        (matrix,) = (each for each in matrices(self.eight_bits) if name in (each.values, each.scale, each.others))
        if name == matrix.others:
            numbers = self.kept[layers]
            return np.concatenate([self.base.read(matrix.wide, (slice(i, i + 1), *rest)) for i in numbers])
        take = self._read_values if name == matrix.values else self._read_scale
        return np.stack([take(matrix.wide, layer, *rest) for layer in self.eight_bits.layers[layers]])

    def _read_scale(self, name: str, layer: int, channels: slice, _: slice) -> np.ndarray:
        key = name, layer, channels.start, channels.stop
        if key not in self.measured:
            self._read_wide(name, layer, channels)
        return self.measured[key]

    def _read_values(self, name: str, layer: int, channels: slice, inputs: slice) -> np.ndarray:
        w = self._read_wide(name, layer, channels)
        return encode(w, self._read_scale(name, layer, channels, inputs), self.eight_bits.kind)[:, inputs]

    def _read_wide(self, name: str, layer: int, channels: slice) -> np.ndarray:
        """Read channels with all of their inputs, and measure their scales."""
        w = self.base.read(name, (slice(layer, layer + 1), channels))[0]
        self.measured[name, layer, channels.start, channels.stop] = self._measure(name, w)
        return w

    def _measure(self, name: str, w: np.ndarray) -> np.ndarray:
        try:
            return measure_scale(w, self.eight_bits.kind)
        except ValueError as error:
            raise ValueError(f"{self.path}: {name} {error}") from None
