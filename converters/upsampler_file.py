"""A latent upsampler in a file of its own, and the header that such a file has.

LTX-2 keeps each upsampler in one file, with its keys as they are and its config as the whole config of the header. A
file out of a diffusers folder has the same keys and no config, which its shapes tell.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from omniforcing_jax.codecs.upsampler_config import UpsamplerConfig

from .component import UPSAMPLER
from .formats.upsampler import HEADER, LANDMARK, infer_config, name_of
from .lazy_tensor import LazyTensor
from .ltx2_header import refuse_contradiction
from .native_component import NativeComponent
from .original_keys import read_header_config
from .registry import COMPONENTS
from .source_component import SourceComponent

INFERRED = "has no config; its shapes tell what it is"


def take_upsampler(
    path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]
) -> SourceComponent | None:
    """Return the upsampler that a file holds; None for a file of anything else.

    Raises:
        ValueError: Its config is damaged or of another network; names file and key.
    """
    if LANDMARK not in tensors:
        return None
    header = read_header_config(path, metadata)
    try:
        config = infer_config({k: t.shape for k, t in tensors.items()}) if header is None else HEADER.read(header)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return SourceComponent(
        name=name_of(config),
        format="LTX-2's upsampler",
        naming=UPSAMPLER,
        where=str(path),
        tensors=tensors,
        component=COMPONENTS[name_of(config)],
        config=config,
        metadata=metadata,
        notes=(INFERRED,) if header is None else (),
    )


def is_upsampler(native: NativeComponent) -> bool:
    """Whether a component has a file of its own in LTX-2's format."""
    return isinstance(native.config, UpsamplerConfig)


def write_header(native: NativeComponent, fresh: bool) -> dict[str, str]:
    """Return the metadata of an upsampler's file: its source's own, or with a config that is written now.

    Args:
        native: The upsampler.
        fresh: Write the config anew, even where the source's header has one.

    Raises:
        ValueError: The source's header contradicts the config, and is not to be written anew.
    """
    saved = native.metadata if native.naming == UPSAMPLER else {}
    header = read_header_config(native.folder, saved)
    if header is None or fresh:
        return saved | {"config": json.dumps(HEADER.write(native.config))}
    refuse_contradiction(native, HEADER, header)
    return saved
