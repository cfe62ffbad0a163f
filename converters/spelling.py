"""Keys of checkpoints in LTX-2's naming, whatever they are nested in, spelled as in LTX-2's single file.

Trainers save bare keys, ComfyUI has `diffusion_model.`, `first_stage_model.` or nothing before them, and a component
may be alone in a file. Each is found by a tensor that only it has; what is before that tensor's name is the nesting.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .formats import audio_vae, connectors, transformer, video_vae, vocoder
from .lazy_tensor import LazyTensor
from .registry import find_owner

LANDMARK = "audio_patchify_proj.weight"  # every transformer has it, and no other key ends like this
CODEC = re.compile(r"(|.*\.)(?:en|de)coder\.conv_in\.conv\.weight")
CONNECTORS = re.compile(r"(?:.*\.)?((?:video|audio)_embeddings_connector\..+)")
PROJECTION = re.compile(r"(?:.*\.)?text_embedding_projection\.(.+)")
VOCODER = re.compile(r"(|.*?\.)((?:bwe_generator\.)?conv_pre\.weight)")
BODIES = {  # how keys go on behind a component's nesting
    video_vae.PREFIX: re.compile(r"(?:encoder|decoder|per_channel_statistics)\..+"),
    audio_vae.PREFIX: re.compile(r"(?:encoder|decoder|per_channel_statistics)\..+"),
    vocoder.PREFIX: re.compile(r"(?:conv_pre|conv_post|ups|resblocks|act_post|vocoder|bwe_generator|mel_stft)\..+"),
    transformer.PREFIX: re.compile(r".+"),
}


def spell_keys(path: Path, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
    """Spell all keys as LTX-2's single file does.

    Args:
        path: The file or folder, for messages.
        tensors: All of them, by key.

    Raises:
        ValueError: A component or a key is given twice; names it.
    """
    nestings = _find_nestings(path, tensors)
    result: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        full = _spell(key, nestings)
        if full in result:
            raise ValueError(f"{path}: {full} is given twice, with and without a prefix")
        result[full] = tensor
    return result


def _find_nestings(path: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Return what is before the keys of each component, by the component's published prefix."""
    marks: dict[str, dict[str, str]] = {prefix: {} for prefix in BODIES}
    for key, tensor in tensors.items():
        if key == LANDMARK or key.endswith(f".{LANDMARK}"):
            marks[transformer.PREFIX][key.removesuffix(LANDMARK)] = key
        elif (found := CODEC.fullmatch(key)) and len(tensor.shape) in (4, 5):
            marks[video_vae.PREFIX if len(tensor.shape) == 5 else audio_vae.PREFIX][found[1]] = key
    marks[vocoder.PREFIX] = _find_vocoders(tensors)
    for found in marks.values():
        if len(found) > 1:
            nesting, key = next(iter(found.items()))
            raise ValueError(f"{path}: {key.removeprefix(nesting)} is given twice: {', '.join(found.values())}")
    return {prefix: next(iter(found)) for prefix, found in marks.items() if found}


def _find_vocoders(keys: Iterable[str]) -> dict[str, str]:
    """Return the nestings of vocoders; in LTX-2.3's, two generators are in one."""
    found = {match[1]: key for key in keys if (match := VOCODER.fullmatch(key))}
    pairs = {nesting: key for nesting, key in found.items() if "bwe_generator" in key}
    return pairs or found


def _spell(key: str, nestings: Mapping[str, str]) -> str:
    if (found := CONNECTORS.fullmatch(key)) is not None:
        return connectors.NETWORK + found[1]
    if (found := PROJECTION.fullmatch(key)) is not None:
        is_bare = found[1] in ("weight", "bias")  # as ComfyUI has it in memory
        return f"{connectors.PROJECTION}{'aggregate_embed.' if is_bare else ''}{found[1]}"
    for prefix, nesting in sorted(nestings.items(), key=lambda each: -len(each[1])):
        body = key.removeprefix(nesting)
        is_own = key.startswith(nesting) and BODIES[prefix].fullmatch(body)
        if is_own and (prefix != transformer.PREFIX or find_owner(key) is None):
            return prefix + body
    return key
