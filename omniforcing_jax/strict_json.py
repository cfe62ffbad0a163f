"""Strict JSON: text from outside becomes values that can be trusted, and values become frozen dataclasses.

Every reader of JSON from outside goes through `read_object` or `loads`: of configs, headers, indexes, saved states,
stores and recorded cases. Errors name the file and the key. Nothing here knows any particular config.
"""

import codecs
import dataclasses
import enum
import json
import math
import os
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C", bound="Config")  # not typing.Self: beartype refuses it where methods are decorated one by one

LARGEST = 100_000_000  # bytes of JSON: the limit of the safetensors package for a header
DEEPEST = 32  # objects and lists inside each other; LTX-2's headers have six
MOST_BRACKETS = 4_000_000  # objects and lists in all; each takes 60 bytes of memory or more, and two bytes of text
LONGEST_NUMBER = 40  # digits that are read of a whole number; 64 bits need 20
MOST_LAYERS = 1024  # of a network in a config
MOST_PARTS = 64  # layers, stages or blocks of a codec in a config
LARGEST_SIZE = 2**20  # channels, heads or tokens in a config
LONGEST_LIST = 2**16  # items of a list in a config
LARGEST_WHOLE = 2**32 - 1  # of a whole number in a config; seeds have 32 bits
SHOWN = 200  # characters of a value in a message


def read_object(path: str | os.PathLike[str], hint: str = "") -> dict[str, Any]:
    """Read a JSON file that must hold an object. A byte-order mark at its beginning is allowed.

    Args:
        path: The file.
        hint: What to add to the message if there is no such file.

    Raises:
        ValueError: The file cannot be read, or as in `loads_object`; one line that names the file.
    """
    return loads_object(_read_bytes(Path(path), hint), str(path))


def read_list(path: str | os.PathLike[str]) -> list[Any]:
    """Read a JSON file that must hold a list; raises as `read_object`."""
    values = loads(_read_bytes(Path(path), ""), str(path))
    if not isinstance(values, list):
        raise ValueError(f"{path}: must be a JSON list")
    return values


def _read_bytes(path: Path, hint: str) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{path}: is no file{hint}")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}{hint}") from None
    if len(data) > LARGEST:
        raise ValueError(f"{path}: has more than {LARGEST} bytes, too many for JSON")
    return data.removeprefix(codecs.BOM_UTF8)


def loads_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse JSON that must be an object; see `loads`."""
    values = loads(text, where)
    if not isinstance(values, dict):
        raise ValueError(f"{where}: must be a JSON object")
    return values


def loads(text: str | bytes, where: str) -> Any:
    """Parse JSON from outside.

    Args:
        text: The JSON; bytes must be UTF-8 without a byte-order mark.
        where: Its name in messages.

    Raises:
        ValueError: In one line with `where` and the key at fault. The text is no JSON, an object has a name twice,
            values are nested too deeply or are too many, or a number is not finite or needs more than 64 bits.
    """
    value, fault = None, None
    try:
        text = text if isinstance(text, str) else text.decode()
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise ValueError(f"has more than {MOST_BRACKETS} objects and lists")
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_read_whole)
        fault = _find_fault(value, 0)
    except RecursionError:
        fault = f": nested deeper than {DEEPEST} levels"
    except UnicodeDecodeError:
        fault = ": not JSON: not UTF-8 text"
    except json.JSONDecodeError as error:
        fault = f": not JSON: {error.msg[:1].lower()}{error.msg[1:]} in line {error.lineno}"
    except ValueError as error:
        fault = f": {error}"
    if fault is not None:
        raise ValueError(f"{where}{fault}")
    return value


def _read_whole(digits: str) -> int:
    """Read a whole number; of one that is too long, only so much that it is still too large."""
    return int(digits[:LONGEST_NUMBER])


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; refuse a name that occurs twice."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{shorten(name)} occurs twice")
        result[name] = value
    return result


def _find_fault(value: Any, depth: int) -> str | None:
    """Return what is wrong with a value or inside it, behind the path to it; None if nothing is."""
    if isinstance(value, dict | list):
        if depth == DEEPEST:
            return f": nested deeper than {DEEPEST} levels"
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            fault = _fault_of_text(key) if isinstance(key, str) else None
            fault = fault or _find_fault(each, depth + 1)
            if fault is not None:
                place = f"{'.' if depth else ': '}{_shorten_key(key)}" if isinstance(key, str) else f"[{key}]"
                return place + fault
        return None
    if isinstance(value, str):
        return _fault_of_text(value)
    if type(value) is int and not -(2**63) <= value < 2**63:
        return f"={shorten(value)}: must fit into 64 bits"
    return f"={value}: must be finite" if type(value) is float and not math.isfinite(value) else None


def _fault_of_text(text: str) -> str | None:
    """Return what is wrong with a text: half of a surrogate pair can be neither printed nor written."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return f"={shorten(text)}: is no Unicode text"
    return None


def _shorten_key(key: str) -> str:
    return key if key.isprintable() and len(key) <= SHOWN else shorten(key)


def shorten(value: Any) -> str:
    """Return a value as messages have it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class Config:
    """Base of the config dataclasses: to strict JSON and back."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers."""
        return json.loads(json.dumps(dataclasses.asdict(typing.cast(Any, self))))

    def to_json(self) -> str:
        """Return the config as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls: type[C], values: Any) -> C:
        """Build the config from `to_dict`'s form, or from any other JSON value; absent keys take their defaults.

        Raises:
            ValueError: It is no object, a key is unknown or missing, or a value has the wrong type; names it.
        """
        return parse(cls, values, cls.__name__)

    @classmethod
    def from_json(cls: type[C], text: str) -> C:
        """Build the config from JSON text.

        Raises:
            ValueError: As in `from_dict`.
        """
        return cls.from_dict(loads(text, cls.__name__))


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
    if typing.get_origin(kind) is tuple:
        return _parse_tuple(options, value, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        allowed = [member.value for member in kind]
        if value in allowed:
            return kind(value)
        raise ValueError(f"{where}={shorten(value)}: must be one of {allowed}")
    if kind is float and type(value) in (int, float):
        require(math.isfinite(value), where, value, "must be finite")
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where}={shorten(value)}: must be of type {getattr(kind, '__name__', kind)}")
    if kind is int:
        require(abs(value) <= LARGEST_WHOLE, where, value, f"must not be beyond {LARGEST_WHOLE}")
    return value


def _parse_tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """Parse a list, of any length if the type is `tuple[kind, ...]`."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}={shorten(value)}: must be a list")
    kinds = options[:1] * len(value) if options[-1] is Ellipsis else options
    require(len(value) <= LONGEST_LIST, where, f"{len(value)} items", f"must have at most {LONGEST_LIST}")
    require(len(value) == len(kinds), where, value, f"must have {len(kinds)} items")
    return tuple(parse(kind, each, f"{where}[{i}]") for i, (kind, each) in enumerate(zip(kinds, value, strict=True)))


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
        raise ValueError(f"{where}={shorten(values)}: must be an object")
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(map(str, set(values) - set(known)))
    needed = {n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
    missing = sorted(needed - set(values))
    if unknown or missing:
        raise ValueError(f"{where}: unknown keys {unknown}, missing keys {missing}")
    return kind(**{name: parse(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def as_texts(value: Any, where: str) -> tuple[str, ...]:
    """Return a JSON value that must be a list of texts, of any length.

    Raises:
        ValueError: It is something else; has `where`.
    """
    wrong = next((each for each in value if not isinstance(each, str)), None) if isinstance(value, list) else value
    if not isinstance(value, list) or wrong is not None:
        raise ValueError(f"{where}: has {shorten(wrong)}, expected a list of texts")
    return tuple(value)


def require(holds: bool, field: str, value: object, rule: str) -> None:
    """Raise a ValueError that names field, value and rule unless the rule holds."""
    if not holds:
        raise ValueError(f"{field}={shorten(value)}: {rule}")


def require_counts(config: Any, most: int, *fields: str, name: str = "") -> None:
    """Raise a ValueError unless fields of a config are from 1 to `most`: what is larger is never laid out in memory.

    Args:
        config: The config.
        most: Largest value, far above that of any network.
        fields: Names of the fields.
        name: What messages put before a field's name.
    """
    for field in fields:
        value = getattr(config, field)
        require(1 <= value <= most, f"{name}{field}", value, f"must be at least 1 and at most {most}")
