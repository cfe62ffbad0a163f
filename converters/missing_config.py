"""Configs for components whose own file has none: an earlier source's, or the published network of the same shapes.

Trainers save a full fine-tune without its config, and ComfyUI's users have components in files of their own. Nothing is
assumed that the shapes do not show: what they leave open is taken from a source that says it, or asked for.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from omniforcing_jax.codecs.audio_vae import LTX2_AUDIO_VAE
from omniforcing_jax.codecs.video_config import LTX2_VIDEO_VAE, LTX23_VIDEO_VAE
from omniforcing_jax.codecs.vocoder import LTX2_VOCODER, LTX23_VOCODER
from omniforcing_jax.config import CrossTimestep, ModelConfig
from omniforcing_jax.io.weights import compare_shapes
from omniforcing_jax.pipeline.presets import LTX2_19B, LTX2_22B, LTX25_22B
from omniforcing_jax.text.connector import ConnectorConfig, ConnectorsConfig
from omniforcing_jax.text.features import FeatureNorm

from .component import LTX2, Component
from .original_keys import find_camera, infer_network
from .overrides import Overrides, apply_overrides
from .registry import find_table
from .source_component import SourceComponent

TEACHER_2_0 = dataclasses.replace(LTX2_19B, cross_timestep=CrossTimestep.CROSS)
CONNECTOR_2_0 = ConnectorConfig(layers=2, heads=30, head_size=128, registers=128)
CONNECTOR_2_3 = ConnectorConfig(layers=8, heads=32, head_size=128, registers=128)
CONNECTORS_2_0 = ConnectorsConfig(
    text_width=3840, text_states=49, norm=FeatureNorm.PER_PROMPT, video=CONNECTOR_2_0, audio=CONNECTOR_2_0
)
CONNECTORS_2_3 = dataclasses.replace(
    CONNECTORS_2_0,
    norm=FeatureNorm.PER_TOKEN,
    video=CONNECTOR_2_3,
    audio=dataclasses.replace(CONNECTOR_2_3, head_size=64),
    gated_attention=True,
)
PUBLISHED: Mapping[str, Mapping[str, Any]] = {  # by component and version of LTX-2
    "transformer": {"2.0": TEACHER_2_0, "2.3": LTX2_22B, "2.5": LTX25_22B},
    "connectors": {"2.0": CONNECTORS_2_0, "2.3": CONNECTORS_2_3},
    "video_vae": {"2.0": LTX2_VIDEO_VAE, "2.3": LTX23_VIDEO_VAE},
    "audio_vae": {"2.0": LTX2_AUDIO_VAE},
    "vocoder": {"2.0": LTX2_VOCODER, "2.3": LTX23_VOCODER},
}
BASE = "name the file that it was made from before it with --from, whose config is taken then"
STUDENT = "--release omniforcing for a student of OmniForcing"
TEACHER = "--release ltx2 with --heads, --rotary, --grid and --gate-multiplier"


def complete(source: SourceComponent, earlier: SourceComponent | None, overrides: Overrides) -> SourceComponent:
    """Find the config of a component whose file has none; others are returned as they are.

    Args:
        source: The component.
        earlier: The same component of a source that was named before it, if there is one.
        overrides: Settings given on the command line.

    Raises:
        ValueError: No config fits, or more than one kind of network does; names the file and what to give.
    """
    component = find_table(source.name, source.naming)
    if source.config is not None or source.naming != LTX2 or component is None or not source.tensors:
        return source
    config, note = _find(component, source, earlier, overrides)
    component = None if config is None else component
    notes = (*source.notes, note)
    if isinstance(config, ModelConfig):
        config, found = find_camera(config, source.tensors, overrides)
        config, changes = apply_overrides(config, overrides)
        notes += (*found, *changes)
    return dataclasses.replace(source, component=component, config=config, notes=notes)


def _find(
    component: Component, source: SourceComponent, earlier: SourceComponent | None, overrides: Overrides
) -> tuple[Any, str]:
    """Return the config, and a note on where it comes from."""
    mismatch = ""
    if earlier is not None and earlier.config is not None and not earlier.is_student:
        if (mismatch := _compare(component, source, earlier.config)) is None:
            return earlier.config, f"has no config; that of {earlier.where} is taken"
        mismatch = f"; it is not the network of {earlier.where}: {mismatch}"
    versions = [each for each in PUBLISHED[source.name].items() if _compare(component, source, each[1]) is None]
    if len(versions) == 1:
        ((version, config),) = versions
        if source.name == "transformer" and version == "2.0" and overrides.release is None:
            rule = f"give --release ltx2, or {STUDENT}, or {BASE}"
            raise ValueError(f"{source.where}: transformer has no config, and fits LTX-2.0 and its students: {rule}")
        return config, f"has no config; its shapes are LTX-{version}'s, whose config is taken"
    if source.name == "transformer":
        return _infer(source, overrides, mismatch)
    if source.is_student:
        return None, "has no config, passes through untouched"
    raise ValueError(f"{source.where}: {source.name} has no config, and is not LTX-2's{mismatch}; {BASE}")


def _infer(source: SourceComponent, overrides: Overrides, mismatch: str) -> tuple[ModelConfig, str]:
    """Read sizes off the shapes, if the command gives what they do not show."""
    given = (overrides.rotary, overrides.grid, overrides.gate_multiplier)
    if overrides.release != "ltx2" or None in given:
        what = mismatch or _describe(source)
        raise ValueError(f"{source.where}: transformer has no config{what}; {BASE}, or give {TEACHER}, or {STUDENT}")
    config = dataclasses.replace(infer_network(source.tensors, overrides.heads), cross_timestep=CrossTimestep.CROSS)
    return config, f"has no config; sizes are read off its shapes, {overrides.heads} heads"


def _describe(source: SourceComponent) -> str:
    """Say what the shapes show of a network of unpublished sizes."""
    try:
        seen = infer_network(source.tensors, 1)
    except ValueError as error:
        return f" ({error})"
    newer = "2.5" if seen.keyframe_embedding else "2.3" if seen.gated_attention or seen.text_adaln else "2.0"
    return f"; it is of LTX-{newer}'s kind with {seen.layers} layers of width {seen.video.width}"


def _compare(component: Component, source: SourceComponent, config: Any) -> str | None:
    """Say how a component's tensors differ from a network's; None where they do not."""
    naming = component.namings[source.naming]
    found = {key: tensor.shape for key, tensor in source.tensors.items() if not naming.is_passed(key)}
    try:
        compare_shapes(found, {p.source: p.source_shape for p in component.expand(config, source.naming)}, "")
    except ValueError as error:
        return str(error).removeprefix(": ")
    return None
