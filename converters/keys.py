"""Entries of config tables: keys of another format's config beside the native settings that they mean.

Each entry both reads and writes its keys, so that a table of entries is its own inverse, as the rule tables of weights
are. Native settings have dotted paths ("rotary.theta"), and so have keys of nested objects.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omniforcing_jax.strict_json import require, shorten

from .section import REQUIRED, Section

ABSENT: Any = object()  # a key that is not there: as a default, or as a value that is not to be written


def get_setting(config: Any, path: str) -> Any:
    """Return a setting or property of a native config by its dotted path."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


class Entry:
    """One or more keys of a config. The base class does nothing."""

    def read(self, section: Section, native: dict[str, Any]) -> None:
        """Take keys out of a section, and add the native settings that they mean by path."""

    def check(self, section: Section, config: Any) -> None:
        """Take keys that repeat what the native config says, and compare them with it."""

    def write(self, config: Any) -> dict[str, Any]:
        """Return the keys of a native config.

        Raises:
            ValueError: The format cannot express it; names the setting.
        """
        return {}


def _plain(value: Any) -> Any:
    """Return an enumeration's member as it is written, for messages."""
    return value.value if isinstance(value, enum.Enum) else value


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, kw_only=True)
class Form:
    """How settings are spelled in another format.

    Attributes:
        kind: JSON type of the key, or one type for each of several keys; `object` is any type.
        to_native: Returns the setting (a tuple for several settings) of the value (a tuple for several keys). Raises a
            ValueError that says what the value must be, and which one of several.
        to_source: The inverse, with ABSENT for a key that is not to be written. Raises a ValueError that says what the
            format can express.
    """

    kind: Any
    to_native: Callable[[Any], Any] = _same
    to_source: Callable[[Any], Any] = _same


def choice(values: Mapping[Any, Any] | type[enum.StrEnum]) -> Form:
    """Return the form of a value that is one of a few: members of an enumeration, or a mapping to native values."""
    meanings = dict(values) if isinstance(values, Mapping) else {each.value: each for each in values}
    spellings = {native: source for source, native in reversed(meanings.items())}

    def pick(options: Mapping[Any, Any], value: Any) -> Any:
        if value not in list(options):
            raise ValueError(f"must be one of {list(options)}")
        return options[value]

    return Form(kind=object, to_native=lambda x: pick(meanings, x), to_source=lambda x: pick(spellings, x))


def _read_lists(lists: list[Any]) -> tuple[tuple[Any, ...], ...]:
    if not all(isinstance(each, list | tuple) for each in lists):
        raise ValueError("must be a list of lists")
    return tuple(tuple(each) for each in lists)


LIST = Form(kind=list, to_native=tuple, to_source=list)
LISTS = Form(kind=list, to_native=_read_lists, to_source=lambda tuples: [list(each) for each in tuples])


@dataclass(frozen=True)
class Key(Entry):
    """A key and the setting that it means; several keys, or several settings, where they depend on each other.

    Attributes:
        native: Path of the setting, or paths.
        source: The key, or keys.
        form: How the setting is spelled. A plain type, or an enumeration, is spelled as it is.
        default: What the format's own code takes where the key is absent, as a value of the key; one for each key.
        sparse: The key is not written where the setting has the default.
        older: A key of older versions, read where `source` is absent.
    """

    native: str | tuple[str, ...]
    source: str | tuple[str, ...]
    form: Form | type
    default: Any = REQUIRED
    sparse: bool = False
    older: str = ""

    @property
    def _form(self) -> Form:
        if isinstance(self.form, Form):
            return self.form
        return choice(self.form) if issubclass(self.form, enum.StrEnum) else Form(kind=self.form)

    def read(self, section: Section, native: dict[str, Any]) -> None:
        """Take the keys, or their defaults."""
        form, source = self._form, self.source
        if isinstance(source, str):
            source = self.older if self.older in section and source not in section else source
            value = section.take(source, form.kind, self.default)
        else:
            kinds = form.kind if isinstance(form.kind, tuple) else len(source) * (form.kind,)
            defaults = len(source) * (REQUIRED,) if self.default is REQUIRED else self.default
            value = tuple(map(section.take, source, kinds, defaults))
        try:
            settings = form.to_native(value)
        except ValueError as error:
            key = f".{source}={shorten(value)}" if isinstance(source, str) else ""
            raise ValueError(f"{section.where}{key}: {error}") from None
        native |= {self.native: settings} if isinstance(self.native, str) else zip(self.native, settings, strict=True)

    def write(self, config: Any) -> dict[str, Any]:
        """Spell the settings."""
        paths = (self.native,) if isinstance(self.native, str) else self.native
        settings = tuple(get_setting(config, path) for path in paths)
        try:
            value = self._form.to_source(settings[0] if isinstance(self.native, str) else settings)
        except ValueError as error:
            raise ValueError(f"{paths[-1]}={_plain(settings[-1])!r}: {error}") from None
        if isinstance(self.source, str):
            return {} if value is ABSENT or (self.sparse and value == self.default) else {self.source: value}
        return {key: each for key, each in zip(self.source, value, strict=True) if each is not ABSENT}


@dataclass(frozen=True)
class Fixed(Entry):
    """Keys with the only value that is supported.

    Attributes:
        values: The value of each key.
        required: The keys must be there, because the format's own code has other defaults.
        written: The keys are written, and not only checked.
    """

    values: Mapping[str, Any]
    required: bool = False
    written: bool = True

    def read(self, section: Section, native: dict[str, Any]) -> None:
        """Take the keys and compare."""
        for key, expected in self.values.items():
            value = section.take(key, object, REQUIRED if self.required else expected)
            rule = f"must be {'there and ' if self.required else ''}{expected!r}, nothing else is supported"
            require(value == expected, f"{section.where}.{key}", value, rule)

    def write(self, config: Any) -> dict[str, Any]:
        """Return the values."""
        return dict(self.values) if self.written else {}


@dataclass(frozen=True)
class Constant(Entry):
    """A native setting that the format has no key for.

    Attributes:
        native: Path of the setting.
        value: Its value for the format's own code.
        rule: Why another value is not written; None where the format drops it without harm.
    """

    native: str
    value: Any
    rule: str | None = None

    def read(self, section: Section, native: dict[str, Any]) -> None:
        """Add the setting."""
        native[self.native] = self.value

    def write(self, config: Any) -> dict[str, Any]:
        """Refuse a setting that cannot be expressed."""
        found = get_setting(config, self.native)
        require(self.rule is None or found == self.value, self.native, _plain(found), str(self.rule))
        return {}


@dataclass(frozen=True)
class Repeated(Entry):
    """A key that repeats what other keys say: written, and compared where it is there.

    Attributes:
        source: The key.
        value: Path of the setting or property that it repeats, or a function of the native config.
        default: Its value where it is absent; ABSENT where it may be left out.
        rule: What it repeats, for messages.
        checked: False for a key that has no effect on what is computed here.
    """

    source: str
    value: str | Callable[[Any], Any]
    default: Any = ABSENT
    rule: str = ""
    checked: bool = True

    def check(self, section: Section, config: Any) -> None:
        """Take the key and compare."""
        value, expected = section.take(self.source, object, self.default), self.write(config)[self.source]
        is_right = not self.checked or value is ABSENT or value == expected
        require(is_right, f"{section.where}.{self.source}", value, f"must be {expected!r}{self.rule}")

    def write(self, config: Any) -> dict[str, Any]:
        """Repeat the value."""
        return {self.source: get_setting(config, self.value) if isinstance(self.value, str) else self.value(config)}
