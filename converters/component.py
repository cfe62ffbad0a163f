"""A component's tables: where each format keeps it, the keys of its config, and its rules in each naming.

A component is one subfolder of a weights folder. Everything else (reading sources, writing files, the commands) knows a
component only through its `Component`. A component without a table passes through untouched.
"""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import PyTree

from omniforcing_jax.io.weights import name_leaves

from .config_table import AnyTable
from .rules import Placement, Rule, check_rules, expand_rules

LTX2 = "ltx2"  # one file, or shards: all components under their original keys, configs in the header
DIFFUSERS = "diffusers"  # a folder with a subfolder and a config.json per component
UPSAMPLER = "upsampler"  # a file of its own for one latent upsampler, without prefixes, its config in the header
HUGGING_FACE = "hugging_face"  # one model in a folder, as transformers keeps it (Gemma)
LTX2_TEXT = "ltx2_text"  # LTX-2.5's text encoder in one file: text model, text projection and tokenizer


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How one format keeps a component.

    Attributes:
        prefixes: Keys that begin with one of these are this component's. Where prefixes of several components fit, the
            longest wins. In diffusers' and Hugging Face's folders a folder is a component: `("",)`.
        rules: The rules for a network of some config, with keys in full, as the format's files have them.
        table: Reads and writes the config: sections of an LTX-2 header (`{"transformer": ..., "vae": ...}`), of which
            others' are not touched, or a config.json.
        passed: Globs of keys that the format has and nothing here uses. Such tensors pass through, where present.
        folder: Subfolder in a diffusers folder.
    """

    rules: Callable[[Any], tuple[Rule, ...]]
    table: AnyTable
    prefixes: tuple[str, ...] = ("",)
    passed: tuple[str, ...] = ()
    folder: str = ""

    def is_passed(self, key: str) -> bool:
        """Whether a key belongs to a tensor that nothing here uses."""
        return any(fnmatch.fnmatchcase(key, glob) for glob in self.passed)


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component of a weights folder.

    Attributes:
        name: Its subfolder.
        config: Type of its native config.
        abstract: The tree that a config declares, as shapes (`jax.ShapeDtypeStruct`s; types do not count).
        namings: How each format that has the component keeps it, by `LTX2`, `DIFFUSERS`, `HUGGING_FACE` or `LTX2_TEXT`.
    """

    name: str
    config: Any
    abstract: Callable[[Any], PyTree]
    namings: Mapping[str, Naming]

    def expand(self, config: Any, naming: str) -> tuple[Placement, ...]:
        """List every source key, in full, and its place in the native tensors.

        Raises:
            ValueError: The table is wrong: it has a name twice, or no rule for a native tensor.
        """
        shapes = {name: tuple(leaf.shape) for name, leaf in name_leaves(self.abstract(config)).items()}
        return expand_rules(check_rules(self.namings[naming].rules(config)), shapes)
