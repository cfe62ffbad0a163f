"""The converters' commands: from a request that was understood to files and a few lines."""

from collections.abc import Callable, Sequence
from typing import Any

from converters import convert, diff, export, inspect
from converters.choices import Choices
from converters.cli import Convert, Diff, Export, Inspect
from omniforcing_jax.config import CrossTimestep, GridPrecision, RotaryKind, require


def prepare_convert(command: Convert) -> Callable[[], int]:
    """Find and check everything; what comes back writes it.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    require(command.heads >= 1, "heads", command.heads, "must be at least 1")
    choices = Choices(
        release=command.release,
        state=command.state,
        heads=command.heads,
        rotary=_or_none(RotaryKind, command.rotary),
        grid=_or_none(GridPrecision, command.grid),
        gate_multiplier=command.gate_multiplier,
        timesteps=_or_none(CrossTimestep, command.timesteps),
        layout=command.layout,
        sigmas=command.sigmas,
        horizon_seconds=command.horizon,
    )
    conversion = convert.prepare(
        command.from_, command.out, choices, resolution=(command.height, command.width), loras=command.lora
    )

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


def prepare_inspect(command: Inspect) -> Callable[[], int]:
    """Look at headers and configs; what comes back prints what was found.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    return _print(inspect.inspect(command.path, Choices(state=command.state)), 0)


def prepare_diff(command: Diff) -> Callable[[], int]:
    """Compare; what comes back prints where they differ.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    lines = diff.diff(command.first, command.second, Choices(state=command.state))
    return _print(lines or ["the same"], 1 if lines else 0)


def _print(lines: Sequence[str], code: int) -> Callable[[], int]:
    def work() -> int:
        print("\n".join(lines))
        return code

    return work


def _or_none(kind: Any, value: str | None) -> Any:
    return None if value is None else kind(value)
