"""LTX-2's and OmniForcing's checkpoints by their original keys: whose each tensor is, and what the header says.

LTX-2's header has the configs of all components. OmniForcing's code reads none and supposes the defaults of its
classes (interleaved pairs, a float32 grid, gate 1, own timesteps), so its network is read off the shapes.
Source: specs/ltx2.md 9.1; specs/omniforcing.md 4.5, 8.1.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.choices import Choices, override
from converters.component import LTX2, Header
from converters.ltx2_transformer import PREFIX
from converters.part import Part
from converters.piece import Piece
from converters.quantised import dequantise
from converters.registry import find_owner, find_table
from omniforcing_jax.config import (
    CrossTimestep,
    GridPrecision,
    ModelConfig,
    RotaryConfig,
    RotaryKind,
    StreamConfig,
)

LANDMARK = "audio_patchify_proj.weight"  # every transformer has it, and no other key ends so
SUPPOSED = RotaryConfig(kind=RotaryKind.INTERLEAVED, grid=GridPrecision.FLOAT32)


def read_checkpoint(
    path: Path, tensors: Mapping[str, Piece], metadata: Mapping[str, str], choices: Choices, notes: tuple[str, ...] = ()
) -> list[Part]:
    """Split a checkpoint under original keys into its components.

    Args:
        path: The file or folder, for messages.
        tensors: All of them, by key.
        metadata: Of the header.
        choices: What the command says of the network.
        notes: What is known of all components.

    Raises:
        ValueError: A key is nobody's or given twice, or the header is damaged or of another network; names it.
    """
    header = read_header_config(path, metadata)
    student = choices.release == "omniforcing" or (choices.release is None and header is None)
    whole, told = dequantise(_with_prefix(path, tensors))
    groups: dict[str, dict[str, Piece]] = {}
    for key, piece in whole.items():
        owner = find_owner(key)
        if owner is None:
            raise ValueError(f"{piece.where}: unknown {key}, no component's key begins like this")
        groups.setdefault(owner, {})[key] = piece
    if not groups:
        raise ValueError(f"{path}: holds no tensors")
    kind = "OmniForcing" if student else "LTX-2"
    return [
        _part(path, name, group, header, kind, metadata, choices, notes + told)
        for name, group in sorted(groups.items())
    ]


def _part(
    path: Path,
    name: str,
    tensors: Mapping[str, Piece],
    header: Header | None,
    kind: str,
    metadata: Mapping[str, str],
    choices: Choices,
    notes: tuple[str, ...],
) -> Part:
    component, config = find_table(name, LTX2), None
    try:
        if component is not None and name == "transformer" and kind == "OmniForcing":
            config = suppose_network(tensors, choices.heads)
            notes += (
                *(f"rotary {SUPPOSED.kind}, {SUPPOSED.grid} grid, supposed", "gate multiplier 1, supposed"),
                *("timesteps own, supposed", f"{choices.heads} heads, supposed"),
            )
        elif component is not None and header is not None:
            config = component.namings[LTX2].read_config(header)
        if isinstance(config, ModelConfig):
            config, chosen = override(config, choices)
            notes += chosen
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Part(
        name=name,
        format=kind,
        naming=LTX2,
        where=str(path),
        tensors=tensors,
        component=component if config is not None else None,
        config=config,
        metadata=metadata,
        notes=notes,
        student=kind == "OmniForcing",
    )


def read_header_config(path: Path, metadata: Mapping[str, str]) -> Header | None:
    """Read the configs that an LTX-2 header carries; None where it carries none."""
    if "config" not in metadata:
        return None
    try:
        header = json.loads(metadata["config"])
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: the header's config is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header's config is not an object")
    return header


def _with_prefix(path: Path, tensors: Mapping[str, Piece]) -> Mapping[str, Piece]:
    """Spell the transformer's keys with the published prefix, whatever stands in front of them."""
    landmarks = [key for key in tensors if key == LANDMARK or key.endswith(f".{LANDMARK}")]
    if len(landmarks) > 1:
        raise ValueError(f"{path}: {LANDMARK} is given twice: {', '.join(landmarks)}")
    own = landmarks[0].removesuffix(LANDMARK) if landmarks else PREFIX
    if own == PREFIX:
        return tensors
    result: dict[str, Piece] = {}
    for key, piece in tensors.items():
        full = key if find_owner(key) is not None or not key.startswith(own) else PREFIX + key.removeprefix(own)
        if full in result:
            raise ValueError(f"{path}: {full} is given twice, with and without a prefix")
        result[full] = piece
    return result


def suppose_network(tensors: Mapping[str, Piece], heads: int) -> ModelConfig:
    """Read a network of OmniForcing's off its shapes, with what its code supposes.

    Args:
        tensors: The transformer, under published keys.
        heads: Heads of either stream.

    Raises:
        ValueError: A tensor that tells a size is missing or has not two axes; names it.
    """

    def sizes(name: str) -> tuple[int, ...]:
        if PREFIX + name not in tensors:
            raise ValueError(f"missing {PREFIX}{name}, which tells the network's sizes")
        shape = tensors[PREFIX + name].shape
        if len(shape) != 2:
            raise ValueError(f"{PREFIX}{name} has shape {shape}, expected two axes")
        return shape

    def stream(name: str) -> StreamConfig:
        width, channels = sizes(name)
        if width % heads:
            raise ValueError(f"heads={heads}: must divide the width {width} of {PREFIX}{name}; give --heads")
        return StreamConfig(latent_channels=channels, heads=heads, head_size=width // heads)

    captioned = f"{PREFIX}caption_projection.linear_1.weight" in tensors
    sinks = tensors.get(f"{PREFIX}audio_sink_tokens")
    return ModelConfig(
        layers=_count_layers(tensors),
        video=stream("patchify_proj.weight"),
        audio=stream(LANDMARK),
        caption_channels=sizes("caption_projection.linear_1.weight")[1] if captioned else None,
        rotary=SUPPOSED,
        cross_timestep=CrossTimestep.OWN,
        gate_multiplier=1.0,
        gated_attention=f"{PREFIX}transformer_blocks.0.attn1.to_gate_logits.weight" in tensors,
        text_adaln=f"{PREFIX}prompt_adaln_single.linear.weight" in tensors,
        sinks=sinks.shape[1] if sinks is not None and len(sinks.shape) == 3 else 0,
    )


def _count_layers(tensors: Mapping[str, Any]) -> int:
    numbers = [key.removeprefix(f"{PREFIX}transformer_blocks.").partition(".")[0] for key in tensors]
    return 1 + max((int(number) for number in numbers if number.isdecimal() and len(number) <= 4), default=0)
