"""The native weights folder: one subfolder per component, each with safetensors and JSON.

A leaf of a tree is named by its path ("layers/video/self_attn/q/w"). Loading is strict: names and shapes are checked
before any tensor is read. Each device reads only its own slice. Configs are plain JSON values here.

    weights/
      config.json                 the whole: which components, an optional "sampler" section
      manifest.json               which files belong together, see manifest.py
      transformer/model.safetensors, transformer/config.json
      video_vae/..., audio_vae/..., vocoder/..., text/...
"""

import collections
import functools
import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from omniforcing_jax.io import machine, manifest, tensor_file
from omniforcing_jax.io.atomic_write import AnyPath, replacing, write_json
from omniforcing_jax.io.tensor_file import TensorFile, open_tensors
from omniforcing_jax.parallel import distributed
from omniforcing_jax.parallel.spec import path_name
from omniforcing_jax.strict_json import read_object

MODEL = "model.safetensors"
CONFIG = "config.json"
NAMED_AT_MOST = 5  # keys per kind of fault in a message


def name_leaves(tree: PyTree) -> dict[str, Any]:
    """List the leaves of a tree by path: dataclass fields and dict keys joined by '/'.

    Raises:
        ValueError: If two leaves would have the same name, because a dict key contains a '/'.
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_name(path)
        if name in named:
            raise ValueError(f"'{name}' names two leaves of the tree")
        named[name] = leaf
    return named


def fill_tree(abstract: PyTree, named: Mapping[str, Any]) -> PyTree:
    """Build a tree from its named leaves. The names must be those of `abstract`."""
    return jax.tree.unflatten(jax.tree.structure(abstract), [named[name] for name in name_leaves(abstract)])


def compare_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Check that tensors have the expected names and shapes.

    Raises:
        ValueError: If not. One line with `where` and the missing, unknown and mis-shaped names.
    """
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    faults = [
        _list_names("missing", [name for name in expected if name not in found]),
        _list_names("unknown", [name for name in found if name not in expected]),
        _list_names("mis-shaped", [f"{name}: {found[name]} instead of {expected[name]}" for name in wrong]),
    ]
    if any(faults):
        raise ValueError(f"{where}: {'; '.join(fault for fault in faults if fault)}")


def _list_names(fault: str, names: list[str]) -> str:
    """Write out a few names, and the number of the others."""
    if not names:
        return ""
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return f"{fault} {', '.join(names[:NAMED_AT_MOST])}{more}"


def fingerprint(tree: PyTree) -> str:
    """Hash names, types, shapes and all bytes of a tree (sha256, hex). The leaves come to the host one by one."""
    digest = hashlib.sha256()
    for name, leaf in name_leaves(tree).items():
        digest.update(f"{name} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save_component(
    folder: AnyPath,
    name: str,
    tree: PyTree,
    config: Mapping[str, Any],
    dtype: jax.typing.DTypeLike | None = None,
    kept: Container[str] = (),
) -> None:
    """Write one component: its tensors and its config, each under a temporary name first; then list them.

    Every process must call this, because leaves that are sharded over processes are gathered. The first process writes.

    Args:
        folder: The weights folder; made if it is missing.
        name: The component, e.g. "transformer".
        tree: Parameters: any tree of arrays.
        config: Config of the component, as JSON values.
        dtype: Type of floating leaves on disk (e.g. float16); None keeps the type of each leaf.
        kept: Leaves, by path, that keep their type anyway.

    Raises:
        ValueError: If a value does not fit into `dtype`; names the leaf.
    """
    component = Path(folder) / name
    leaves = name_leaves(tree)
    if not distributed.speaks():
        for leaf in leaves.values():
            collections.deque(_runs(leaf), maxlen=0)
        return
    component.mkdir(parents=True, exist_ok=True)
    types = {key: _dtype_on_disk(leaf.dtype, None if key in kept else dtype) for key, leaf in leaves.items()}
    layout = {key: (types[key], tuple(leaf.shape)) for key, leaf in leaves.items()}
    with replacing(component / MODEL) as new:
        tensor_file.write_runs(new, layout, lambda key: (_cast(key, x, layout[key][0]) for x in _runs(leaves[key])))
        write_json(component / CONFIG, config)
    others = {} if manifest.is_unfinished(Path(folder)) else manifest.read(Path(folder)) or {}
    manifest.write(Path(folder), {**others, name: manifest.describe(component, (CONFIG, MODEL))})


def _runs(leaf: Any) -> Iterator[np.ndarray]:
    """Bring a leaf to the host: whole, or row by row of its leading axis if other processes hold parts of it."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        yield np.asarray(leaf)
        return
    take = _compile_take(leaf.sharding.mesh)  # pyright: ignore[reportAttributeAccessIssue]
    for row in range(leaf.shape[0]):
        yield np.asarray(take(leaf, row))


@functools.cache
def _compile_take(mesh: jax.sharding.Mesh) -> Any:
    """Compile a function that takes a row, whole on every device."""
    return jax.jit(lambda x, row: x[row], out_shardings=jax.NamedSharding(mesh, jax.P()))


def _dtype_on_disk(own: np.dtype, requested: jax.typing.DTypeLike | None) -> np.dtype:
    """Choose the dtype on disk: only floating leaves are cast."""
    return np.dtype(requested) if requested is not None and jnp.issubdtype(own, jnp.floating) else np.dtype(own)


def _cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast a leaf; refuse one whose finite values would become infinite."""
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if jnp.issubdtype(dtype, jnp.floating) and not np.array_equal(np.isfinite(cast), np.isfinite(value)):
        raise ValueError(f"'{name}' has values that do not fit into {dtype}")
    return cast


def load_component(
    folder: AnyPath,
    name: str,
    abstract: PyTree,
    view: Callable[[TensorFile], TensorFile] = lambda file: file,
    then: Callable[[str, jax.Array], Any] | None = None,
) -> PyTree:
    """Load one component into the shapes, dtypes and shardings of an abstract tree.

    Args:
        folder: The weights folder.
        name: The component, e.g. "transformer".
        abstract: The tree in `jax.ShapeDtypeStruct`s. Floating leaves may have any floating dtype on disk and are cast,
            except from and to float8, which has no meaning without its scale.
            A leaf with a sharding is read slice by slice, each device its own. The others go to the default device.
        view: Changes what is read of the file.
        then: Replaces each leaf, by its name, before the next one is read.

    Raises:
        ValueError: In one line and before any tensor is read, if the file is missing or damaged, or if a weight is
            missing, unknown, mis-shaped or of a wrong kind, or if the files are not those of the folder's manifest;
            names file and keys.
    """
    file = view(open_tensors(Path(folder) / name / MODEL))
    expected = name_leaves(abstract)
    compare_shapes(file.shapes, {key: tuple(leaf.shape) for key, leaf in expected.items()}, str(file.path))
    _check_dtypes(file, expected)
    manifest.check(Path(folder), [name])
    then = then or (lambda key, leaf: leaf)
    return fill_tree(abstract, {key: then(key, _load_leaf(file, key, leaf)) for key, leaf in expected.items()})


def _check_dtypes(file: TensorFile, expected: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Refuse a weight of another kind (integer, floating) than expected."""
    for name, leaf in expected.items():
        own = file.entries[name].dtype
        both_float = all(jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1 for dtype in (own, leaf.dtype))
        if own != leaf.dtype and not both_float:
            raise ValueError(f"{file.path}: '{name}' is {own}, expected {leaf.dtype}")


def _load_leaf(file: TensorFile, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Read what the devices of this process need of one leaf, each slice once; waits until it is on the devices."""
    loaded = _put_leaf(file, name, leaf)
    jax.monitoring.record_scalar(machine.LOADED, loaded.nbytes)
    return loaded


def _put_leaf(file: TensorFile, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if leaf.sharding is None:
        # Copied, because trainers donate it. `jnp.array` would compile a program for each shape.
        return jax.device_put(file.read(name).astype(leaf.dtype, copy=False), may_alias=False)
    slices: dict[str, np.ndarray] = {}

    def read_slice(index: tensor_file.Index | None) -> np.ndarray:
        place = str(index)
        if place not in slices:
            slices[place] = file.read(name, index or ()).astype(leaf.dtype, copy=False)
        return slices[place]

    # So that no slice of this leaf is on the host any more when the next one is read.
    return jax.block_until_ready(jax.make_array_from_callback(leaf.shape, leaf.sharding, read_slice))


def write_config(folder: AnyPath, values: Mapping[str, Any]) -> None:
    """Write the top-level config of a weights folder. Only the first process writes."""
    if not distributed.speaks():
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / CONFIG, values)


def read_config(folder: AnyPath, name: str | None = None) -> dict[str, Any]:
    """Read the config of a component, or the top-level one of the folder.

    Raises:
        ValueError: As `strict_json.read_object`; names the file.
    """
    return read_object(Path(folder) / (name or "") / CONFIG)
