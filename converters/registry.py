"""Which components there are, whose a key is, and which of them have a table.

A component without a table is known by name and prefix only: its tensors go through untouched.
"""

from converters import audio_vae, connectors, gemma, transformer, video_vae, vocoder
from converters.component import Component

_TABLES = (transformer, connectors, gemma, video_vae, audio_vae, vocoder)
COMPONENTS: dict[str, Component] = {each.COMPONENT.name: each.COMPONENT for each in _TABLES}

# Where an LTX-2 file keeps every component; the longest prefix that fits wins.
PREFIXES = {
    "transformer": ("model.diffusion_model.",),
    "connectors": (
        "model.diffusion_model.video_embeddings_connector.",
        "model.diffusion_model.audio_embeddings_connector.",
        "text_embedding_projection.",
    ),
    "video_vae": ("vae.",),
    "audio_vae": ("audio_vae.",),
    "vocoder": ("vocoder.",),
}
SECTIONS = {"video_vae": "vae", "audio_vae": "audio_vae", "vocoder": "vocoder"}  # of an LTX-2 header

# The `_class_name` in a config.json of diffusers, and the subfolder that it lies in.
CLASSES = {
    "LTX2VideoTransformer3DModel": "transformer",
    "LTX2TextConnectors": "connectors",
    "AutoencoderKLLTX2Video": "video_vae",
    "AutoencoderKLLTX2Audio": "audio_vae",
    "LTX2Vocoder": "vocoder",
    "LTX2VocoderWithBWE": "vocoder",
}
FOLDERS = {"transformer": "transformer", "connectors": "connectors", "vae": "video_vae", "audio_vae": "audio_vae"}
FOLDERS |= {"vocoder": "vocoder", "text_encoder": "text"}
GEMMA = "gemma3"  # how `model_type` begins in a config.json of Hugging Face

NAMES = ("transformer", "connectors", "text", "video_vae", "audio_vae", "vocoder")


def find_owner(key: str) -> str | None:
    """Return the component that a key of an LTX-2 file belongs to; None for a key of nobody's."""
    fits = [(len(prefix), name) for name, all_ in PREFIXES.items() for prefix in all_ if key.startswith(prefix)]
    return max(fits)[1] if fits else None


def find_table(name: str, naming: str) -> Component | None:
    """Return the component, if it has a table for that naming."""
    component = COMPONENTS.get(name)
    return component if component is not None and naming in component.namings else None
