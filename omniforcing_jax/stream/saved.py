"""A stream on disk: the folder of a saved state, how it is written and how its header is read.

    state/
      state.json                  which weights and request the stream belongs to, how far it is, its tensor file and
                                  the hash of that
      state-<digits>.safetensors  cache, text, keys and carries

The JSON is the state. It names its tensor file, which never changes once it has been written, and one rename replaces
the JSON. A process that is killed while it saves leaves the old state or the new one, and at worst a stray file that
the next save removes. Stray files are known by a mark in their header: what a save did not write it leaves alone.
`resume.py` turns a folder back into a stream.
"""

import dataclasses
import json
import os
import re
import uuid
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from omniforcing_jax.io import lock, tensor_file
from omniforcing_jax.io.atomic_write import AnyPath, check_folder_writable, hash_file, write_json
from omniforcing_jax.io.weights import name_leaves
from omniforcing_jax.pipeline.checks import check_dtype
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig, component_configs
from omniforcing_jax.stream.batch import BatchStream
from omniforcing_jax.stream.camera.path import CameraPath
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.state import StreamState, check_block_count
from omniforcing_jax.strict_json import Config, read_object, require

FORMAT = 7
STATE = "state.json"
CHECKSUM = "sha256"  # key of the tensor file's hash
TENSORS = "state-{}.safetensors"
MARK = {"omniforcing_jax": "tensors of a saved stream"}  # metadata of every tensor file
MARKED_BYTES = 4096  # the mark is within the first bytes of a file
TEMPORARY = rf"\.{re.escape(STATE)}\.[0-9a-f]{{12}}"  # as `atomic_write.replacing` names it
PATIENCE_S = 600.0  # for another process that saves to the same folder
COUNTS = {"block": "block", "transition/left": "left", "transition/recompute": "recompute"}
"""Integers of a state that the host counts with, and their names in the JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedHeader(Config):
    """Values of `state.json`, except for the request and the configs of the weights.

    Attributes:
        format: Format of the folder.
        tensors: Name of the tensor file.
        name: Name of the weights.
        fingerprint: Hash of the weights as loaded (`Pipeline.fingerprint`).
        weights_dtype: Type that the weights were loaded in.
        block: Blocks made so far.
        blocks: Blocks after which the stream was to end; None is endless.
        key_kind: JAX's name of the random number generator.
        left: Block borders to come of a change of prompt that is under way.
        recompute: Clean passes at each of these borders.
        camera: The path of the camera; None for a network without cameras.
        loras: Hash of each LoRA file of the request.
    """

    format: int
    tensors: str
    name: str
    fingerprint: str
    weights_dtype: str
    block: int
    blocks: int | None
    key_kind: str
    left: int
    recompute: int
    camera: CameraPath | None
    loras: tuple[str, ...]

    def __post_init__(self) -> None:
        rule = "must be the name of a file in the same folder, as `save` writes it"
        require(re.fullmatch(TENSORS.format(r"\w{1,64}"), self.tensors) is not None, "tensors", self.tensors, rule)
        check_dtype(self.weights_dtype, "weights_dtype")
        for name in ("block", "left", "recompute"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        own = str(jax.random.key_impl(jax.random.key(0)))
        rule = f"this process makes keys of the kind {own!r}; see jax_default_prng_impl"
        require(self.key_kind == own, "key_kind", self.key_kind, rule)


def save(stream: ChunkStream | BatchStream, folder: AnyPath) -> None:
    """Save a stream between two of its blocks; it can continue afterwards.

    Processes that save to one folder wait for each other; the last one's state stays.

    Args:
        stream: The stream, its last chunk taken.
        folder: Made if it is missing, like its parents. A state in it stays valid until the new one is complete.

    Raises:
        ValueError: If the folder cannot be written, or has a `state.json` that is no saved stream's. If the stream has
            made the last of a fixed number of blocks, which is not committed, so that nothing could follow it. If the
            stream has conditioning latents for later blocks.
    """
    chunks = stream.stream if isinstance(stream, BatchStream) else stream
    _check_can_be_saved(chunks)
    check_state_folder(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    pipeline, state = chunks.pipeline, chunks.state
    header = SavedHeader(
        format=FORMAT,
        tensors=TENSORS.format(uuid.uuid4().hex),
        name=pipeline.config.name,
        fingerprint=pipeline.fingerprint,
        weights_dtype=weights_dtype(pipeline),
        block=state.block,
        blocks=chunks.blocks,
        key_kind=str(jax.random.key_impl(state.keys)),
        left=state.transition.left,
        recompute=state.transition.recompute,
        camera=state.camera,
        loras=chunks.plan.loras.hashes,
    )
    words = state.prompt_words if chunks.plan.request.is_batch else state.prompt_words[0]
    request = dataclasses.replace(chunks.plan.request, prompt=words)
    values = {**header.to_dict(), "request": request.to_dict(), "weights": stream_configs(pipeline.config)}
    write_state(Path(folder), state, values)


def check_state_folder(folder: AnyPath) -> None:
    """Refuse a folder to which no stream can be saved without a loss. Nothing is made.

    Raises:
        ValueError: The folder cannot be written or made, or it has a `state.json` that no save wrote.
    """
    check_folder_writable(folder)
    path = Path(folder) / STATE
    if os.path.lexists(path) and _named_tensors(path) is None:
        raise ValueError(f"{path}: is no saved stream, and would be replaced; choose another folder to save to")


def _named_tensors(path: Path) -> str | None:
    """Return the tensor file that a saved state of any version names; None if the file is no saved state."""
    try:
        values = read_object(path)
    except ValueError:
        return None
    name = values.get("tensors") if isinstance(values.get("format"), int) else None
    return name if isinstance(name, str) and fnmatch(name, TENSORS.format("*")) and "/" not in name else None


def _check_can_be_saved(stream: ChunkStream) -> None:
    block = stream.state.block
    if block == stream.blocks:
        raise ValueError(
            f"the stream has made the last of its {block} blocks, which is not committed: "
            "save it earlier, or open it without an end (seconds=None)"
        )
    if stream.tracks.blocks > block:
        raise ValueError(
            f"the stream has made {block} of {stream.tracks.blocks} blocks with given picture or sound, which a saved "
            "state does not hold: save it after these blocks"
        )
    check_block_count(stream.state)


def stream_configs(config: PipelineConfig) -> dict[str, Any]:
    """Return all configs that a stream depends on, as JSON values."""
    assert config.sampler is not None, "only students stream"
    return {**component_configs(config), "sampler": config.sampler.to_dict(), "resolution": list(config.resolution)}


def weights_dtype(pipeline: Pipeline) -> str:
    """Return the type that the network of a pipeline is loaded in."""
    return str(jax.tree.leaves(pipeline.transformer)[0].dtype)


def write_state(folder: Path, state: StreamState, values: dict[str, Any]) -> None:
    """Write the tensors, the JSON with their name and hash (`values`), then remove the state that was replaced."""
    leaves = _storable(state)
    new = folder / values["tensors"]
    layout = {name: (np.dtype(leaf.dtype), tuple(leaf.shape)) for name, leaf in leaves.items()}
    with lock.held(folder / lock.NAME, str(folder), wait_s=PATIENCE_S):
        old = folder / (_named_tensors(folder / STATE) or new.name)
        _remove_strays(folder, old)  # first, because they take the room that the new state needs
        try:
            tensor_file.write_tensors(new, layout, lambda name: np.asarray(leaves[name]), MARK)
            with new.open("rb") as file:
                os.fsync(file.fileno())
            write_json(folder / STATE, {**values, CHECKSUM: hash_file(new)})
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        if old != new:
            old.unlink(missing_ok=True)


def _remove_strays(folder: Path, kept: Path) -> None:
    """Remove what saves that were killed have left."""
    strays = [path for path in folder.glob(TENSORS.format("*")) if path != kept and _is_marked(path)]
    strays += [path for path in folder.glob(f".{STATE}.*") if re.fullmatch(TEMPORARY, path.name)]
    for path in strays:
        path.unlink(missing_ok=True)


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        return json.dumps(MARK, separators=(",", ":")).encode() in file.read(MARKED_BYTES)


def _storable(state: StreamState) -> dict[str, Any]:
    """List the tensors of a state by name, with keys as integers."""
    return tensors_of(dataclasses.replace(state, keys=jax.random.key_data(state.keys)))


def tensors_of(state: StreamState) -> dict[str, Any]:
    """List the leaves of a state by name, without the counts, which are in the JSON."""
    return {name: leaf for name, leaf in name_leaves(state).items() if name not in COUNTS}


class SavedStream(NamedTuple):
    """The content of `state.json`: header, request, the configs of the weights by component, the tensor file's hash."""

    header: SavedHeader
    request: StreamRequest
    weights: dict[str, Any]
    checksum: str


def read_saved(folder: AnyPath) -> SavedStream:
    """Read the JSON of a saved state, without its tensors.

    Raises:
        ValueError: In one line, if there is no state, or none that this version reads.
    """
    path = Path(folder) / STATE
    values = read_object(path, "; expected a folder that a stream was saved to")
    if type(values.get("format")) is not int:
        raise ValueError(f"{path}: not a saved stream: expected format={FORMAT}")
    if values["format"] != FORMAT:
        raise ValueError(
            f"{path}: saved in format {values['format']}, this version reads format {FORMAT}: start the stream anew"
        )
    sections = {name: values.pop(name, None) for name in ("request", "weights")}
    for name, section in sections.items():
        require(isinstance(section, dict), f"{path}: {name}", section, "must be an object")
    checksum = values.pop(CHECKSUM, None)
    require(isinstance(checksum, str), f"{path}: {CHECKSUM}", checksum, "must be the hash of the tensor file")
    try:
        request = StreamRequest.from_dict(sections["request"])
        return SavedStream(SavedHeader.from_dict(values), request, sections["weights"], checksum)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
