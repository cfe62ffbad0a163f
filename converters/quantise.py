"""A network's matrices into eight bits and back: of a plan that is to be written, and of a folder that is exported.

Float8 matrices of a source that have one scale each are kept as they are, bit for bit. All others are quantised from
the wide values. Which of a file's tensors are which is said in omniforcing_jax's module pipeline/quantise.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.config import EightBitKind, EightBits, ModelConfig
from omniforcing_jax.model.eight_bits import ALL_PARTS, default_eight_bits
from omniforcing_jax.nn.quantised import EIGHTS, encode, measure_scale
from omniforcing_jax.pipeline.quantise import kept_layers, matrices

from .float8 import Scaled
from .lazy_tensor import LazyTensor, Rows
from .plan import PlacedTensor, Plan

WIDENED = np.dtype(jnp.bfloat16)


def quantise_plan(plan: Plan, chosen: EightBits) -> tuple[Plan, tuple[str, ...]]:
    """Plan to write a transformer in eight bits; float8 of the source that nothing has changed since is kept.

    Returns:
        The new plan, and notes of what it does.
    """
    kind, rows_kept = chosen.kind, []
    placed, layout = dict(plan.placed), dict(plan.layout)
    for each in matrices(chosen):
        rows, (dtype, (total, *sizes)) = placed.pop(each.wide), layout.pop(each.wide)
        narrow, kept = chosen.layers, kept_layers(chosen, total)
        rows_kept += [_kept_float8(rows[i].tensor, kind) is not None for i in narrow]
        made = [_quantise(rows[i], kind) for i in narrow]
        tensors = {
            each.values: [_replace(rows[i], values) for i, (values, _) in zip(narrow, made, strict=True)],
            each.scale: [_replace(rows[i], scale) for i, (_, scale) in zip(narrow, made, strict=True)],
            each.others: [rows[i] for i in kept],
        }
        layout[each.values] = EIGHTS[kind].dtype, (len(narrow), *sizes)
        layout[each.scale] = np.dtype(np.float32), (len(narrow), *sizes[:-1])
        layout[each.others] = dtype, (len(kept), *sizes)
        placed |= {name: tuple(parts) for name, parts in tensors.items() if parts}
    source = dataclasses.replace(plan.source, config=dataclasses.replace(plan.source.config, eight_bits=chosen))
    layout = {name: layout[name] for name in placed}
    new = dataclasses.replace(plan, source=source, layout=layout, placed=placed)
    how = _say_how(rows_kept)
    return new, (f"transformer: {describe(chosen, source.config.layers)} {how}, {new.nbytes / 1e9:.2f} GB in all",)


def _say_how(kept: Sequence[bool]) -> str:
    """Say what becomes of matrices, of which some or all are kept."""
    if not any(kept):
        return "are quantised"
    changed = len(kept) - sum(kept)
    but = f", but for {changed} of {len(kept)} that a LoRA changed: these are quantised anew" if changed else ""
    return f"are kept as the source has them{but}"


def describe(chosen: EightBits, layers: int) -> str:
    """Say in a few words what is in eight bits."""
    return f"{len(chosen.parts)} {chosen.kind.value} matrices in {len(chosen.layers)} of {layers} layers"


def choose(plan: Plan, kind: EightBitKind) -> EightBits:
    """Choose what is in eight bits: the source's own float8 matrices, or the default.

    Args:
        plan: The transformer as the source has it, before a LoRA is fused into it.
        kind: Of the numbers.

    Raises:
        ValueError: The source's float8 matrices are not those of the same layers everywhere.
    """
    found = {}
    for part in ALL_PARTS:
        rows = plan.placed[f"layers/{part}/w"]
        found[part] = tuple(i for i, one in enumerate(rows) if _kept_float8(one.tensor, kind) is not None)
    found = {part: layers for part, layers in found.items() if layers}
    if not found:
        return default_eight_bits(plan.source.config.layers, kind)
    (first, layers), *others = found.items()
    for part, own in others:
        if own != layers:
            rule = f"must be float8 in the same layers as {first}; convert without --quantise"
            raise ValueError(f"{plan.source.where}: {part} is float8 in layers {own}, {rule}")
    return EightBits(kind=kind, layers=layers, parts=tuple(found))


def _kept_float8(tensor: LazyTensor, kind: EightBitKind) -> Scaled | None:
    """Return the values and the scale that a tensor was computed from; None if they are not of this kind."""
    load = tensor.load
    return load if isinstance(load, Scaled) and load.values.dtype == EIGHTS[kind].dtype else None


def _replace(placed: PlacedTensor, tensor: LazyTensor) -> PlacedTensor:
    return dataclasses.replace(placed, tensor=tensor)


def _quantise(placed: PlacedTensor, kind: EightBitKind) -> tuple[LazyTensor, LazyTensor]:
    """Return values and scales of a matrix. Loading the values keeps the scales, so that nothing is read twice."""
    tensor, kept, measured = placed.tensor, _kept_float8(placed.tensor, kind), []

    def load_values() -> np.ndarray:
        w = tensor.load()
        measured[:] = [_measure(placed, w, kind)]
        return encode(w, measured[0], kind)

    def load_kept() -> np.ndarray:
        assert kept is not None
        loaded = np.asarray(kept.values.load())
        if np.isnan(loaded).any():
            raise ValueError(f"{tensor.where}: {placed.placement.source} has values that are not finite")
        return loaded

    def load_scale() -> np.ndarray:
        if kept is not None:
            return np.full(tensor.shape[:-1], kept.scale, np.float32)
        return measured[0] if measured else _measure(placed, tensor.load(), kind)

    values = dataclasses.replace(tensor, dtype=EIGHTS[kind].dtype, load=load_values if kept is None else load_kept)
    scale = dataclasses.replace(tensor, dtype=np.dtype(np.float32), shape=tensor.shape[:-1], load=load_scale)
    return values, scale


def _measure(placed: PlacedTensor, w: np.ndarray, kind: EightBitKind) -> np.ndarray:
    try:
        return measure_scale(w, kind)
    except ValueError as error:
        raise ValueError(f"{placed.tensor.where}: {placed.placement.source} {error}") from None


def widen(config: Any, tensors: Mapping[str, LazyTensor]) -> tuple[Any, Mapping[str, LazyTensor]]:
    """Return a component's config and tensors without eight bits: their values times their scales.

    Args:
        config: A component's config; only a transformer's may have eight bits.
        tensors: Its native tensors.
    """
    if not isinstance(config, ModelConfig) or config.eight_bits is None:
        return config, tensors
    wide, kept = dict(tensors), kept_layers(config.eight_bits, config.layers)
    for each in matrices(config.eight_bits):
        values, scale, others = (wide.pop(name, None) for name in (each.values, each.scale, each.others))
        assert values is not None
        assert scale is not None
        dtype = WIDENED if others is None else others.dtype
        rows = {layer: _widen(values.row(i), scale.row(i), dtype) for i, layer in enumerate(config.eight_bits.layers)}
        rows |= {layer: others.row(i) for i, layer in enumerate(kept)} if others is not None else {}
        stack = Rows(tuple(rows[layer] for layer in range(config.layers)))
        wide[each.wide] = LazyTensor(
            dtype=dtype, shape=(config.layers, *values.shape[1:]), where=values.where, load=stack
        )
    return dataclasses.replace(config, eight_bits=None), wide


def _widen(values: LazyTensor, scale: LazyTensor, dtype: np.dtype) -> LazyTensor:
    def load() -> np.ndarray:
        return (values.load().astype(np.float32) * np.asarray(scale.load())[:, None]).astype(dtype)

    return dataclasses.replace(values, dtype=dtype, load=load)
