"""A recorded case: what was put into a network, what came out, and how far off another may be.

`NAME.json` beside `NAME.safetensors`: a forward has variants, a cached rollout has runs, a guided trajectory has its
guidance. Inputs are `in.*` and noises, outputs everything else that a run gives; limits are a list of rules.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import read_json_object
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.strict_json import require

KINDS = ("variants", "runs", "guidance")
STREAMS = ("video", "audio")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How far one output is from the recorded one.

    Attributes:
        name: The recorded tensor.
        absolute: Largest difference.
        relative: The same over the largest recorded value.
        within: Whether every value is within the case's limit.
        limit: The rule, in words.
    """

    name: str
    absolute: float
    relative: float
    within: bool
    limit: str

    def __str__(self) -> str:
        """Say it in a line."""
        verdict = "within" if self.within else "BEYOND"
        figures = f"largest error {self.absolute:.2e} absolute, {self.relative:.2e} relative"
        return f"{self.name}: {figures}, {verdict} {self.limit}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case: its JSON, its tensors, and those of the case whose inputs it shares.

    Attributes:
        name: What it is called in messages.
        settings: What the JSON says of the network and its use.
        limits: The rules, first match wins.
        meanings: What the JSON says of each tensor, in words.
        tensors: All of them.
    """

    name: str
    settings: Mapping[str, Any]
    limits: Sequence[Mapping[str, Any]]
    meanings: Mapping[str, str]
    tensors: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor, or say that it is missing."""
        if name not in self.tensors:
            raise ValueError(f"{self.name}: missing {name}")
        return self.tensors[name]

    def static(self, name: str) -> Any:
        """Return an entry of the settings, or say that it is missing."""
        if name not in self.settings:
            raise ValueError(f"{self.name}: its JSON has no {name}")
        return self.settings[name]

    def latents(self, stream: str) -> np.ndarray:
        """Return the first recorded latents or noise of a stream: they tell its sizes."""
        names = (f"in.{stream}_latent", f"in.noise_{stream}")
        draws = sorted(name for name in self.tensors if name.endswith(f".init_noise.{stream}"))
        return self[next((name for name in (*names, *draws) if name in self.tensors), names[0])]


def open_case(path: Path) -> Case:
    """Open a case.

    Args:
        path: Folder and name, without an ending.

    Raises:
        ValueError: A file is missing or damaged, or is nothing that a network can be run on; names it.
    """
    meta = read_json_object(path.with_name(f"{path.name}.json"))
    settings, limits, told = meta.get("config"), meta.get("limits"), meta.get("tensors")
    kinds = isinstance(settings, dict) and [kind for kind in KINDS if isinstance(settings.get(kind), dict)]
    if not isinstance(settings, dict) or not kinds or not isinstance(limits, list):
        raise ValueError(f"{path}.json: not a recorded forward, rollout or guided trajectory with its limits")
    tensors: dict[str, np.ndarray] = {}
    if (other := _shared(settings, path)) is not None:
        lender = open_case(other)
        tensors |= {name: value for name, value in lender.tensors.items() if name.startswith("in.")}
        words = {name: lender.settings.get("variants", {}).get(name) for name in settings.get("variants", {})}
        settings = {**lender.settings, **settings} | ({"variants": words} if words else {})
    file = open_tensors(path.with_name(f"{path.name}.safetensors"))
    tensors |= {name: file.read(name) for name in file.entries}
    meanings = {name: about["meaning"] for name, about in (told or {}).items() if isinstance(about.get("meaning"), str)}
    return Case(name=path.name, settings=settings, limits=limits, meanings=meanings, tensors=tensors)


def _shared(settings: Mapping[str, Any], path: Path) -> Path | None:
    """Find the case that lends its inputs, given as `in.* of NAME`, words may follow."""
    found = re.search(r" of (\w+)", str(settings.get("inputs", "")))
    return path.with_name(found[1]) if found else None


def as_tokens(video: np.ndarray) -> np.ndarray:
    """Flatten recorded latents [B, F, C, H, W] into tokens; tokens stay as they are."""
    if video.ndim == 3:
        return video
    last = np.moveaxis(video, 2, -1)
    return last.reshape(last.shape[0], -1, last.shape[-1])


def as_latents(tokens: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The inverse, where the recorded latents have a grid."""
    if like.ndim == 3:
        return tokens
    batch, frames, channels, rows, columns = like.shape
    return np.moveaxis(tokens.reshape(batch, frames, rows, columns, channels), -1, 2)


def compare(case: Case, name: str, value: np.ndarray) -> Finding:
    """Compare an output within the case's limit for rotary tables that are our own."""
    recorded = case[name].astype(np.float64)
    require(value.shape == recorded.shape, f"{case.name}: {name}", recorded.shape, f"the model gives {value.shape}")
    rule = next((rule for rule in case.limits if fnmatch.fnmatch(name, str(rule["match"]))), None)
    if rule is None:
        raise ValueError(f"{case.name}: no limit for {name}")
    largest = np.abs(recorded).max(initial=0.0)
    atol, rtol = rule.get("atol_own_tables", rule.get("atol", 0.0)), rule.get("rtol", 0.0)
    allowed = atol + rtol * np.abs(recorded) + rule.get("rel_to_largest", 0.0) * largest
    off = np.abs(value.astype(np.float64) - recorded)
    absolute = float(np.nan_to_num(off, nan=np.inf).max(initial=0.0))
    return Finding(
        name=name,
        absolute=absolute,
        relative=absolute / max(float(largest), np.finfo(np.float64).tiny),
        within=bool(np.all(off <= allowed)),
        limit=f"atol {atol:g}" + (f", rtol {rtol:g}" if rtol else ""),
    )
