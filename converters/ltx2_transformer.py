"""The dual-stream transformer under its original key names (LTX-2 2.0 and 2.3, OmniForcing).

Published files put `model.diffusion_model.` in front of every key and keep the text connectors
under the same prefix; both are handled here, and the connectors go through untouched. Names
of diffusers, and the other components of a published file, have tables of their own.
Source: specs/ltx2.md 2.3, 2.4, 9.1; specs/omniforcing.md 4.5.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree

from converters.rules import Placement, Rule, check_rules, gather, place, scatter
from omniforcing_jax.io.weights import fill_tree, name_leaves

PREFIX = "model.diffusion_model."
PASSED = ("video_embeddings_connector.", "audio_embeddings_connector.")


def _linear(ours: str, theirs: str) -> Iterator[Rule]:
    yield Rule(f"{ours}/w", f"{theirs}.weight")
    yield Rule(f"{ours}/b", f"{theirs}.bias")


def _time(ours: str, theirs: str) -> Iterator[Rule]:
    yield from _linear(f"{ours}/up", f"{theirs}.emb.timestep_embedder.linear_1")
    yield from _linear(f"{ours}/down", f"{theirs}.emb.timestep_embedder.linear_2")
    yield from _linear(f"{ours}/rows", f"{theirs}.linear")


def _attention(ours: str, theirs: str) -> Iterator[Rule]:
    for name in ("q", "k", "v"):
        yield from _linear(f"{ours}/{name}", f"{theirs}.to_{name}")
    yield from _linear(f"{ours}/o", f"{theirs}.to_out.0")
    yield from _linear(f"{ours}/gate", f"{theirs}.to_gate_logits")
    yield Rule(f"{ours}/q_norm", f"{theirs}.q_norm.weight")
    yield Rule(f"{ours}/k_norm", f"{theirs}.k_norm.weight")


def _ends(stream: str, mark: str, gate: str) -> Iterator[Rule]:
    """What stands before and after the layers of one stream; `mark` is its mark in their names."""
    yield from _linear(f"{stream}/patchify", f"{mark}patchify_proj")
    yield from _linear(f"{stream}/caption/up", f"{mark}caption_projection.linear_1")
    yield from _linear(f"{stream}/caption/down", f"{mark}caption_projection.linear_2")
    yield from _time(f"{stream}/time", f"{mark}adaln_single")
    yield from _time(f"{stream}/cross_time", f"av_ca_{stream}_scale_shift_adaln_single")
    yield from _time(f"{stream}/cross_gate_time", f"av_ca_{gate}_gate_adaln_single")
    yield from _time(f"{stream}/prompt_time", f"{mark}prompt_adaln_single")
    yield Rule(f"{stream}/head_table", f"{mark}scale_shift_table")
    yield from _linear(f"{stream}/head", f"{mark}proj_out")


def _layers(stream: str, mark: str) -> Iterator[Rule]:
    """One stream's part of the layers."""
    ours, theirs = f"layers/{stream}", "transformer_blocks.{i}."
    yield from _attention(f"{ours}/self_attn", f"{theirs}{mark}attn1")
    yield from _attention(f"{ours}/text_attn", f"{theirs}{mark}attn2")
    yield from _linear(f"{ours}/mlp/up", f"{theirs}{mark}ff.net.0.proj")
    yield from _linear(f"{ours}/mlp/down", f"{theirs}{mark}ff.net.2")
    yield Rule(f"{ours}/table", f"{theirs}{mark}scale_shift_table")
    yield Rule(f"{ours}/text_table", f"{theirs}{mark}prompt_scale_shift_table")
    yield Rule(f"layers/cross_table_{stream}", f"{theirs}scale_shift_table_a2v_ca_{stream}")


def _rules() -> Iterator[Rule]:
    for stream, mark, gate in (("video", "", "a2v"), ("audio", "audio_", "v2a")):
        yield from _ends(stream, mark, gate)
        yield from _layers(stream, mark)
    yield from _attention("layers/a2v", "transformer_blocks.{i}.audio_to_video_attn")
    yield from _attention("layers/v2a", "transformer_blocks.{i}.video_to_audio_attn")
    yield Rule("sinks", "audio_sink_tokens")


RULES = check_rules(_rules())


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in our tree: the parameters and what is needed to write the same file again.

    Attributes:
        params: The network's parameters, a tree of arrays.
        passed: The text connectors, which this network does not use, under their bare keys.
        prefix: What stood in front of every key.
    """

    params: PyTree
    passed: Mapping[str, np.ndarray]
    prefix: str


def place_tensors(abstract: PyTree) -> tuple[Placement, ...]:
    """List every original key (without prefix) of a network and its place in our tree.

    Args:
        abstract: The network's parameters as shapes, e.g. `jax.ShapeDtypeStruct`s.
    """
    return place(RULES, {name: tuple(leaf.shape) for name, leaf in name_leaves(abstract).items()})


def from_original(tensors: Mapping[str, np.ndarray], abstract: PyTree, where: str = "checkpoint") -> Checkpoint:
    """Read a transformer under its original names into our tree, bit for bit.

    Args:
        tensors: The transformer and the connectors, with or without the published prefix.
        abstract: The tree that the config declares, as shapes.
        where: The source, for messages.

    Raises:
        ValueError: Names the keys that are missing, unknown, mis-shaped or given twice.
    """
    prefix = _find_prefix(tensors, where)
    bare = {key.removeprefix(prefix): value for key, value in tensors.items()}
    used = {key: value for key, value in bare.items() if not key.startswith(PASSED)}
    return Checkpoint(
        params=fill_tree(abstract, gather(used, place_tensors(abstract), where)),
        passed={key: value for key, value in bare.items() if key.startswith(PASSED)},
        prefix=prefix,
    )


def _find_prefix(keys: Iterable[str], where: str) -> str:
    """Say whether the keys carry the published prefix, refusing a mixture."""
    prefixed = {key for key in keys if key.startswith(PREFIX)}
    for key in keys if prefixed else ():
        if PREFIX + key in prefixed:
            raise ValueError(f"{where}: {key} is given twice, with and without {PREFIX}")
        if key not in prefixed:
            raise ValueError(f"{where}: unknown {key}, which lacks the prefix {PREFIX} of the others")
    return PREFIX if prefixed else ""


def to_original(checkpoint: Checkpoint, where: str = "parameters") -> dict[str, np.ndarray]:
    """Write a transformer of ours under its original names; the inverse of `from_original`."""
    named = {name: np.asarray(leaf) for name, leaf in name_leaves(checkpoint.params).items()}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), checkpoint.params)
    theirs = scatter(named, place_tensors(shapes), where)
    return {checkpoint.prefix + name: value for name, value in (theirs | dict(checkpoint.passed)).items()}
