"""Two descriptions of one thing: what JSON makes of them, and where they differ."""

import json
from collections.abc import Mapping
from typing import Any

SHOWN = 6  # differences that an error names


def plain(config: Mapping | None) -> dict | None:
    """Return a configuration as JSON gives it back; what JSON lacks becomes text."""
    return None if config is None else json.loads(json.dumps(config, default=str))


def differences(saved: Any, expected: Any, where: str = "") -> list[str]:
    """Name the fields in which two descriptions differ, such as `optimiser.steps=9, expected 10`."""
    if isinstance(saved, dict) and isinstance(expected, dict):
        names = [*saved, *(name for name in expected if name not in saved)]
        found = (differences(saved.get(n, "absent"), expected.get(n, "absent"), f"{where}.{n}") for n in names)
        return [line for lines in found for line in lines]
    return [] if saved == expected else [f"{where.removeprefix('.')}={saved}, expected {expected}"]


def refuse(where: Any, what: str, found: list[str]) -> None:
    """Raise a ValueError that names the differences, unless there are none."""
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(f"{where}: {what}: {'; '.join(found[:SHOWN])}{more}")
