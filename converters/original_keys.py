"""Checkpoints under LTX-2's original keys, of LTX-2 and of OmniForcing: split into components, with their configs.

The header of an LTX-2 file has the configs of all components; a component without one gets it in missing_config.py.
OmniForcing's files have no config, and its code assumes the defaults of its classes (interleaved pairs, a float32 grid,
gate multiplier 1, own timesteps). The sizes of its network are read off the shapes.

Without a config, a student is what the command says, or what only a student has: sink tokens, or a generator in a
training checkpoint.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omniforcing_jax.config import (
    CameraConfig,
    CrossTimestep,
    GridPrecision,
    ModelConfig,
    RotaryConfig,
    RotaryKind,
    StreamConfig,
)
from omniforcing_jax.strict_json import loads_object, require

from .component import LTX2
from .formats.transformer import CAMERA, PREFIX
from .lazy_tensor import LazyTensor
from .overrides import Overrides, apply_overrides
from .registry import SECTION_OF, find_owner, find_table
from .source_component import SourceComponent
from .spelling import LANDMARK, spell_keys

SINKS = f"{PREFIX}audio_sink_tokens"  # of students only
CAMERA_HEAD_SIZE = 128  # of the published network; the keys tell the width alone
ASSUMED_ROTARY = RotaryConfig(kind=RotaryKind.INTERLEAVED, grid=GridPrecision.FLOAT32)


def read_original_keys(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    overrides: Overrides,
    notes: tuple[str, ...] = (),
    *,
    has_generator: bool = False,
) -> list[SourceComponent]:
    """Split a checkpoint under original keys into its components.

    Args:
        path: The file or folder, for messages.
        tensors: All of them, by key; none in float8.
        metadata: Of the header.
        overrides: Settings given on the command line.
        notes: Notes that hold for all components.
        has_generator: The file is a training checkpoint as only a student has it.

    Raises:
        ValueError: A key belongs to no component or is given twice, or the header is damaged or of another network;
            names it.
    """
    header = read_header_config(path, metadata)
    groups = _group(spell_keys(path, tensors))
    if not groups:
        raise ValueError(f"{path}: has no tensors")
    has_own_layout = has_generator or SINKS in groups.get("transformer", {})
    says_config = header is not None and SECTION_OF["transformer"] in header
    is_student = not says_config and (
        overrides.release == "omniforcing" or (overrides.release is None and has_own_layout)
    )
    sources = [
        SourceComponent(
            name=name,
            format="OmniForcing" if is_student else "LTX-2",
            naming=LTX2,
            where=str(path),
            tensors=group,
            component=find_table(name, LTX2),
            config=None,
            metadata=metadata,
            notes=notes,
            is_student=is_student,
        )
        for name, group in sorted(groups.items())
    ]
    return [_with_config(source, header, overrides) for source in sources]


def _group(tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]]:
    """Sort tensors by the component that they belong to."""
    groups: dict[str, dict[str, LazyTensor]] = {}
    for key, tensor in tensors.items():
        owner = find_owner(key)
        if owner is None:
            raise ValueError(f"{tensor.where}: unknown {key}, no component's key begins like this")
        groups.setdefault(owner, {})[key] = tensor
    return groups


def _with_config(source: SourceComponent, header: Mapping[str, Any] | None, overrides: Overrides) -> SourceComponent:
    """Read a component's config; a component without a config passes through, so it loses its table."""
    try:
        config, notes = _read_config(source, header, overrides)
    except ValueError as error:
        raise ValueError(f"{source.where}: {error}") from None
    component = None if config is None else source.component
    return dataclasses.replace(source, component=component, config=config, notes=source.notes + notes)


def _read_config(
    source: SourceComponent, header: Mapping[str, Any] | None, overrides: Overrides
) -> tuple[Any, tuple[str, ...]]:
    if source.component is None:
        return None, ()
    if source.is_student and source.name == "transformer":
        config, notes = infer_network(source.tensors, overrides.heads), _list_assumptions(overrides.heads)
    elif header is not None and SECTION_OF[source.name] in header:
        config, notes = source.component.namings[LTX2].table.read(header), ()
    else:
        return None, ()
    if isinstance(config, ModelConfig):
        config, found = find_camera(config, source.tensors, overrides)
        config, changes = apply_overrides(config, overrides)
        notes += (*found, *changes)
    return config, notes


def find_camera(
    config: ModelConfig, tensors: Mapping[str, LazyTensor], overrides: Overrides
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Find camera attention by its keys, as no config tells it; also returns a note of what was found.

    Raises:
        ValueError: The heads do not divide its width, or are given for a network without it.
    """
    shape = next((tensors[key].shape for key in tensors if key.endswith(f".{CAMERA}q_proj.weight")), None)
    heads = overrides.camera_heads
    if shape is None or config.camera is not None:
        require(
            heads is None or config.camera is not None, "camera-heads", heads, "these weights have no camera attention"
        )
        return config, ()
    width = shape[0]
    heads = width // CAMERA_HEAD_SIZE if heads is None else heads
    fits = heads > 0 and width % heads == 0
    require(fits, "camera-heads", heads, f"must divide the width {width} of camera attention")
    note = (
        f"camera attention of {heads} heads, {'assumed' if overrides.camera_heads is None else 'as the command says'}"
    )
    return dataclasses.replace(config, camera=CameraConfig(heads=heads, head_size=width // heads)), (note,)


def _list_assumptions(heads: int) -> tuple[str, ...]:
    return (
        f"rotary {ASSUMED_ROTARY.kind}, {ASSUMED_ROTARY.grid} grid, assumed",
        "gate multiplier 1, assumed",
        "timesteps own, assumed",
        f"{heads} heads, assumed",
    )


def read_header_config(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    """Read the configs in an LTX-2 header; None where it has none.

    Raises:
        ValueError: As `strict_json.loads_object`; names the file.
    """
    if "config" not in metadata:
        return None
    return loads_object(metadata["config"], f"{path}: the config in the header")


def infer_network(tensors: Mapping[str, LazyTensor], heads: int) -> ModelConfig:
    """Read an OmniForcing network off its shapes; settings without a shape are those that its code assumes.

    Args:
        tensors: The transformer, under published keys.
        heads: Attention heads of either stream.

    Raises:
        ValueError: A tensor that has one of the sizes is missing or has not two axes; names it.
    """
    captioned = f"{PREFIX}caption_projection.linear_1.weight" in tensors
    text_adaln = f"{PREFIX}transformer_blocks.0.prompt_scale_shift_table" in tensors
    sinks = tensors.get(SINKS)
    return ModelConfig(
        layers=_count_layers(tensors),
        video=_infer_stream(tensors, "patchify_proj.weight", "ff", heads),
        audio=_infer_stream(tensors, LANDMARK, "audio_ff", heads),
        caption_channels=_matrix_shape(tensors, "caption_projection.linear_1.weight")[1] if captioned else None,
        rotary=ASSUMED_ROTARY,
        cross_timestep=CrossTimestep.OWN,
        gate_multiplier=1.0,
        gated_attention=f"{PREFIX}transformer_blocks.0.attn1.to_gate_logits.weight" in tensors,
        text_adaln=text_adaln,
        prompt_time=not text_adaln or f"{PREFIX}prompt_adaln_single.linear.weight" in tensors,
        keyframe_embedding=f"{PREFIX}keyframes_abs_pos_embedding" in tensors,
        sinks=sinks.shape[1] if sinks is not None and len(sinks.shape) == 3 else 0,
    )


def _infer_stream(tensors: Mapping[str, LazyTensor], name: str, mlp: str, heads: int) -> StreamConfig:
    width, channels = _matrix_shape(tensors, name)
    if width % heads:
        raise ValueError(f"heads={heads}: must divide the width {width} of {PREFIX}{name}; give --heads")
    has_bias = f"{PREFIX}transformer_blocks.0.{mlp}.net.2.bias" in tensors
    return StreamConfig(latent_channels=channels, heads=heads, head_size=width // heads, mlp_bias=has_bias)


def _matrix_shape(tensors: Mapping[str, LazyTensor], name: str) -> tuple[int, ...]:
    if PREFIX + name not in tensors:
        raise ValueError(f"missing {PREFIX}{name}, which has the network's sizes")
    shape = tensors[PREFIX + name].shape
    if len(shape) != 2:
        raise ValueError(f"{PREFIX}{name} has shape {shape}, expected two axes")
    return shape


def _count_layers(tensors: Mapping[str, Any]) -> int:
    numbers = [key.removeprefix(f"{PREFIX}transformer_blocks.").partition(".")[0] for key in tensors]
    return 1 + max((int(number) for number in numbers if number.isdecimal() and len(number) <= 4), default=0)
