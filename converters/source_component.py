"""One component of a source: its tensors under the source's keys, not read yet, and what the source says about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .component import Component
from .lazy_tensor import LazyTensor


@dataclass(frozen=True, kw_only=True)
class SourceComponent:
    """A component in a source.

    Attributes:
        name: Name of the component, e.g. "transformer".
        format: The source's format, in words.
        naming: How its keys are spelled, e.g. `component.LTX2`.
        where: The file or folder.
        tensors: Its tensors by key, in full.
        component: Its table; None where there is no table, or no config to read it by. All tensors pass through then.
        config: Its native config; None without a table.
        metadata: Free text of the source's header, unchanged.
        model_config: The source's config.json, of formats that have one.
        notes: Settings that were assumed because the source does not have them, and what was done on the way.
        is_student: The source is a causal student, not a bidirectional teacher.
        files: Further files of the component, to be copied (a tokenizer's).
        extracts: The same for files whose bytes are tensors of the source, by name.
        is_joined: They are connectors whose text projection came in another file.
    """

    name: str
    format: str
    naming: str
    where: str
    tensors: Mapping[str, LazyTensor]
    component: Component | None
    config: Any
    metadata: Mapping[str, str] = field(default_factory=dict)
    model_config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    is_student: bool = False
    files: tuple[str, ...] = ()
    extracts: Mapping[str, LazyTensor] = field(default_factory=dict)
    is_joined: bool = False
