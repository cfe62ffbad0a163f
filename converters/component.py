"""What a component's table exports: where formats keep it, its config there and here, its rules per naming.

A component is one subfolder of ours. Its table (ltx2_transformer.py is the first) is one `Component`;
reading sources, writing files and the commands know nothing else about it. A component without a table goes
through untouched. Configs of other formats are read strictly: a fixed value that differs is an error that names it,
the cheapest guard against a new generation.
"""

import enum
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import PyTree

from converters.rules import Placement, Rule, check_rules, place
from omniforcing_jax.io.weights import name_leaves

LTX2 = "ltx2"  # one file, or shards: all components under their original keys, configs in its header
DIFFUSERS = "diffusers"  # a folder with a subfolder and a config.json per component
HUGGING_FACE = "hugging_face"  # one model in a folder, as transformers keeps it (Gemma)

Header = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How one format keeps a component.

    Attributes:
        prefixes: Keys that begin with one of these are this component's; where several components' prefixes fit, the
            longest wins. In diffusers' and Hugging Face's folders a folder is a component: `("",)`.
        rules: The table for a network of that config, with keys in full, as they stand in that format's file.
        read_config: Reads our config out of theirs: of LTX-2 the whole header (`{"transformer": ..., "vae": ...}`), of
            the others the folder's config.json. Raises a ValueError that names key, value and what was expected.
        write_config: The inverse: of LTX-2 the header's sections that are this component's, of the others the whole
            config.json.
        passed: Globs of keys that the format has and nobody here uses: they go through untouched, where present.
        folder: Subfolder in a diffusers folder.
    """

    prefixes: tuple[str, ...]
    rules: Callable[[Any], tuple[Rule, ...]]
    read_config: Callable[[Header], Any]
    write_config: Callable[[Any], dict[str, Any]]
    passed: tuple[str, ...] = ()
    folder: str = ""

    def is_passed(self, key: str) -> bool:
        """Whether a key is one of those that nobody here uses."""
        return any(fnmatch.fnmatchcase(key, glob) for glob in self.passed)


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component of ours.

    Attributes:
        name: Our subfolder.
        abstract: The tree that a config declares, as shapes (`jax.ShapeDtypeStruct`s; types do not count).
        read_own: Reads our config from our config.json (already parsed).
        write_own: The inverse.
        namings: How each format that has it keeps it, by `LTX2`, `DIFFUSERS` or `HUGGING_FACE`.
    """

    name: str
    abstract: Callable[[Any], PyTree]
    read_own: Callable[[dict[str, Any]], Any]
    write_own: Callable[[Any], dict[str, Any]]
    namings: Mapping[str, Naming]

    def place(self, config: Any, naming: str) -> tuple[Placement, ...]:
        """List every key of theirs, in full, and its place in ours.

        Raises:
            ValueError: The table is wrong: a name twice, or a tensor of ours without a rule.
        """
        shapes = {name: tuple(leaf.shape) for name, leaf in name_leaves(self.abstract(config)).items()}
        return place(check_rules(self.namings[naming].rules(config)), shapes)


class Section:
    """A section of another format's config that is read key by key, and must have been read to its end.

    Attributes:
        where: What it is called in messages, e.g. "header config, vae".
    """

    def __init__(self, values: Any, where: str):
        if not isinstance(values, Mapping):
            raise ValueError(f"{where}={values!r}: must be an object")
        self.where = where
        self._left = dict(values)

    def take(self, key: str, kind: type, *default: Any) -> Any:
        """Take a value of a kind; without a default it must be there (an integer counts as a float, a string as enum).

        Raises:
            ValueError: It is missing or of another kind.
        """
        if key not in self._left:
            if default:
                return default[0]
            raise ValueError(f"{self.where}: missing {key}")
        value = self._left.pop(key)
        if kind is float and type(value) is int:
            return float(value)
        if issubclass(kind, enum.Enum):
            allowed = [member.value for member in kind]
            if value not in allowed:
                raise ValueError(f"{self.where}.{key}={value!r}: must be one of {allowed}")
            return kind(value)
        if type(value) is not kind:
            raise ValueError(f"{self.where}.{key}={value!r}: must be of type {kind.__name__}")
        return value

    def expect(self, fixed: Mapping[str, Any]) -> None:
        """Check values that this code supposes; an absent one is fine.

        Raises:
            ValueError: One of them differs.
        """
        for key, wanted in fixed.items():
            if (value := self._left.pop(key, wanted)) != wanted:
                raise ValueError(f"{self.where}.{key}={value!r}: must be {wanted!r}, nothing else is supported")

    def ignore(self, *keys: str) -> None:
        """Leave keys unread that have no effect on what is computed here."""
        for key in keys:
            self._left.pop(key, None)

    def close(self) -> None:
        """Check that all keys were read.

        Raises:
            ValueError: Names those that were not.
        """
        if self._left:
            raise ValueError(f"{self.where}: unknown keys {sorted(self._left)}")
