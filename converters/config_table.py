"""The config of one component in one format, as a table that is read and written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .keys import Entry
from .section import Section, flatten, nest

Values = Mapping[str, Any]


def _same(values: Any) -> Any:
    return values


def _accept(config: Any) -> None:
    """Refuse nothing."""


@dataclass(frozen=True, kw_only=True)
class ConfigTable:
    """All keys of a config.

    Attributes:
        config: Type of the native config.
        where: Name of the config in messages.
        entries: The keys.
        unread: Regular expressions of keys that have no effect on what is computed here.
        section: Section of an LTX-2 header that has the keys; "" where the whole file has them.
        open: Brings a config into the form that the entries read.
        wrap: Brings what the entries write into the form of a file.
        refuse: Raises a ValueError for a native config that the format cannot express.
    """

    config: Any
    where: str
    entries: tuple[Entry, ...]
    unread: tuple[str, ...] = ()
    section: str = ""
    open: Callable[[Values], Values] = _same
    wrap: Callable[[dict[str, Any]], dict[str, Any]] = _same
    refuse: Callable[[Any], None] = _accept

    def read(self, values: Values) -> Any:
        """Read the native config.

        Raises:
            ValueError: A key is missing, unknown or of a wrong type, or its value is not supported; names the key.
        """
        values = self.open(values)
        if self.section and not isinstance(values.get(self.section), Mapping):
            raise ValueError(f"header config={sorted(values)}: must have a {self.section} section")
        section = Section(values[self.section] if self.section else values, self.where)
        native: dict[str, Any] = {}
        for entry in self.entries:
            entry.read(section, native)
        config = self.config.from_dict(nest(native))
        for entry in self.entries:
            entry.check(section, config)
        section.close(self.unread)
        return config

    def write(self, config: Any) -> dict[str, Any]:
        """Write a native config.

        Raises:
            ValueError: The format cannot express it; names the setting.
        """
        self.refuse(config)
        flat = {key: value for entry in self.entries for key, value in entry.write(config).items()}
        return self.wrap({self.section: nest(flat)} if self.section else nest(flat))


@dataclass(frozen=True, kw_only=True)
class Generations:
    """The config of a component that has another table in each generation.

    Attributes:
        of_source: Returns the table that reads another format's config, of its keys (see `flatten`).
        of_native: Returns the table that writes a native config.
    """

    of_source: Callable[[Values], ConfigTable]
    of_native: Callable[[Any], ConfigTable]

    def read(self, values: Values) -> Any:
        """Read the native config; see `ConfigTable.read`."""
        return self.of_source(flatten(values)).read(values)

    def write(self, config: Any) -> dict[str, Any]:
        """Write a native config; see `ConfigTable.write`."""
        return self.of_native(config).write(config)


AnyTable = ConfigTable | Generations
