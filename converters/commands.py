"""The converters' commands: from a request that was understood to files and a few lines."""

from collections.abc import Callable
from typing import Any

from converters import convert, export
from converters.choices import Choices
from converters.cli import Convert, Export
from omniforcing_jax.config import CrossTimestep, GridPrecision, RotaryKind, require


def prepare_convert(command: Convert) -> Callable[[], int]:
    """Find and check everything; what comes back writes it.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    require(command.heads >= 1, "heads", command.heads, "must be at least 1")
    choices = Choices(
        release=command.release,
        ema=command.ema,
        heads=command.heads,
        rotary=_or_none(RotaryKind, command.rotary),
        grid=_or_none(GridPrecision, command.grid),
        gate_multiplier=command.gate_multiplier,
        timesteps=_or_none(CrossTimestep, command.timesteps),
        layout=command.layout,
        sigmas=command.sigmas,
        horizon_seconds=command.horizon,
    )
    conversion = convert.prepare(command.from_, command.out, choices, resolution=(command.height, command.width))

    def work() -> int:
        print("\n".join(conversion.notes))
        print(f"{command.out}: {convert.run(conversion)}")
        return 0

    return work


def prepare_export(command: Export) -> Callable[[], int]:
    """Check that the format can express the weights; what comes back writes them.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    require(command.shard_gigabytes > 0, "shard-gigabytes", command.shard_gigabytes, "must be positive")
    exported = export.prepare(
        command.from_,
        command.to,
        command.out,
        components=command.components,
        rotary=_or_none(RotaryKind, command.rotary),
        fresh_header=command.fresh_header,
        shard_bytes=int(command.shard_gigabytes * 1e9),
    )

    def work() -> int:
        print("\n".join(exported.notes))
        print(f"{command.out}: {export.run(exported)}")
        return 0

    return work


def _or_none(kind: Any, value: str | None) -> Any:
    return None if value is None else kind(value)
