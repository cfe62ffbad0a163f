"""One component of a weights folder, opened to be inspected, compared or exported; tensors are not read yet.

Beside the files that the library loads (model.safetensors, config.json), a converted component's folder has two for the
way back:

    source.json           where it came from: format, naming, the header's metadata, config.json of formats with one
    passed.safetensors    tensors that nothing here uses, under their own keys; all tensors where there is no table
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from omniforcing_jax.io import manifest, weights
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.pipeline.weights_folder import locate_components, read_top
from omniforcing_jax.strict_json import as_texts, read_object

from .component import Component
from .lazy_tensor import LazyTensor, list_tensors, wrap_array
from .quantise import widen
from .registry import COMPONENTS, NAMES
from .rules import Placement

PASSED = "passed.safetensors"
SOURCE = "source.json"
EXTRACTS, JOINED = "files", "is_joined"  # keys of source.json, see `SourceComponent`


@dataclass(frozen=True, kw_only=True)
class NativeComponent:
    """One component of a weights folder.

    Attributes:
        name: Its subfolder.
        folder: Where it is.
        component: Its table; None where there is none.
        config: Its native config; None without a table.
        tensors: Its native tensors; None where all of them passed through.
        passed: Tensors that passed through, under their source keys.
        source: What source.json says; empty for weights that were not converted.
    """

    name: str
    folder: Path
    component: Component | None
    config: Any
    tensors: Mapping[str, LazyTensor] | None
    passed: Mapping[str, LazyTensor]
    source: Mapping[str, Any]

    @property
    def is_trained_here(self) -> bool:
        """Whether it is of a kind that other formats do not have, such as chime's text encoder."""
        return self.tensors is not None and self.component is None

    @property
    def naming(self) -> str | None:
        """How the source's keys are spelled."""
        return self.source.get("naming")

    @property
    def extracts(self) -> tuple[str, ...]:
        """Names of its further files that were tensors of the source."""
        return as_texts(self.source.get(EXTRACTS, []), f"{self.folder / SOURCE}: {EXTRACTS}")

    @property
    def is_joined(self) -> bool:
        """Whether the text projection of connectors came in another file than the rest."""
        return bool(self.source.get(JOINED))

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the source's header."""
        return dict(self.source.get("metadata") or {})


def place_of(folder: Path, name: str) -> Path:
    """Return where a component of a weights folder lies, which may be in another folder, or will lie.

    Raises:
        ValueError: The folder's config is damaged.
    """
    if not (folder / weights.CONFIG).is_file():
        return folder / name
    root, own = locate_components(folder)[name]
    return root / own


def is_weights_folder(path: Path) -> bool:
    """Whether a path is a native weights folder.

    Raises:
        ValueError: Its config.json cannot be read.
    """
    if not (path / weights.CONFIG).is_file():
        return False
    values = weights.read_config(path)
    return "format" in values and "_class_name" not in values


def open_weights_folder(folder: Path) -> dict[str, NativeComponent]:
    """Open all components of a weights folder. Headers and configs are read and checked, tensors are not.

    Raises:
        ValueError: It is no weights folder, or a component is damaged or does not fit its config; names file and key.
    """
    elsewhere = read_top(folder).get("components", {})
    folders = {name: folder / elsewhere.get(name, name) for name in NAMES}
    manifest.read(folder)
    found = {name: _open(name, path) for name, path in folders.items() if path.is_dir()}
    if not found:
        raise ValueError(f"{folder}: holds no component")
    for native in found.values():
        manifest.check(native.folder.parent, [native.folder.name])
    return found


def _open(name: str, folder: Path) -> NativeComponent:
    source = read_object(folder / SOURCE) if (folder / SOURCE).is_file() else {}
    passed, tensors = (_list(folder / file) for file in (PASSED, weights.MODEL))
    if tensors is None and passed is None:
        raise ValueError(f"{folder}: holds neither {weights.MODEL} nor {PASSED}")
    component, config = COMPONENTS.get(name) if tensors is not None else None, None
    if component is not None:
        values = weights.read_config(folder)
        try:
            config = component.config.from_dict(values)
        except ValueError as error:
            if source:
                raise ValueError(f"{folder / weights.CONFIG}: {error}") from None
            component = None  # of a kind that no table knows
    if component is not None and tensors is not None:
        expected = {key: tuple(leaf.shape) for key, leaf in weights.name_leaves(component.abstract(config)).items()}
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        weights.compare_shapes(shapes, expected, str(folder / weights.MODEL))
    return NativeComponent(
        name=name,
        folder=folder,
        component=component,
        config=config,
        tensors=tensors,
        passed=passed or {},
        source=source,
    )


def _list(path: Path) -> dict[str, LazyTensor] | None:
    return list_tensors(open_tensors(path)) if path.is_file() else None


def wrap_tree(component: Component, config: Any, tree: PyTree) -> NativeComponent:
    """Make a native component of parameters that are in memory, to be renamed as a folder's are."""
    tensors = {name: wrap_array(np.asarray(leaf), name) for name, leaf in weights.name_leaves(tree).items()}
    return NativeComponent(
        name=component.name,
        folder=Path(),
        component=component,
        config=config,
        tensors=tensors,
        passed={},
        source={},
    )


def rename_tensors(native: NativeComponent, naming: str) -> dict[str, LazyTensor]:
    """List a component's tensors under another format's keys, with those that passed through from that format.

    Matrices in eight bits become wide.

    Raises:
        ValueError: The component has no table for that naming.
    """
    passed = dict(native.passed) if native.naming == naming else {}
    if native.tensors is None and passed:
        return passed
    if native.component is None or native.tensors is None or naming not in native.component.namings:
        rule = "choose other components with --components"
        raise ValueError(f"{native.folder}: {native.name} has no table for {naming}; {rule}")
    config, tensors = widen(native.config, native.tensors)
    placements = native.component.expand(config, naming)
    return {each.source: _take(tensors[each.native], each) for each in placements} | passed


def _take(tensor: LazyTensor, placement: Placement) -> LazyTensor:
    """Return a source tensor from its place in a native one."""
    one = tensor if placement.layer is None else tensor.row(placement.layer)
    return one if placement.axes is None else one.map(placement.to_source, placement.source_shape)
