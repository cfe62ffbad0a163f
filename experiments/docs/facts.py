"""Where the pictures' numbers come from: the shipped student's own configs and the layouts of the package."""

import functools
import json
from pathlib import Path
from typing import Any

from omniforcing_jax.config import ModelConfig, SamplerConfig

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "omniforcing_jax" / "assets" / "chime" / "student"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def sampler() -> SamplerConfig:
    """Return what makes the shipped network a student: layout, window, sigmas."""
    return SamplerConfig.from_dict(_read(STUDENT / "config.json")["sampler"])


@functools.cache
def model() -> ModelConfig:
    """Return the shipped network's sizes."""
    return ModelConfig.from_dict(_read(STUDENT / "transformer" / "config.json"))


@functools.cache
def tokens_per_frame() -> int:
    """Return P: video tokens of one latent frame at the student's own resolution."""
    height, width = _read(STUDENT / "config.json")["resolution"]
    side = model().spatial_compression
    return (height // side) * (width // side)
