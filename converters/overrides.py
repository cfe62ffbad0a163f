"""Settings that a user gives for weights whose file lacks them, or has them wrong."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from omniforcing_jax.config import CrossTimestep, GridPrecision, ModelConfig, RotaryKind, SamplerConfig
from omniforcing_jax.layout import FUSED, PREFIX, PREFIX2
from omniforcing_jax.pipeline.presets import RELEASED_SIGMAS, STUDENTS
from omniforcing_jax.strict_json import require

LAYOUTS = {"prefix": PREFIX, "prefix2": PREFIX2, "fused": FUSED}
HORIZON_SECONDS = 5  # of LTX-2's and OmniForcing's training clips of 121 frames


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Settings given on the command line. None leaves what the file says, or what its format's own code assumes.

    Attributes:
        release: What a transformer without a config is: LTX-2, or a student of OmniForcing. None tells a student by
            what only students have.
        state: Weights to take from a training checkpoint that has both: averaged, or last trained.
        heads: Attention heads of an OmniForcing network; no file has the number.
        rotary, grid, gate_multiplier, timesteps: See `ModelConfig`.
        camera_heads: Heads of camera attention; no file has the number.
        student: A published student, whose sampler no file has.
        layout, sigmas, horizon_seconds: See `SamplerConfig`. A layout or sigmas make the network a student.
    """

    release: Literal["ltx2", "omniforcing"] | None = None
    state: Literal["ema", "trained"] | None = None
    heads: int = 32
    rotary: RotaryKind | None = None
    grid: GridPrecision | None = None
    gate_multiplier: float | None = None
    timesteps: CrossTimestep | None = None
    camera_heads: int | None = None
    student: Literal["echowm-flash"] | None = None
    layout: Literal["prefix", "prefix2", "fused"] | None = None
    sigmas: tuple[float, ...] | None = None
    horizon_seconds: int | None = None


def apply_overrides(config: ModelConfig, overrides: Overrides) -> tuple[ModelConfig, tuple[str, ...]]:
    """Apply the settings of the network; also returns a note for each."""
    rotary = _given(kind=overrides.rotary, grid=overrides.grid)
    others = _given(gate_multiplier=overrides.gate_multiplier, cross_timestep=overrides.timesteps)
    notes = _given(
        rotary=overrides.rotary,
        grid=overrides.grid,
        **{"gate multiplier": overrides.gate_multiplier, "timesteps": overrides.timesteps},
    )
    changed = dataclasses.replace(config, rotary=dataclasses.replace(config.rotary, **rotary), **others)
    return changed, tuple(f"{name} {value}, as the command says" for name, value in notes.items())


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def choose_sampler(is_student: bool, sinks: int, overrides: Overrides) -> tuple[SamplerConfig | None, tuple[str, ...]]:
    """Choose the sampler section that makes a network a student; None for a teacher.

    The default without sinks is the released student, whose first block is fused; with sinks it is the paper's.

    Returns:
        The sampler, and a note for each setting: where it comes from.

    Raises:
        ValueError: A setting is given that a teacher does not have.
    """
    if overrides.student is not None:
        return _published(overrides.student, overrides)
    if not is_student and overrides.layout is None and overrides.sigmas is None:
        rule = "is a student's, and these weights are a teacher; give --layout or --sigmas, too"
        require(overrides.horizon_seconds is None, "horizon", overrides.horizon_seconds, rule)
        return None, ()
    layout = overrides.layout or ("prefix" if sinks else "fused")
    sampler = SamplerConfig(
        layout=LAYOUTS[layout],
        sigmas=overrides.sigmas or RELEASED_SIGMAS,
        horizon_seconds=HORIZON_SECONDS if overrides.horizon_seconds is None else overrides.horizon_seconds,
    )
    notes = (
        f"layout {layout}, {_origin(overrides.layout)}",
        f"sigmas {' '.join(f'{sigma:g}' for sigma in sampler.sigmas)}, {_origin(overrides.sigmas)}",
        f"horizon {sampler.horizon_seconds} s, {_origin(overrides.horizon_seconds)}",
    )
    return sampler, notes


def refuse_without_network(overrides: Overrides, components: Iterable[str]) -> None:
    """Refuse settings of a student where no transformer is converted.

    Args:
        overrides: The settings.
        components: What is converted.

    Raises:
        ValueError: One is given; names it.
    """
    given = _given(
        student=overrides.student,
        layout=overrides.layout,
        sigmas=overrides.sigmas,
        horizon=overrides.horizon_seconds,
    )
    for name, value in given.items():
        raise ValueError(f"{name}={value}: needs a transformer, the sources have {', '.join(components)}")


def _published(student: str, overrides: Overrides) -> tuple[SamplerConfig, tuple[str, ...]]:
    """Return the sampler of a published student; what the command says beside it replaces its own."""
    given = _given(
        layout=None if overrides.layout is None else LAYOUTS[overrides.layout],
        sigmas=overrides.sigmas,
        horizon_seconds=overrides.horizon_seconds,
    )
    notes = (f"{student}'s, as the command says", *(f"{name}, as the command says" for name in given))
    return dataclasses.replace(STUDENTS[student].sampler, **given), notes


def _origin(override: object) -> str:
    return "assumed" if override is None else "as the command says"
