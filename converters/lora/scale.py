"""How much of each change counts: alpha / rank, from where the tool that wrote the LoRA keeps it.

| where | written by |
|---|---|
| `lora_adapter_metadata` in the header | diffusers |
| `adapter_config.json` beside the file | PEFT (keys begin with `base_model.model.`) |
| `X.alpha` | kohya, musubi, LyCORIS, ComfyUI |
| nowhere: the factor is 1, as ltx-core, diffusers and ComfyUI take it | LTX-2's trainer, ai-toolkit, older diffusers |

PEFT's settings that change the base weights, or the form of the change, are refused.

Source: peft@0.21.2:tuners/lora/model.py; diffusers@0.42.1:loaders/lora_base.py; ltx-core@1.0.0:loader/fuse_loras.py.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from omniforcing_jax.strict_json import loads_object, read_object, require

from .keys import Module, Role, read_modules

HEADER, BESIDE, PEFT = "lora_adapter_metadata", "adapter_config.json", "base_model.model."
NOWHERE = "no alpha, so 1 as in ltx-core, diffusers and ComfyUI"

READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "peft_type"}
INERT = {  # settings that do not change what a trained LoRA adds
    *("auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config"),
    *("lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "target_parameters"),
    *("task_type", "trainable_token_indices"),
}
HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # others subtract from the base weights


@dataclass(frozen=True, kw_only=True)
class PeftSettings:
    """The settings that PEFT's `LoraConfig` had.

    Attributes:
        where: File and place, for messages.
        prefix: The modules that they are for begin with this.
        values: Its fields.
    """

    where: str
    prefix: str
    values: Mapping[str, Any]


class ScaledModule(NamedTuple):
    """A module of a LoRA file, the factor of its change, and where that comes from in words."""

    module: Module
    scale: float
    origin: str


def read_scaled(path: Path) -> list[ScaledModule]:
    """List the modules of a LoRA file with their factors; whole changes, which have no factors, count once.

    Raises:
        ValueError: The file is damaged, of another kind or of unclear scale; names file and key.
    """
    modules, metadata = read_modules(path)
    settings = read_settings(path, modules, metadata)
    whole = (1.0, "whole changes")
    return [
        ScaledModule(module, *(find_scale(path, module, settings) if Role.DOWN in module.tensors else whole))
        for module in modules
    ]


def read_settings(path: Path, modules: Sequence[Module], metadata: Mapping[str, str]) -> tuple[PeftSettings, ...]:
    """Read the settings of a file that diffusers or PEFT wrote, for each prefix of its modules; none for others.

    Raises:
        ValueError: They are damaged, missing where PEFT keeps them, or of an adapter that is no plain LoRA.
    """
    if HEADER in metadata:
        where = f"{path}: {HEADER}"
        parts = _split_by_prefix(where, metadata[HEADER])
        return tuple(_check(where, prefix, values) for prefix, values in parts.items())
    if any(module.name.startswith(PEFT) for module in modules):
        beside = path.with_name(BESIDE)
        if not beside.is_file():
            raise ValueError(f"{path}: PEFT keeps the scale in {BESIDE}; put that file beside this one")
        return (_check(str(beside), PEFT, read_object(beside)),)
    return ()


def _split_by_prefix(where: str, text: str) -> dict[str, dict[str, Any]]:
    """Split diffusers' metadata by component; a lone model's has no prefix."""
    result: dict[str, dict[str, Any]] = {}
    for key, value in loads_object(text, where).items():
        prefix, dot, name = key.rpartition(".")
        result.setdefault(prefix + dot, {})[name] = value
    return result


def _check(where: str, prefix: str, values: Mapping[str, Any]) -> PeftSettings:
    kind, start = str(values.get("peft_type") or "LORA").rpartition(".")[2], values.get("init_lora_weights")
    if kind != "LORA":
        raise ValueError(f"{where}: peft_type={kind}: only plain LoRA is fused, merge it with PEFT")
    if start not in HARMLESS_STARTS:
        raise ValueError(f"{where}: init_lora_weights={start!r} changes the base weights; merge it with PEFT")
    for key in [key for key in values if key not in INERT | READ and values[key]]:
        raise ValueError(f"{where}: {key}={values[key]!r} is not plain LoRA; merge it with PEFT")
    for key in ("r", "lora_alpha"):
        require(_is_positive(values.get(key)), f"{where}: {key}", values.get(key), "must be a positive number")
    for key in ("rank_pattern", "alpha_pattern"):
        found = values.get(key) or {}
        is_right = isinstance(found, Mapping) and all(map(_is_positive, found.values()))
        require(is_right, f"{where}: {key}", found, "must have a positive number for each pattern")
    return PeftSettings(where=where, prefix=prefix, values=values)


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def find_scale(path: Path, module: Module, settings: Sequence[PeftSettings]) -> tuple[float, str]:
    """Return the factor of a module's change, and where it comes from in words.

    Raises:
        ValueError: Two places contradict each other, or the settings contradict the shapes; names the module.
    """
    found: dict[str, float] = {}
    if Role.ALPHA in module.tensors:
        found["the alpha of each module"] = _read_alpha(path, module) / module.rank
    if settings:
        own = next((each for each in settings if module.name.startswith(each.prefix)), None)
        if own is None:
            raise ValueError(f"{settings[0].where} has no settings for {module.name}")
        found[own.where.removeprefix(f"{path}: ")] = _peft_scale(module, own)
    if len({np.float32(value) for value in found.values()}) > 1:
        said = " and ".join(f"{value:g} by {where}" for where, value in found.items())
        raise ValueError(f"{path}: {module.name} is scaled by {said}")
    return next(((value, where) for where, value in found.items()), (1.0, NOWHERE))


def _read_alpha(path: Path, module: Module) -> float:
    tensor = module.tensors[Role.ALPHA]
    if math.prod(tensor.shape) != 1:
        raise ValueError(f"{path}: {module.name}.alpha has shape {tensor.shape}, expected one number")
    alpha = float(np.asarray(tensor.load()).astype(np.float32).reshape(()))
    require(_is_positive(alpha), f"{path}: {module.name}.alpha", alpha, "must be a positive number")
    return alpha


def _peft_scale(module: Module, settings: PeftSettings) -> float:
    name = module.name.removeprefix(settings.prefix)
    rank = _match(settings, "rank_pattern", name, "r")
    alpha = _match(settings, "alpha_pattern", name, "lora_alpha")
    if rank != module.rank:
        raise ValueError(f"{settings.where} says rank {rank:g} for {module.name}, which has rank {module.rank}")
    return alpha / (math.sqrt(rank) if settings.values.get("use_rslora") else rank)


def _match(settings: PeftSettings, key: str, name: str, default: str) -> float:
    """Return the value of the first pattern that a module's name fits, whole or from a dot on, as PEFT does."""
    for pattern, value in (settings.values.get(key) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return float(value)
        except re.error:
            raise ValueError(f"{settings.where}: {key} has {pattern!r}, no regular expression") from None
    return float(settings.values[default])
