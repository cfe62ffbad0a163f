"""A Gemma text model in one file, without the folder of transformers: as ComfyUI's users have it, and ltx-core's.

| who writes it | keys | config | tokenizer, in bytes |
|---|---|---|---|
| ComfyUI, Gemma 3 | `model.`, the vision tower as `vision_model.` | none | `spiece_model` |
| ltx-core, Gemma 3 | `language_model.model.` or transformers' | `gemma_config` in the header | `tokenizer_json` |
| ltx-core, Gemma 4 | `model.`, the text projection beside it (LTX-2.5) | the same | the same |

Without a config only Gemma 3 12B is known, by its shapes: the window, the rotary periods and the scale of queries are
in no tensor. The text projection in LTX-2.5's file is of the connectors: see text_projection.py.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from omniforcing_jax.strict_json import loads_object
from omniforcing_jax.text.gemma_config import GEMMA_3_12B, GemmaConfig
from omniforcing_jax.text.tokenizer import FILE, SENTENCEPIECE, what_is_missing

from .component import HUGGING_FACE, LTX2_TEXT
from .formats import gemma
from .lazy_tensor import LazyTensor
from .registry import find_table
from .source_component import SourceComponent

CONFIG = "gemma_config"
SCALE = "layers.0.layer_scalar"  # of Gemma 4
TABLE, NORM = (
    "embed_tokens.weight",
    "layers.0.pre_feedforward_layernorm.weight",
)  # the second is Gemma's since version 2
BODY = re.compile(r"(?:embed_tokens|norm|layers)\..+")
UNUSED = re.compile(r"(?:.*?\.)?((?:vision_tower|vision_model|multi_modal_projector)\..+|lm_head\.weight)")
TOKENIZERS = {"tokenizer_json": FILE, "spiece_model": SENTENCEPIECE}
ASSETS = "hf_asset__"  # before the name of a file
ASSET = re.compile(rf"{ASSETS}([\w.-]+\.(?:json|model|txt|jinja))")
RESERVED = ("config.json", "source.json")  # names that a converted component's own files have


def take_text_model(
    path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]
) -> tuple[SourceComponent | None, Mapping[str, LazyTensor]]:
    """Take the text model out of a file.

    Args:
        path: The file, for messages.
        tensors: All of them, by key; none in float8.
        metadata: Of the header.

    Returns:
        The text model, if there is one, and the tensors that are not its own.

    Raises:
        ValueError: It is no Gemma 3 or 4, or its config is damaged, or is not there and cannot be read off the shapes.
    """
    nestings = [key.removesuffix(TABLE) for key in tensors if key == TABLE or key.endswith(f".{TABLE}")]
    if not nestings:
        return None, tensors
    if len(nestings) > 1:
        raise ValueError(f"{path}: has {len(nestings)} text models, {', '.join(f'{each}{TABLE}' for each in nestings)}")
    nesting = nestings[0]
    if nesting + NORM not in tensors:
        raise ValueError(f"{path}: is a text model other than Gemma 3 or 4: missing {nesting}{NORM}")
    is_newer = nesting + SCALE in tensors
    if is_newer and CONFIG not in metadata:
        rule = "LTX-2.5's own file has it; bring that, or Gemma's folder with its config.json"
        raise ValueError(f"{path}: is a Gemma 4 text model without {CONFIG} in its header; {rule}")
    files = {name: tensor for key, tensor in tensors.items() if (name := _name_file(key)) is not None}
    plain = {key: each for key, each in tensors.items() if _name_file(key) is None}
    naming = _name(nesting, plain, is_newer)
    spell = _spell_newer if is_newer else _spell
    spelled = {key: full for key in plain if (full := spell(key, nesting, naming)) is not None}
    own = {full: plain[key] for key, full in spelled.items()}
    lacking = what_is_missing(files)
    source = SourceComponent(
        name="text",
        format=f"Gemma {4 if is_newer else 3} in one file",
        naming=naming,
        where=str(path),
        tensors=own,
        component=find_table("text", naming),
        config=None,
        metadata=metadata if naming == LTX2_TEXT else {},
        notes=() if lacking is None else (f"no prompt can be read: {lacking}",),
        extracts={name: _check_bytes(path, name, tensor) for name, tensor in files.items()},
    )
    others = {key: tensor for key, tensor in plain.items() if key not in spelled}
    return _with_config(source, metadata), others


def _name_file(key: str) -> str | None:
    """Return the name of the file whose bytes a tensor is."""
    name = key.rpartition(".")[2]
    asset = ASSET.fullmatch(key)
    return TOKENIZERS.get(name) or (asset[1] if asset and asset[1] not in RESERVED else None)


def _name(nesting: str, keys: Iterable[str], is_newer: bool) -> str:
    """Return the naming that fits the keys best."""
    naming = next((name for name, prefix in gemma.PREFIXES.items() if prefix == nesting), None)
    if is_newer:
        return LTX2_TEXT if naming in (None, gemma.TEXT_ONLY) else naming
    is_multimodal = any(UNUSED.fullmatch(key) for key in keys)
    return HUGGING_FACE if naming is None or (naming == gemma.TEXT_ONLY and is_multimodal) else naming


def _check_bytes(path: Path, name: str, tensor: LazyTensor) -> LazyTensor:
    if tensor.dtype not in (np.uint8, np.int8) or len(tensor.shape) != 1:
        raise ValueError(f"{path}: its {name} is {tensor.dtype} of shape {tensor.shape}, expected a row of bytes")
    return tensor


def _spell(key: str, nesting: str, naming: str) -> str | None:
    """Spell a key as files of a naming have it; None for a key of another component."""
    if key.startswith(nesting) and BODY.fullmatch(key.removeprefix(nesting)):
        return gemma.PREFIXES[naming] + key.removeprefix(nesting)
    if (found := UNUSED.fullmatch(key)) is None:
        return None
    body = f"vision_tower.{found[1]}" if found[1].startswith("vision_model.") else found[1]
    if body == "lm_head.weight":
        return f"language_model.{body}" if naming == HUGGING_FACE else body
    return f"model.{body}" if naming == gemma.CURRENT else body


def _spell_newer(key: str, nesting: str, naming: str) -> str | None:
    """Do the same for Gemma 4, whose other parts keep the names that they have."""
    if key.startswith(nesting) and BODY.fullmatch(key.removeprefix(nesting)):
        return gemma.PREFIXES[naming] + key.removeprefix(nesting)
    return key if gemma.COMPONENT.namings[naming].is_passed(key) else None


def _with_config(source: SourceComponent, metadata: Mapping[str, str]) -> SourceComponent:
    """Read the header's config, or tell the network by its shapes."""
    if source.component is None:
        return source
    if CONFIG not in metadata:
        config, note = _recognise(source), "has no config; its shapes are Gemma 3 12B's, whose config is taken"
        return dataclasses.replace(source, config=config, notes=(*source.notes, note))
    values = loads_object(metadata[CONFIG], f"{source.where}: {CONFIG} in the header")
    try:
        config = source.component.namings[source.naming].table.read(values)
    except ValueError as error:
        raise ValueError(f"{source.where}: {CONFIG} in the header: {error}") from None
    return dataclasses.replace(source, config=config, model_config=values)


def _recognise(source: SourceComponent) -> GemmaConfig:
    """Return the config of Gemma 3 12B for its shapes; the vocabulary is the table's."""
    prefix = gemma.PREFIXES[source.naming]
    shapes = {key.removeprefix(prefix): tensor.shape for key, tensor in source.tensors.items()}
    rows = _row_counts(source.where, shapes)
    found = {
        "width": shapes[TABLE][1] if len(shapes[TABLE]) == 2 else 0,
        "head_size": rows["self_attn.q_norm"],
        "heads": rows["self_attn.q_proj"] / max(1, rows["self_attn.q_norm"]),
        "kv_heads": rows["self_attn.k_proj"] / max(1, rows["self_attn.q_norm"]),
        "mlp_width": rows["mlp.gate_proj"],
        "layers": 1 + max(int(match[1]) for key in shapes if (match := re.match(r"layers\.(\d{1,4})\.", key))),
    }
    wrong = [f"{name} {value:g}" for name, value in found.items() if value != getattr(GEMMA_3_12B, name)]
    if wrong:
        rule = "bring Gemma's folder, with its config.json"
        what = "sliding_window, query_pre_attn_scalar and the rope's thetas and factor are in no tensor"
        raise ValueError(
            f"{source.where}: a text model without config.json, not Gemma 3 12B ({', '.join(wrong)}): {what}; {rule}"
        )
    return dataclasses.replace(GEMMA_3_12B, vocabulary=shapes[TABLE][0])


def _row_counts(where: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the rows of the first layer's tensors that have the network's sizes."""
    rows = {}
    for name in ("self_attn.q_norm", "self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"):
        shape = shapes.get(f"layers.0.{name}.weight", ())
        if not shape:
            raise ValueError(f"{where}: missing layers.0.{name}.weight, which has the text model's sizes")
        rows[name] = shape[0]
    return rows
