"""Our weights folder, read for the way out: each component's tensors under another format's keys, not read yet."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.component import Component
from converters.convert import PASSED, SOURCE
from converters.files import read_json_object
from converters.piece import Mapped, Piece, pieces_of
from converters.registry import COMPONENTS, NAMES
from converters.rules import Placement
from omniforcing_jax.config import ModelConfig, RotaryKind
from omniforcing_jax.io import weights
from omniforcing_jax.io.tensor_file import TensorFile, open_tensors
from omniforcing_jax.nn.rope import interleaving
from omniforcing_jax.text.connector import ConnectorsConfig

# Leaves whose rows a rotation pairs: in the transformer, and in the connectors.
ROTATED = re.compile(
    r"(?P<site>layers/(video|audio)/self_attn|layers/(a2v|v2a)|(video|audio)/layers/attn)/([qk]/[wb]|[qk]_norm)"
)


@dataclass(frozen=True, kw_only=True)
class Own:
    """One component of a weights folder.

    Attributes:
        name: Its subfolder.
        place: Where it lies.
        component: Its table; None where there is none.
        config: Our config of it; None without a table.
        model: Its tensors; None where all of them went through untouched.
        passed: Tensors that went through, under their keys at the source.
        source: What is kept of the source; empty for weights that were made here.
    """

    name: str
    place: Path
    component: Component | None
    config: Any | None
    model: TensorFile | None
    passed: TensorFile | None
    source: Mapping[str, Any]

    @property
    def is_made_here(self) -> bool:
        """Whether it is a component of our own kind, such as chime's words, that no table knows."""
        return self.model is not None and self.component is None

    @property
    def naming(self) -> str | None:
        """How the keys that went through are spelled."""
        return self.source.get("naming")

    @property
    def metadata(self) -> dict[str, str]:
        """The source's header."""
        return dict(self.source.get("metadata") or {})


def open_own(folder: Path) -> dict[str, Own]:
    """Open a weights folder; headers and configs are read and checked, no tensor is.

    Raises:
        ValueError: It is no weights folder, or a component is damaged or not of its config; names file and key.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such weights folder")
    top = weights.read_config(folder)
    if "format" not in top:
        raise ValueError(f"{folder / weights.CONFIG}: no format; not a weights folder of ours")
    elsewhere = top.get("components", {})
    places = {name: folder / elsewhere.get(name, name) for name in NAMES}
    found = {name: _open(name, place) for name, place in places.items() if place.is_dir()}
    if not found:
        raise ValueError(f"{folder}: holds no component")
    return found


def _open(name: str, place: Path) -> Own:
    source = read_json_object(place / SOURCE) if (place / SOURCE).is_file() else {}
    passed = open_tensors(place / PASSED) if (place / PASSED).is_file() else None
    model = open_tensors(place / weights.MODEL) if (place / weights.MODEL).is_file() else None
    if model is None and passed is None:
        raise ValueError(f"{place}: holds neither {weights.MODEL} nor {PASSED}")
    component, config = COMPONENTS.get(name) if model is not None else None, None
    if component is not None and model is not None:
        values = weights.read_config(place)
        try:
            config = component.read_own(values)
        except ValueError as error:
            if source:
                raise ValueError(f"{place / weights.CONFIG}: {error}") from None
            component = None
    if component is not None and model is not None:
        wanted = weights.name_leaves(component.abstract(config))
        shapes = {key: tuple(leaf.shape) for key, leaf in wanted.items()}
        weights.compare_shapes(model.shapes, shapes, str(model.path))
    return Own(name=name, place=place, component=component, config=config, model=model, passed=passed, source=source)


def rename_out(own: Own, naming: str) -> dict[str, Piece]:
    """List a component's tensors under another format's keys, and those that went through if they came from there.

    Raises:
        ValueError: The component has no table for that naming.
    """
    through = pieces_of(own.passed) if own.passed is not None and own.naming == naming else {}
    if own.model is None and through:
        return through
    if own.component is None or own.model is None or naming not in own.component.namings:
        raise ValueError(f"{own.place}: {own.name} has no table for {naming}; name what to export with --components")
    file = own.model
    return {p.theirs: _piece(file, p) for p in own.component.place(own.config, naming)} | through


def _piece(file: TensorFile, placement: Placement) -> Piece:
    entry = file.entries[placement.ours]
    mapped = Mapped(file=file, name=placement.ours, row=placement.layer)
    load = mapped if placement.axes is None else lambda: placement.to_theirs(mapped())
    return Piece(dtype=entry.dtype, shape=placement.shape, where=str(file.path), load=load)


def turn_rotary(own: Own, kind: RotaryKind, pieces: Mapping[str, Piece], naming: str) -> tuple[Own, dict[str, Piece]]:
    """Permute query and key rows so that the same function has rotary pairs of another kind.

    Only attentions that rotate are touched: four of the transformer's (text attention does not) and the connectors'.
    Source: specs/omniforcing.md 4.3.

    Args:
        own: Any component; one without rotation comes back as it is.
        kind: The pairs that are wanted.
        pieces: Its tensors under the keys of `naming`.
        naming: How the keys are spelled.
    """
    turned = _turn_config(own.config, kind)
    if own.component is None or turned == own.config:
        return own, dict(pieces)
    result = dict(pieces)
    for placement in own.component.place(own.config, naming):
        order = _order_of(placement.ours, own.config)
        if order is not None:
            rows = order if kind is RotaryKind.INTERLEAVED else np.argsort(order)
            result[placement.theirs] = _permuted(pieces[placement.theirs], rows)
    return dataclasses.replace(own, config=turned), result


def _turn_config(config: Any, kind: RotaryKind) -> Any:
    if isinstance(config, ModelConfig):
        return dataclasses.replace(config, rotary=dataclasses.replace(config.rotary, kind=kind))
    return dataclasses.replace(config, rotary=kind) if isinstance(config, ConnectorsConfig) else config


def _order_of(name: str, config: Any) -> np.ndarray | None:
    """Return the interleaving of a leaf's rows; None for one that is not rotated."""
    found = ROTATED.fullmatch(name)
    if found is None:
        return None
    site = found["site"]
    if isinstance(config, ModelConfig):  # crossings have the audio's head size on both sides
        stream = config.video if site == "layers/video/self_attn" else config.audio
    else:
        stream = config.video if site == "video/layers/attn" else config.audio
    return interleaving(stream.heads, stream.head_size)


def _permuted(piece: Piece, rows: np.ndarray) -> Piece:
    return dataclasses.replace(piece, load=lambda: np.asarray(piece.load())[rows])
