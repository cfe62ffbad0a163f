"""The other kind of rotary pairs for the same function: query and key rows in another order.

Split pairs are channels (i, i + H/2) of a head, interleaved ones (2i, 2i + 1). A permutation of the rows of queries and
keys turns one kind into the other and changes no attention score.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from omniforcing_jax.config import ModelConfig, RotaryKind
from omniforcing_jax.text.connector import ConnectorsConfig

from .lazy_tensor import LazyTensor
from .native_component import NativeComponent

# Leaves whose rows rotary embedding pairs: in the transformer (its text attention does not rotate), in the connectors.
ROTATED = re.compile(
    r"(?P<site>layers/(video|audio)/self_attn|layers/(a2v|v2a)|(video|audio)/layers/attn)/([qk]/[wb]|[qk]_norm)"
)


def interleaving(heads: int, head_size: int) -> np.ndarray:
    """Return the order of split query or key rows that makes them interleaved: interleaved = split[order]."""
    within = np.arange(head_size).reshape(2, -1).T.reshape(-1)
    return (np.arange(heads)[:, None] * head_size + within[None, :]).reshape(-1)


def permute_rotary(
    native: NativeComponent, kind: RotaryKind, tensors: Mapping[str, LazyTensor], naming: str
) -> tuple[NativeComponent, dict[str, LazyTensor]]:
    """Permute query and key rows so that the same function has rotary pairs of another kind.

    Args:
        native: Any component; one without rotary embedding comes back unchanged.
        kind: The kind of pairs to make.
        tensors: The component's tensors under the keys of `naming`.
        naming: How the keys are spelled.

    Returns:
        The component with its new config, and the tensors under the same keys.
    """
    config = _with_kind(native.config, kind)
    if native.component is None or config == native.config:
        return native, dict(tensors)
    result = dict(tensors)
    for placement in native.component.expand(native.config, naming):
        order = _interleaving_of(placement.native, native.config)
        if order is not None:
            rows = order if kind is RotaryKind.INTERLEAVED else np.argsort(order)
            result[placement.source] = _permute(tensors[placement.source], rows)
    return dataclasses.replace(native, config=config), result


def _with_kind(config: Any, kind: RotaryKind) -> Any:
    if isinstance(config, ModelConfig):
        return dataclasses.replace(config, rotary=dataclasses.replace(config.rotary, kind=kind))
    return dataclasses.replace(config, rotary=kind) if isinstance(config, ConnectorsConfig) else config


def _interleaving_of(name: str, config: Any) -> np.ndarray | None:
    """Return the order that interleaves a leaf's rows; None for a leaf that is not rotated."""
    found = ROTATED.fullmatch(name)
    if found is None:
        return None
    video_site = "layers/video/self_attn" if isinstance(config, ModelConfig) else "video/layers/attn"
    stream = config.video if found["site"] == video_site else config.audio  # crossings have the audio's head size
    return interleaving(stream.heads, stream.head_size)


def _permute(tensor: LazyTensor, rows: np.ndarray) -> LazyTensor:
    return tensor.map(lambda values: np.asarray(values)[rows])
