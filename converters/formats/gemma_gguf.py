"""Gemma 3 as llama.cpp converts it to GGUF: other names, 1 added to every norm, the config in fields.

Fields lack the scale of queries, the rotary base of sliding layers and the pattern of layers. llama.cpp takes them from
its own code, and so does this module.

Source: gguf@0.19.0:constants.py; gguf@0.19.0:tensor_mapping.py; transformers@5.23.0:modeling_gguf_pytorch_utils.py.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from omniforcing_jax.io.extras import need

from ..gguf_file import GgufFile
from ..lazy_tensor import LazyTensor

ARCHITECTURE = "gemma3"
TABLE, HEAD = "token_embd.weight", "output.weight"
LAYERS_27B = 62  # the only size whose queries are scaled by width / heads
SIZES = {  # keys of config.json, and their fields
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
}


def read_config(file: GgufFile) -> dict[str, Any]:
    """Put a config.json together.

    Raises:
        ValueError: A field is missing; names it.
    """
    sizes = {key: _field(file, name) for key, name in SIZES.items()}
    if TABLE not in file.tensors:
        raise ValueError(f"{file.path}: missing {TABLE}")
    is_largest = sizes["num_hidden_layers"] == LAYERS_27B
    scale = sizes["hidden_size"] // sizes["num_attention_heads"] if is_largest else sizes["head_dim"]
    factor = file.fields.get(f"{ARCHITECTURE}.rope.scaling.factor", 1.0)
    stretch = {} if factor == 1 else {"rope_scaling": {"rope_type": "linear", "factor": float(factor)}}
    return {
        "model_type": "gemma3_text",
        "vocab_size": file.tensors[TABLE].shape[0],
        **sizes,
        "query_pre_attn_scalar": scale,
        "rms_norm_eps": round(float(_field(file, "attention.layer_norm_rms_epsilon")), 12),
        "rope_theta": float(_field(file, "rope.freq_base")),
        "rope_local_base_freq": float(file.fields.get(f"{ARCHITECTURE}.rope.freq_base_swa", 10_000.0)),
        **stretch,
    }


def _field(file: GgufFile, name: str) -> Any:
    full = f"{ARCHITECTURE}.{name}"
    if type(value := file.fields.get(full)) not in (int, float):
        raise ValueError(f"{file.path}: the field {full} is {value!r}, expected a number")
    return value


def rename_tensors(file: GgufFile, keys: Iterable[str], layers: int) -> dict[str, LazyTensor]:
    """Give tensors the names that transformers has for them, and take the 1 off the norms; unknown names stay."""
    need("gguf", extra="convert")
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.GEMMA3, layers)
    spelled = {names.get_name(key, try_suffixes=(".weight",)): key for key in keys} | {HEAD: "lm_head.weight"}
    return {spelled.get(key, key): _lower_norm(key, tensor) for key, tensor in file.tensors.items()}


def _lower_norm(key: str, tensor: LazyTensor) -> LazyTensor:
    if not key.endswith("norm.weight"):
        return tensor

    def lower(values: np.ndarray) -> np.ndarray:
        return (values.astype(np.float32) - 1).astype(tensor.dtype)

    return tensor.map(lower)
