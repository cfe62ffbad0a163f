"""LoRA files fused into the matrices that they change: W + strength * B A, in float32, back in W's own type.

Keys are `diffusion_model.MODULE.lora_A.weight` and `lora_B` (LTX-2's own), with `transformer.` in front (diffusers') or
with nothing; an `alpha` scales by alpha / rank. Every tensor of the file must be used. Source: specs/ltx2.md 1.2.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters.component import LTX2
from converters.ltx2_transformer import PREFIX
from converters.piece import Piece, is_float, pieces_of
from converters.plan import Plan, Run
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.strict_json import require

KEY = re.compile(
    r"(?:model\.diffusion_model\.|diffusion_model\.|transformer\.)?(?P<module>.+)\.(?P<role>lora_[AB]\.weight|alpha)"
)
A, B, ALPHA = "lora_A.weight", "lora_B.weight", "alpha"
Place = tuple[str, int | None]  # a tensor of ours and its layer


def read_lora(path: Path) -> dict[str, dict[str, Piece]]:
    """List the changes of a LoRA file: by module, and by role (`lora_A.weight`, `lora_B.weight`, `alpha`).

    Raises:
        ValueError: The file is damaged, a key is not a LoRA's or has no counterpart, or ranks differ; names it.
    """
    modules: dict[str, dict[str, Piece]] = {}
    for key, piece in pieces_of(open_tensors(path)).items():
        found = KEY.fullmatch(key)
        if found is None:
            raise ValueError(f"{path}: unknown {key}, not a LoRA's")
        roles = modules.setdefault(found["module"], {})
        if found["role"] in roles:
            raise ValueError(f"{path}: {key} is given twice")
        if not is_float(piece.dtype):
            raise ValueError(f"{path}: {key} is {piece.dtype}, expected a floating type")
        roles[found["role"]] = piece
    for module, roles in modules.items():
        for role in (A, B):
            if role not in roles:
                raise ValueError(f"{path}: missing {module}.{role}")
        down, up = roles[A].shape, roles[B].shape
        if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
            raise ValueError(f"{path}: {module} has {A} {down} and {B} {up}, expected [rank, in] and [out, rank]")
    return modules


def fuse(plan: Plan, path: Path, strength: float) -> tuple[Plan, str]:
    """Fuse a LoRA into a transformer that is about to be written.

    Args:
        plan: The transformer, from any format.
        path: The LoRA.
        strength: What its change is multiplied with.

    Returns:
        The plan with changed matrices, and what was done in words.

    Raises:
        ValueError: A module is not in this network or of another shape; names file and key.
    """
    component, config = plan.part.component, plan.part.config
    if component is None:
        raise ValueError(f"{path}: {plan.part.where} has no config to fuse it by")
    require(bool(np.isfinite(strength)), "lora strength", strength, "must be a finite number")
    modules = read_lora(path)
    places: dict[str, Place] = {p.theirs: (p.ours, p.layer) for p in component.place(config, LTX2)}
    changes: dict[Place, Mapping[str, Piece]] = {}
    for module, roles in modules.items():
        if (place := places.get(f"{PREFIX}{module}.weight")) is None:
            raise ValueError(f"{path}: {module} is not in {plan.part.where}")
        changes[place] = roles
    runs = {
        name: tuple(_change(run, changes.get((name, run.placement.layer)), path, strength) for run in each)
        for name, each in plan.runs.items()
    }
    return dataclasses.replace(plan, runs=runs), f"{path} fused at {strength:g} into {len(modules)} matrices"


def _change(run: Run, roles: Mapping[str, Piece] | None, path: Path, strength: float) -> Run:
    if roles is None:
        return run
    piece, shape = run.piece, (roles[B].shape[0], roles[A].shape[1])
    if shape != piece.shape:
        raise ValueError(f"{path}: the change of {run.placement.theirs} has shape {shape}, the matrix {piece.shape}")

    def load() -> np.ndarray:
        down, up = (np.asarray(roles[role].load()).astype(np.float32) for role in (A, B))
        scale = np.float32(strength)
        if ALPHA in roles:
            scale = scale * np.asarray(roles[ALPHA].load()).astype(np.float32).reshape(()) / np.float32(down.shape[0])
        return (np.asarray(piece.load()).astype(np.float32) + (up * scale) @ down).astype(piece.dtype)

    return dataclasses.replace(run, piece=dataclasses.replace(piece, where=f"{piece.where} with {path}", load=load))
