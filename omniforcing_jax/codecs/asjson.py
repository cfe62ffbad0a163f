"""Codec configs as JSON and back, strictly: an unknown or missing key is an error that names it."""

import dataclasses
import json
from typing import Any, Self


class JsonConfig:
    """Gives a dataclass of numbers and (nested) tuples of numbers its JSON form."""

    def to_json(self) -> str:
        """Write every field, as one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If the text is no JSON object, or a key is unknown or missing.
        """
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"{cls.__name__}: expected a JSON object, found {type(found).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        for problem, keys in (("unknown", found.keys() - known), ("missing", known - found.keys())):
            if keys:
                raise ValueError(f"{cls.__name__}: {problem} key(s) {', '.join(sorted(keys))}")
        return cls(**{name: _tuples(value) for name, value in found.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
