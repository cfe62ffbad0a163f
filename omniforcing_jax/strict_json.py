"""Strict JSON for frozen dataclasses: to JSON and back, with errors that name the field.

Nothing here knows any particular config.
"""

import dataclasses
import enum
import json
import types
import typing
from typing import Any, TypeVar

C = TypeVar("C", bound="Config")  # not typing.Self: beartype refuses it where methods are decorated one by one


class Config:
    """Base of the config dataclasses: to strict JSON and back."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers."""
        return json.loads(json.dumps(dataclasses.asdict(typing.cast(Any, self))))

    def to_json(self) -> str:
        """Return the config as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """Build the config from `to_dict`'s form; absent keys take their defaults.

        Raises:
            ValueError: A key is unknown or missing, or a value has the wrong type; names it.
        """
        return parse(cls, values, cls.__name__)

    @classmethod
    def from_json(cls: type[C], text: str) -> C:
        """Build the config from JSON text.

        Raises:
            ValueError: As in `from_dict`.
        """
        return cls.from_dict(json.loads(text))


def parse(kind: Any, value: Any, where: str) -> Any:
    """Turn a JSON value into a field of type `kind`.

    Raises:
        ValueError: The value has another type; `where` names the field.
    """
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return _parse_union(options, value, where)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(parse(options[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        allowed = [member.value for member in kind]
        if value in allowed:
            return kind(value)
        raise ValueError(f"{where}={value!r}: must be one of {allowed}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where}={value!r}: must be of type {getattr(kind, '__name__', kind)}")
    return value


def _parse_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """Parse as the first option that fits."""
    if value is None and types.NoneType in options:
        return None
    errors = []
    for kind in (option for option in options if option is not types.NoneType):
        try:
            return parse(kind, value, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _parse_dataclass(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where}={values!r}: must be an object")
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(known))
    needed = {n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
    missing = sorted(needed - set(values))
    if unknown or missing:
        raise ValueError(f"{where}: unknown keys {unknown}, missing keys {missing}")
    return kind(**{name: parse(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def require(holds: bool, field: str, value: object, rule: str) -> None:
    """Raise a ValueError that names field, value and rule unless the rule holds."""
    if not holds:
        raise ValueError(f"{field}={value!r}: {rule}")


def require_at_least_1(config: "Config", *fields: str) -> None:
    """Raise a ValueError that names the first of these fields that is below 1."""
    for field in fields:
        require(getattr(config, field) >= 1, field, getattr(config, field), "must be at least 1")
