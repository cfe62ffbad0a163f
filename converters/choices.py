"""What a user may say about weights where their file does not, or against it."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from omniforcing_jax.config import CrossTimestep, GridPrecision, ModelConfig, RotaryKind, SamplerConfig
from omniforcing_jax.layout import FUSED, PREFIX
from omniforcing_jax.pipeline.presets import RELEASED_SIGMAS

LAYOUTS = {"prefix": PREFIX, "fused": FUSED}
HORIZON_SECONDS = 5  # of LTX-2's and OmniForcing's clips of 121 frames


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Overrides; None leaves what the file says, or else what its format supposes.

    Attributes:
        release: What a file or shards are: by default LTX-2 where the header has a config, else OmniForcing.
        state: Of a training checkpoint that has both: the averaged weights, or those last trained.
        heads: Heads of an OmniForcing network; no file says it.
        rotary, grid, gate_multiplier, timesteps: See `ModelConfig`.
        layout, sigmas, horizon_seconds: See `SamplerConfig`; giving a layout or sigmas makes the network a student.
    """

    release: Literal["ltx2", "omniforcing"] | None = None
    state: Literal["ema", "trained"] | None = None
    heads: int = 32
    rotary: RotaryKind | None = None
    grid: GridPrecision | None = None
    gate_multiplier: float | None = None
    timesteps: CrossTimestep | None = None
    layout: Literal["prefix", "fused"] | None = None
    sigmas: tuple[float, ...] | None = None
    horizon_seconds: int | None = None


def override(config: ModelConfig, choices: Choices) -> tuple[ModelConfig, tuple[str, ...]]:
    """Apply what was chosen for the network; also says it in words."""
    rotary = {name: value for name, value in (("kind", choices.rotary), ("grid", choices.grid)) if value is not None}
    changes = {
        name: value
        for name, value in (("gate_multiplier", choices.gate_multiplier), ("cross_timestep", choices.timesteps))
        if value is not None
    }
    new = dataclasses.replace(config, rotary=dataclasses.replace(config.rotary, **rotary), **changes)
    told = {"rotary": choices.rotary, "grid": choices.grid, "gate multiplier": choices.gate_multiplier}
    told["timesteps"] = choices.timesteps
    return new, tuple(f"{name} {value}, as the command says" for name, value in told.items() if value is not None)


def choose_sampler(student: bool, sinks: int, choices: Choices) -> tuple[SamplerConfig | None, tuple[str, ...]]:
    """Choose what makes a network a student; None for a teacher. Also says in words what was supposed.

    Without sinks it is the released student, whose first block is fused; with them the paper's.
    """
    if not student and choices.layout is None and choices.sigmas is None:
        return None, ()
    layout = choices.layout or ("prefix" if sinks else "fused")
    sampler = SamplerConfig(
        layout=LAYOUTS[layout],
        sigmas=choices.sigmas or RELEASED_SIGMAS,
        horizon_seconds=HORIZON_SECONDS if choices.horizon_seconds is None else choices.horizon_seconds,
    )
    source = {True: "supposed", False: "as the command says"}
    notes = (
        f"layout {layout}, {source[choices.layout is None]}",
        f"sigmas {' '.join(f'{sigma:g}' for sigma in sampler.sigmas)}, {source[choices.sigmas is None]}",
        f"horizon {sampler.horizon_seconds} s, {source[choices.horizon_seconds is None]}",
    )
    return sampler, notes
