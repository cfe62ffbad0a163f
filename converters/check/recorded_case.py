"""A recorded case: the inputs of a network, its outputs, and the largest error that another network may have.

A case is `NAME.json` and `NAME.safetensors`. A forward has variants, a cached rollout has runs, a guided trajectory has
its guidance. Inputs are `in.*` and noise; every other tensor is an output. Limits are a list of rules.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.strict_json import parse, read_object, require

KINDS = ("variants", "runs", "guidance")
Blocks = tuple[tuple[int, int, int, int], ...]
SETTINGS: Mapping[str, Any] = {
    "frames": int,
    "audio_frames": int,
    "grid": tuple[int, int],
    "blocks": Blocks,
    "partial_blocks": Blocks,
    "sigmas": tuple[float, ...],
    "denoising_step_list": tuple[float, ...],
}
GUIDANCE: Mapping[str, Any] = {
    **dict.fromkeys(("cfg_video", "cfg_audio", "stg", "modality", "rescale"), float),
    "stg_blocks": tuple[int, ...],
}
ERRORS = ("atol", "atol_own_tables", "rtol", "rel_to_largest")
STREAMS = ("video", "audio")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The difference between one output and the recorded one.

    Attributes:
        name: The recorded tensor.
        absolute: Largest difference.
        relative: The same, relative to the largest recorded value.
        within: Whether every value is within the case's limit.
        limit: The rule, in words.
    """

    name: str
    absolute: float
    relative: float
    within: bool
    limit: str

    def __str__(self) -> str:
        """Return a line for people."""
        verdict = "within" if self.within else "BEYOND"
        figures = f"largest error {self.absolute:.2e} absolute, {self.relative:.2e} relative"
        return f"{self.name}: {figures}, {verdict} {self.limit}"


@dataclass(frozen=True, kw_only=True)
class RecordedCase:
    """A case: its JSON, its tensors, and the inputs that it shares with another case.

    Attributes:
        name: Its name in messages.
        settings: The network's settings and how it was run, from the JSON.
        limits: The rules; the first match wins.
        meanings: A description of each tensor, from the JSON.
        tensors: All of them.
    """

    name: str
    settings: Mapping[str, Any]
    limits: Sequence[Mapping[str, Any]]
    meanings: Mapping[str, str]
    tensors: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor; a missing one is a ValueError that names it."""
        if name not in self.tensors:
            raise ValueError(f"{self.name}: missing {name}")
        return self.tensors[name]

    def setting(self, name: str) -> Any:
        """Return a setting; a missing one is a ValueError that names it."""
        if name not in self.settings:
            raise ValueError(f"{self.name}: its JSON must have {name}")
        return self.settings[name]

    def latents(self, stream: str) -> np.ndarray:
        """Return the first recorded latents or noise of a stream: they have its sizes."""
        names = (f"in.{stream}_latent", f"in.noise_{stream}")
        draws = sorted(name for name in self.tensors if name.endswith(f".init_noise.{stream}"))
        return self[next((name for name in (*names, *draws) if name in self.tensors), names[0])]


def open_case(path: Path, sharing: tuple[Path, ...] = ()) -> RecordedCase:
    """Open a case.

    Args:
        path: Folder and name, without an ending.
        sharing: Cases that share the inputs of this one, which may not share theirs.

    Raises:
        ValueError: A file is missing or damaged, or is no case that a network can run; names it.
    """
    meta = read_object(path.with_name(f"{path.name}.json"))
    settings, limits, described = meta.get("config"), meta.get("limits"), meta.get("tensors", {})
    kinds = isinstance(settings, dict) and [kind for kind in KINDS if isinstance(settings.get(kind), dict)]
    if not isinstance(settings, dict) or not kinds or not isinstance(limits, list):
        raise ValueError(f"{path}.json: not a recorded forward, rollout or guided trajectory with its limits")
    for name, kind in SETTINGS.items():
        if name in settings:
            parse(kind, settings[name], f"{path}.json: config.{name}")
    for name, kind in GUIDANCE.items() if "guidance" in kinds else ():
        parse(kind, settings["guidance"].get(name), f"{path}.json: config.guidance.{name}")
    for name, run in settings["runs"].items() if "runs" in kinds else ():
        require(isinstance(run, dict), f"{path}.json: config.runs.{name}", run, "must be an object")
        parse(float, run.get("context_sigma", 0.0), f"{path}.json: config.runs.{name}.context_sigma")
    for i, limit in enumerate(limits):
        _check_limit(f"{path}.json: limits[{i}]", limit)
    require(isinstance(described, dict), f"{path}.json: tensors", described, "must be an object")
    for name, about in described.items():
        require(isinstance(about, dict), f"{path}.json: tensors.{name}", about, "must be an object")
    tensors: dict[str, np.ndarray] = {}
    if (other := _shared(settings, path)) is not None:
        if other in (path, *sharing):
            raise ValueError(f"{path}.json: config.inputs names {other.name}, whose inputs are those of this case")
        lender = open_case(other, (path, *sharing))
        tensors |= {name: value for name, value in lender.tensors.items() if name.startswith("in.")}
        words = {name: lender.settings.get("variants", {}).get(name) for name in settings.get("variants", {})}
        settings = {**lender.settings, **settings} | ({"variants": words} if words else {})
    file = open_tensors(path.with_name(f"{path.name}.safetensors"))
    tensors |= {name: file.read(name) for name in file.entries}
    described = {name: about.get("meaning") for name, about in described.items()}
    meanings = {name: meaning for name, meaning in described.items() if isinstance(meaning, str)}
    return RecordedCase(name=path.name, settings=settings, limits=limits, meanings=meanings, tensors=tensors)


def _check_limit(where: str, limit: Any) -> None:
    """Check one rule of the largest errors."""
    fits = isinstance(limit, dict) and isinstance(limit.get("match"), str)
    require(fits, where, limit, "must be an object with a pattern of names as match")
    for name in ERRORS:
        if name in limit:
            parse(float, limit[name], f"{where}.{name}")


def _shared(settings: Mapping[str, Any], path: Path) -> Path | None:
    """Find the case whose inputs this one shares: its JSON says `in.* of NAME`, perhaps with more words behind."""
    found = re.search(r" of (\w+)", str(settings.get("inputs", "")))
    return path.with_name(found[1]) if found else None


def as_tokens(video: np.ndarray) -> np.ndarray:
    """Flatten recorded latents [B, F, C, H, W] into tokens; tokens stay as they are."""
    if video.ndim == 3:
        return video
    last = np.moveaxis(video, 2, -1)
    return last.reshape(last.shape[0], -1, last.shape[-1])


def as_latents(tokens: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Invert `as_tokens`, where the recorded latents have a grid."""
    if like.ndim == 3:
        return tokens
    batch, frames, channels, rows, columns = like.shape
    return np.moveaxis(tokens.reshape(batch, frames, rows, columns, channels), -1, 2)


def compare_output(case: RecordedCase, name: str, value: np.ndarray) -> Finding:
    """Compare an output with the recorded one, within the limit for rotary tables that are computed here."""
    recorded = case[name].astype(np.float64)
    rule = f"must be {value.shape}, as the model makes it"
    require(value.shape == recorded.shape, f"{case.name}: {name}", recorded.shape, rule)
    limit = next((limit for limit in case.limits if fnmatch.fnmatch(name, str(limit["match"]))), None)
    if limit is None:
        raise ValueError(f"{case.name}: no limit for {name}")
    largest = np.abs(recorded).max(initial=0.0)
    parts = {"atol": limit.get("atol_own_tables", limit.get("atol", 0.0))}
    parts |= {name: limit.get(name, 0.0) for name in ("rtol", "rel_to_largest")}
    allowed = parts["atol"] + parts["rtol"] * np.abs(recorded) + parts["rel_to_largest"] * largest
    off = np.abs(value.astype(np.float64) - recorded)
    absolute = float(np.nan_to_num(off, nan=np.inf).max(initial=0.0))
    return Finding(
        name=name,
        absolute=absolute,
        relative=absolute / max(float(largest), np.finfo(np.float64).tiny),
        within=bool(np.all(off <= allowed)),
        limit=", ".join(f"{name} {value:g}" for name, value in parts.items() if value) or "atol 0",
    )
