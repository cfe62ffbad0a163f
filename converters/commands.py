"""The converters' commands: from a request that was understood to files and a few lines."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from converters import bench, check, convert, diff, export, inspect
from converters.choices import Choices
from converters.cli import Bench, Check, Convert, Diff, Export, Inspect
from converters.swap import check_space
from omniforcing_jax.config import CrossTimestep, GridPrecision, RotaryKind
from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.strict_json import require

BYTES_PER_LAYER = 850_000_000  # at full width in bfloat16, with a share of what is not in layers


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


def prepare_check(command: Check) -> Callable[[], int]:
    """Run the case; what comes back prints how far each output is off.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    findings, left = check.check(command.weights, command.case)
    return _print(list(check.lines(findings, left)), 0 if all(finding.within for finding in findings) else 1)


def prepare_bench(command: Bench) -> Callable[[], int]:
    """Check that it fits; what comes back measures.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    config = bench.full_width(command.layers)
    require(command.repeats >= 1, "repeats", command.repeats, "must be at least 1")
    place = Path(command.folder or tempfile.gettempdir())
    if not place.is_dir():
        raise ValueError(f"{place}: no such folder")
    if command.json is not None and not command.json.parent.is_dir():
        raise ValueError(f"{command.json.parent}: no such folder")
    check_space(place, 2 * BYTES_PER_LAYER * command.layers)

    def work() -> int:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            figures = bench.measure(Path(folder), config, command.repeats)
        print(figures)
        if command.json is not None:
            write_json(command.json, dataclasses.asdict(figures) | {"share": figures.share})
        return 0

    return work


def _print(lines: Sequence[str], code: int) -> Callable[[], int]:
    def work() -> int:
        print("\n".join(lines))
        return code

    return work


def _or_none(kind: Any, value: str | None) -> Any:
    return None if value is None else kind(value)
