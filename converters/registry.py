"""The components, which of them a key, a class or a folder belongs to, and which of them have a table.

A component without a table is known by its name and prefixes only; its tensors pass through.
"""

from .component import LTX2, Component
from .formats import audio_vae, connectors, gemma, transformer, upsampler, video_vae, vocoder

_TABLES = (transformer, connectors, gemma, video_vae, audio_vae, vocoder)
COMPONENTS: dict[str, Component] = {
    each.name: each for each in (*(table.COMPONENT for table in _TABLES), *upsampler.COMPONENTS)
}
NAMES = tuple(COMPONENTS)
UPSAMPLERS = tuple(each.name for each in upsampler.COMPONENTS)

# Prefixes of each component's keys in an LTX-2 file, and subfolders of a diffusers pipeline.
PREFIXES = {name: each.namings[LTX2].prefixes for name, each in COMPONENTS.items() if LTX2 in each.namings}
FOLDERS = {
    naming.folder: name for name, each in COMPONENTS.items() for naming in each.namings.values() if naming.folder
}
SECTIONS = {"video_vae": "vae", "audio_vae": "audio_vae", "vocoder": "vocoder"}  # of an LTX-2 header
SECTION_OF = SECTIONS | {"transformer": "transformer", "connectors": "transformer"}  # that has a component's config

CLASSES = {  # `_class_name` in diffusers' config.json
    "LTX2VideoTransformer3DModel": "transformer",
    "EchoWMTransformer3DModel": "transformer",
    "LTX2TextConnectors": "connectors",
    "AutoencoderKLLTX2Video": "video_vae",
    "AutoencoderKLLTX2Audio": "audio_vae",
    "LTX2Vocoder": "vocoder",
    "LTX2VocoderWithBWE": "vocoder",
    upsampler.CLASS: upsampler.SPATIAL,  # or the other one, which its config tells
}
GEMMA = "gemma"  # how `model_type` of all its generations begins in Hugging Face's config.json


def find_owner(key: str) -> str | None:
    """Return the component that a key of an LTX-2 file belongs to: the one whose longest prefix fits, or None."""
    fits = [(len(prefix), name) for name, all_ in PREFIXES.items() for prefix in all_ if key.startswith(prefix)]
    return max(fits)[1] if fits else None


def find_table(name: str, naming: str) -> Component | None:
    """Return the component, if it has a table for that naming."""
    component = COMPONENTS.get(name)
    return component if component is not None and naming in component.namings else None
