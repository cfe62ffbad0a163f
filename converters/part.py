"""One component as a source has it: its tensors under their own keys, not read yet, and what the source says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converters.component import Component
from converters.piece import Piece


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component in a source.

    Attributes:
        name: Our name of it.
        format: What the source is, in words.
        naming: How its keys are spelled, e.g. `component.LTX2`.
        where: The file or folder.
        tensors: Its tensors by key, in full.
        component: Its table; None where there is none, or no config to read it by: all goes through untouched.
        config: Our config of it; None without a table.
        metadata: Free text of the source's header, as it stands there.
        model_config: The source's config.json, of formats that have one.
        notes: What was supposed because the source does not say it, and what was done on the way.
        student: The source is a causal student, and not a bidirectional teacher.
        files: Further files that belong to the component, to be copied (a tokenizer's).
    """

    name: str
    format: str
    naming: str
    where: str
    tensors: Mapping[str, Piece]
    component: Component | None
    config: Any | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    model_config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    student: bool = False
    files: tuple[str, ...] = ()
