"""The keys of a LoRA file, in the spellings of the tools that write them: what each tensor is, and of which module.

| written by | down and up | beside them |
|---|---|---|
| diffusers, PEFT, LTX-2's trainer, ai-toolkit | `X.lora_A.weight`, `X.lora_B.weight` | `X.lora_B.bias` |
| kohya, musubi, LyCORIS, ComfyUI | `X.lora_down.weight`, `X.lora_up.weight` | `X.alpha`, `X.diff`, `X.diff_b` |

Adapters of other kinds change a matrix in other ways. They are refused by their names.

Source: peft@0.21.2:tuners/lora/layer.py; lycoris-lora@4.1.3:modules/locon.py.
"""

import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from omniforcing_jax.io.tensor_file import open_tensors

from ..finite import FLOATS, is_weight_type
from ..lazy_tensor import LazyTensor, list_tensors
from ..tensor_folder import list_files
from ..torch_checkpoint import PICKLES


class Role(enum.Enum):
    """What a tensor of a LoRA file is to its module; the value is how its key ends."""

    DOWN = r"lora_A(?:\.default)?\.weight|lora_down\.weight|lora\.down\.weight|lora_linear_layer\.down\.weight"
    UP = r"lora_B(?:\.default)?\.weight|lora_up\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight"
    UP_BIAS = r"lora_B(?:\.default)?\.bias"
    ALPHA = r"alpha"
    DIFF = r"diff|w_norm"
    DIFF_BIAS = r"diff_b|b_norm"


OTHERS = {  # kinds of adapters that are no plain LoRA, and how their keys end
    "DoRA": r"dora_scale|lora_magnitude_vector(?:\.\w+)*|initial_norm",
    "LoHa": r"hada_\w+",
    "LoKr": r"lokr_\w+",
    "OFT": r"(?:oft|boft)_\w+(?:\.\w+)?|\w*coft\w*_metadata|scaled_oft_metadata",
    "GLoRA": r"[ab][12]\.weight",
    "VeRA": r"vera_\w+(?:\.\w+)?",
    "IA3": r"ia3_\w+|on_input",
    "Tucker LoCon": r"lora_mid\.weight",
    "embedding LoRA": r"lora_embedding_[AB]",
    "ComfyUI replacement": r"set_weight|reshape_weight",
}
ENDINGS = {role: re.compile(rf"(.+?)\.(?:{role.value})") for role in Role}
REFUSED = {kind: re.compile(rf"(?:.+\.)?(?:{ending})") for kind, ending in OTHERS.items()}


@dataclass(frozen=True, kw_only=True)
class Module:
    """The tensors of one module of a LoRA file.

    Attributes:
        name: The module, as the file spells it, with its prefixes.
        tensors: Its tensors by role.
    """

    name: str
    tensors: Mapping[Role, LazyTensor]

    @property
    def rank(self) -> int:
        """Rows of the first factor."""
        return self.tensors[Role.DOWN].shape[0]


def is_lora(keys: Iterable[str]) -> bool:
    """Whether keys are those of an adapter, plain or not, and of no checkpoint."""
    return any(
        re.search(r"\.lora_|lora_down|\.lora\.|\.dora_scale|\.hada_w|\.lokr_w|\.diff(_b)?$", key) for key in keys
    )


def find_file(path: Path) -> Path:
    """Return the LoRA in a folder that PEFT or diffusers wrote; a file is itself.

    Raises:
        ValueError: The folder has no safetensors file, or more than one; lists them.
    """
    if not path.is_dir():
        return path
    files = list_files(path, "*.safetensors")
    if len(files) != 1:
        raise ValueError(f"{path}: has {len(files)} safetensors files ({_join(files)}); give the LoRA itself")
    return files[0]


def _join(files: Iterable[Path]) -> str:
    return ", ".join(file.name for file in files) or "none"


def read_modules(path: Path) -> tuple[list[Module], dict[str, str]]:
    """List the modules of a LoRA file, and the metadata of its header.

    Raises:
        ValueError: The file is damaged or of another kind, a tensor is given twice or missing, or ranks differ; names
            file and key.
    """
    if path.suffix in PICKLES:
        rule = "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'lora.safetensors') writes one"
        raise ValueError(f"{path}: is a file of PyTorch, expected safetensors; {rule}")
    file = open_tensors(path)
    if not file.entries:
        raise ValueError(f"{path}: has no tensors")
    _refuse_other_kinds(path, file.entries)
    found: dict[str, dict[Role, LazyTensor]] = {}
    for key, tensor in list_tensors(file).items():
        name, role = _split(path, key)
        tensors = found.setdefault(name, {})
        if role in tensors:
            raise ValueError(f"{path}: {key} is given twice")
        if not is_weight_type(tensor.dtype) and role is not Role.ALPHA:
            raise ValueError(f"{path}: {key} is {tensor.dtype}, expected one of {', '.join(map(str, FLOATS))}")
        tensors[role] = tensor
    return [_check(path, Module(name=name, tensors=tensors)) for name, tensors in found.items()], dict(file.metadata)


def _refuse_other_kinds(path: Path, keys: Iterable[str]) -> None:
    for key in keys:
        if kind := next((kind for kind, ending in REFUSED.items() if ending.fullmatch(key)), None):
            rule = "only plain LoRA is fused, merge it with its own tool"
            raise ValueError(f"{path}: {key} is of a {kind} adapter; {rule}")


def _split(path: Path, key: str) -> tuple[str, Role]:
    """Split a key into module and role."""
    for role, ending in ENDINGS.items():
        if found := ending.fullmatch(key):
            return found[1], role
    raise ValueError(f"{path}: unknown {key}, not a LoRA's")


def _check(path: Path, module: Module) -> Module:
    """Check that both factors are there and fit; factors of 1 x 1 convolutions become matrices."""
    tensors, name = dict(module.tensors), module.name
    down, up = tensors.get(Role.DOWN), tensors.get(Role.UP)
    if down is None and up is None:
        if lonely := [role for role in (Role.ALPHA, Role.UP_BIAS) if role in tensors]:
            raise ValueError(f"{path}: {name} has {lonely[0].name.lower()}, but missing {name}.lora_A.weight")
        return module
    if down is None or up is None:
        raise ValueError(f"{path}: missing {name}.{'lora_A' if down is None else 'lora_B'}.weight")
    down, up = _as_matrix(down), _as_matrix(up)
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
        raise ValueError(
            f"{path}: {name} has lora_A.weight {down.shape} and lora_B.weight {up.shape}, "
            "expected [rank, in] and [out, rank]"
        )
    return dataclasses.replace(module, tensors=tensors | {Role.DOWN: down, Role.UP: up})


def _as_matrix(tensor: LazyTensor) -> LazyTensor:
    """Drop the axes of a 1 x 1 kernel."""
    shape = tensor.shape
    if len(shape) <= 2 or set(shape[2:]) != {1}:
        return tensor
    return tensor.map(lambda values: values.reshape(shape[:2]), shape[:2])
