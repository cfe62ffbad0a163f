"""LoRA files fused into the matrices that they change: W + strength * B A, in float32, in the type of W.

Keys are `MODULE.lora_A.weight` and `MODULE.lora_B.weight`, as they are, after `diffusion_model.` (LTX-2) or after
`transformer.` (diffusers). An `alpha` scales the change by alpha / rank. Every tensor of the file must be used.

Source: ltx-core 1.0.0, ltx_core.loader.fuse_loras.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.strict_json import require

from .component import LTX2
from .finite import is_weight_type
from .formats.transformer import PREFIX
from .lazy_tensor import LazyTensor, list_tensors
from .plan import PlacedTensor, Plan

KEY = re.compile(
    r"(?:model\.diffusion_model\.|diffusion_model\.|transformer\.)?(?P<module>.+)\.(?P<role>lora_[AB]\.weight|alpha)"
)
A, B, ALPHA = "lora_A.weight", "lora_B.weight", "alpha"
Matrix = tuple[str, int | None]  # a native tensor and its layer


def read_lora(path: Path) -> dict[str, dict[str, LazyTensor]]:
    """List the changes of a LoRA file by module, and by role (`lora_A.weight`, `lora_B.weight`, `alpha`).

    Raises:
        ValueError: The file is damaged, a key is no LoRA's or has no counterpart, or ranks differ; names it.
    """
    modules: dict[str, dict[str, LazyTensor]] = {}
    for key, tensor in list_tensors(open_tensors(path)).items():
        found = KEY.fullmatch(key)
        if found is None:
            raise ValueError(f"{path}: unknown {key}, not a LoRA's")
        roles = modules.setdefault(found["module"], {})
        if found["role"] in roles:
            raise ValueError(f"{path}: {key} is given twice")
        if not is_weight_type(tensor.dtype):
            raise ValueError(f"{path}: {key} is {tensor.dtype}, expected a floating type")
        roles[found["role"]] = tensor
    for module, roles in modules.items():
        for role in (A, B):
            if role not in roles:
                raise ValueError(f"{path}: missing {module}.{role}")
        down, up = roles[A].shape, roles[B].shape
        if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
            raise ValueError(f"{path}: {module} has {A} {down} and {B} {up}, expected [rank, in] and [out, rank]")
    return modules


def fuse_lora(plan: Plan, path: Path, strength: float) -> tuple[Plan, str]:
    """Fuse a LoRA into a transformer that is about to be written.

    Args:
        plan: The transformer, from any format.
        path: The LoRA.
        strength: Factor of its change.

    Returns:
        The plan with changed matrices, and a note of what was done.

    Raises:
        ValueError: A module is not in this network or has another shape; names file and key.
    """
    component, config = plan.source.component, plan.source.config
    if component is None:
        raise ValueError(f"{path}: {plan.source.where} has no config to fuse it by")
    require(bool(np.isfinite(strength)), "lora strength", strength, "must be a finite number")
    modules = read_lora(path)
    matrices: dict[str, Matrix] = {p.source: (p.native, p.layer) for p in component.expand(config, LTX2)}
    changes: dict[Matrix, Mapping[str, LazyTensor]] = {}
    for module, roles in modules.items():
        if (matrix := matrices.get(f"{PREFIX}{module}.weight")) is None:
            raise ValueError(f"{path}: {module} is not in {plan.source.where}")
        changes[matrix] = roles
    placed = {
        name: tuple(_change(one, changes.get((name, one.placement.layer)), path, strength) for one in each)
        for name, each in plan.placed.items()
    }
    return dataclasses.replace(plan, placed=placed), f"{path} fused at {strength:g} into {len(modules)} matrices"


def _change(one: PlacedTensor, roles: Mapping[str, LazyTensor] | None, path: Path, strength: float) -> PlacedTensor:
    if roles is None:
        return one
    tensor, shape = one.tensor, (roles[B].shape[0], roles[A].shape[1])
    if shape != tensor.shape:
        raise ValueError(f"{path}: the change of {one.placement.source} has shape {shape}, the matrix {tensor.shape}")

    def fuse(values: np.ndarray) -> np.ndarray:
        down, up = (np.asarray(roles[role].load()).astype(np.float32) for role in (A, B))
        scale = np.float32(strength)
        if ALPHA in roles:
            scale = scale * np.asarray(roles[ALPHA].load()).astype(np.float32).reshape(()) / np.float32(down.shape[0])
        return (np.asarray(values).astype(np.float32) + (up * scale) @ down).astype(tensor.dtype)

    fused = dataclasses.replace(tensor.map(fuse), where=f"{tensor.where} with {path}")
    return dataclasses.replace(one, tensor=fused)
