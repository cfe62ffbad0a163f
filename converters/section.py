"""Another format's config as flat keys, read one by one. Each must be read: the cheapest guard against a new model.

Nested objects are flattened: `{"bwe": {"n_fft": 512}}` has the key "bwe.n_fft". A list is one value.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from omniforcing_jax.strict_json import shorten

REQUIRED: Any = object()  # in the place of a default: the key must be there


def flatten(values: Mapping[Any, Any], before: str = "") -> dict[str, Any]:
    """Return nested objects as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_object = isinstance(value, Mapping) and value  # an empty one is a value, so that it is not lost
        flat |= flatten(value, f"{before}{key}.") if is_object else {f"{before}{key}": value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `flatten`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *objects, key = path.split(".")
        place = nested
        for name in objects:
            place = place.setdefault(name, {})
        place[key] = value
    return nested


class Section:
    """The keys of a config that are still to be read.

    Attributes:
        where: Its name in messages, e.g. "header config, vae".
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.where = where
        self._left = flatten(values)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
        """Take a value of a type; `object` is any type. An integer is a float as well.

        Raises:
            ValueError: It is of another type, or missing without a default.
        """
        if key not in self._left:
            if default is REQUIRED:
                raise ValueError(f"{self.where}: missing {key}")
            return default
        value = self._left.pop(key)
        if kind is float and type(value) is int:
            return float(value)
        if kind is not object and type(value) is not kind:
            raise ValueError(f"{self.where}.{key}={shorten(value)}: must be of type {kind.__name__}")
        return value

    def close(self, unread: Iterable[str]) -> None:
        """Check that all keys were read, but for those that match a regular expression of `unread`.

        Raises:
            ValueError: Names the keys that were not.
        """
        unknown = sorted(key for key in self._left if not any(re.fullmatch(pattern, key) for pattern in unread))
        if unknown:
            raise ValueError(f"{self.where}: unknown keys {unknown}")
