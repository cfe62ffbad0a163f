"""Everything between a prompt and its pixels as one value, and the weights folder that holds it.

A `Pipeline` is the network, the text encoder and the codecs with their configs. Here it is declared, checked against
itself, drawn at random, saved and loaded; nothing is generated. A text encoder as large as Gemma is no part of the
value: it stays on disk (`find_encoder`), and what it gives goes in as contexts. Source: DESIGN 6.

    config.json   {"format": 1, "name": ..., "resolution": [H, W], "sampler": {...}, "components": {...}}

`sampler` makes the network a causal student; without it it is a bidirectional teacher. `components` names, relative to
the folder, the components that lie elsewhere, so that a teacher and its student can share their codecs.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.typing import VariableDict
from jaxtyping import Array, DTypeLike, Float, PyTree

from omniforcing_jax import layout, weights
from omniforcing_jax import mesh as meshes
from omniforcing_jax.codecs.audio_vae import AudioVAE, AudioVAEConfig
from omniforcing_jax.codecs.video_config import VideoVAEConfig
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.codecs.vocoder import Vocoder, VocoderConfig
from omniforcing_jax.config import ModelConfig, SamplerConfig, require
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.nn import spec
from omniforcing_jax.tensor_file import open_tensors
from omniforcing_jax.text.connector import ConnectorsConfig
from omniforcing_jax.text.encoder import Encoder, EncoderConfig
from omniforcing_jax.text.gemma import GemmaConfig
from omniforcing_jax.text.words import Words, WordsConfig, init_words

FORMAT = 1
KEYS = {"format", "name", "resolution", "sampler", "components"}
SMALL = 0.02  # standard deviation of random biases and tables
INIT_SIDE = 8  # latents per side while a codec is initialised: enough for every padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """All configs of a weights folder, checked against each other.

    Attributes:
        name: What these weights are called in messages.
        model: The network.
        sampler: What makes the network a causal student; None for a bidirectional teacher.
        resolution: Height and width, in pixels, that the weights were trained at.
        video_vae, audio_vae, vocoder: The codecs.
        words: The text encoder of a small world; None where contexts come from elsewhere.
        encoder: Gemma and the connectors, where the folder has them; then there are no words.
    """

    name: str
    model: ModelConfig
    sampler: SamplerConfig | None
    resolution: tuple[int, int]
    video_vae: VideoVAEConfig
    audio_vae: AudioVAEConfig
    vocoder: VocoderConfig
    words: WordsConfig | None
    encoder: EncoderConfig | None = None

    def __post_init__(self) -> None:
        """Refuse components that do not fit together."""
        model, video, audio, vocoder = self.model, self.video_vae, self.audio_vae, self.vocoder
        _same("transformer.video.latent_channels", model.video.latent_channels, "video_vae", video.latent_channels)
        _same("transformer.audio.latent_channels", model.audio.latent_channels, "audio_vae", audio.latent_size)
        _same("transformer.spatial_compression", model.spatial_compression, "video_vae", video.spatial_compression)
        _same("video_vae.temporal_compression", video.temporal_compression, "layout", layout.PIXELS_PER_LATENT)
        _same("audio_vae.rows_per_latent", audio.rows_per_latent, "layout", layout.ROWS_PER_LATENT)
        _same("vocoder.mel_bins", vocoder.mel_bins, "audio_vae", audio.mel_bins)
        _same("vocoder.row_rate", vocoder.row_rate, "layout", layout.ROW_RATE)
        if self.words is not None:
            _same("text.channels", self.words.channels, "transformer.caption_channels", model.caption_channels)
        if self.encoder is not None:
            connectors, widths = self.encoder.connectors, self.context_widths
            _same("connectors.video.width", connectors.video.width, "transformer's video context", widths[0])
            _same("connectors.audio.width", connectors.audio.width, "transformer's audio context", widths[1])
            require(self.words is None, "words", self.words, "must be None beside an encoder")
        self.grid(*self.resolution)

    @property
    def context_widths(self) -> tuple[int, int]:
        """Channels of the text contexts of video and audio."""
        captions = self.model.caption_channels
        return captions or self.model.video.width, captions or self.model.audio.width

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return latent rows and columns of a picture.

        Raises:
            ValueError: if the codec cannot divide it.
        """
        pixels = self.video_vae.spatial_compression
        for name, size in (("height", height), ("width", width)):
            require(size > 0 and size % pixels == 0, name, size, f"must be a positive multiple of {pixels} pixels")
        return height // pixels, width // pixels


def _same(field: str, value: object, other: str, wanted: object) -> None:
    require(value == wanted, field, value, f"{other} has {wanted}")


@struct.dataclass
class Codecs:
    """Variables of the codecs, ready for `apply`."""

    video: VariableDict
    audio: VariableDict
    vocoder: VariableDict
    video_config: VideoVAEConfig = struct.field(pytree_node=False)
    audio_config: AudioVAEConfig = struct.field(pytree_node=False)
    vocoder_config: VocoderConfig = struct.field(pytree_node=False)


@struct.dataclass
class Pipeline:
    """The values that belong to a `PipelineConfig`: arrays, shapes (`abstract`), or whatever else has its tree."""

    transformer: Transformer
    codecs: Codecs
    words: Words | None
    config: PipelineConfig = struct.field(pytree_node=False)

    @property
    def parts(self) -> dict[str, tuple[PyTree, Any]]:
        """Values and config of each component, by its name on disk."""
        config, codecs = self.config, self.codecs
        named = {
            "transformer": (self.transformer, config.model),
            "video_vae": (codecs.video, config.video_vae),
            "audio_vae": (codecs.audio, config.audio_vae),
            "vocoder": (codecs.vocoder, config.vocoder),
        }
        return named if config.words is None else {**named, "text": (self.words, config.words)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells these weights, in the type that they are loaded in, from all others."""
        return weights.fingerprint({name: values for name, (values, _) in self.parts.items()})


def describe(config: PipelineConfig) -> dict[str, Any]:
    """Return the configs of all components as JSON values, by their names on disk."""
    return {name: _to_dict(part) for name, (_, part) in abstract_pipeline(config).parts.items()}


def assemble(config: PipelineConfig, parts: Mapping[str, PyTree]) -> Pipeline:
    """Build a pipeline from the values of its components, by their names on disk."""
    codecs = Codecs(
        video=parts["video_vae"],
        audio=parts["audio_vae"],
        vocoder=parts["vocoder"],
        video_config=config.video_vae,
        audio_config=config.audio_vae,
        vocoder_config=config.vocoder,
    )
    return Pipeline(transformer=parts["transformer"], codecs=codecs, words=parts.get("text"), config=config)


@functools.cache
def abstract_pipeline(config: PipelineConfig, dtype: DTypeLike = jnp.float32) -> Pipeline:
    """Return shapes and types: network and picture in `dtype`, statistics, sound and words in float32."""
    video = jax.eval_shape(lambda: _init_video(config.video_vae, jax.random.key(0)))
    parts = {
        "transformer": spec.abstract(transformer_spec(config.model), dtype),
        "video_vae": {**video, "params": _in_type(video["params"], dtype)},
        "audio_vae": jax.eval_shape(lambda: _init_audio(config.audio_vae, jax.random.key(0))),
        "vocoder": jax.eval_shape(lambda: _init_vocoder(config.vocoder, jax.random.key(0))),
    }
    if config.words is not None:
        parts["text"] = _abstract_words(config.words)
    return assemble(config, parts)


def random_pipeline(config: PipelineConfig, seed: int, dtype: DTypeLike = jnp.float32) -> Pipeline:
    """Draw weights for measurements, on the device and leaf by leaf: no second copy of a large network is ever there.

    Matrices and kernels keep the scale of what they are applied to, norms and standard deviations are about 1, the rest
    is small. Trainings start from their own initial values, not from these.
    """
    shapes = abstract_pipeline(config, dtype)
    leaves, tree = jax.tree.flatten(shapes)
    names = list(weights.name_leaves(shapes))
    # Neither good nor portable random numbers, but a third of the time to compile: there is a program per shape.
    keys = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"), len(leaves))
    drawn = [
        _draw(k, *map(jnp.float32, _moments(name, x.shape)), x.shape, x.dtype)
        for name, x, k in zip(names, leaves, keys, strict=True)
    ]
    return tree.unflatten(drawn)


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Choose mean and standard deviation of a random leaf by its name."""
    last = name.rpartition("/")[2]
    if last.endswith(("norm", "std")):
        return 1.0, 0.1
    inputs = {"w": shape[-1:], "kernel": shape[:-1]}.get(last)
    return 0.0, SMALL if inputs is None else 1 / math.sqrt(math.prod(inputs))


@partial(jax.jit, static_argnums=(3, 4))
def _draw(key: Array, mean: Float[Array, ""], std: Float[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    spread = math.sqrt(3) * std
    return jax.random.uniform(key, shape, jnp.float32, mean - spread, mean + spread).astype(dtype)


def _init_video(config: VideoVAEConfig, key: Array) -> VariableDict:
    side = INIT_SIDE * config.spatial_compression
    return VideoVAE(config).init(key, jnp.zeros((1, 1 + config.temporal_compression, side, side, 3)))


def _init_audio(config: AudioVAEConfig, key: Array) -> VariableDict:
    return AudioVAE(config).init(key, jnp.zeros((1, config.mel_rows(2), config.mel_bins, config.audio_channels)))


def _init_vocoder(config: VocoderConfig, key: Array) -> VariableDict:
    return Vocoder(config).init(key, jnp.zeros((1, 5, config.mel_bins, config.audio_channels)))


def _in_type(tree: PyTree, dtype: DTypeLike) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def save_pipeline(
    folder: weights.Folder,
    pipeline: Pipeline,
    *,
    shared: Mapping[str, str] | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Write a weights folder.

    Args:
        folder: Made if absent.
        pipeline: What to write.
        shared: Components that are not written, because they already lie at these paths relative to the folder; Gemma
            and connectors are never written, only shared.
        dtype: Type on disk; None keeps each leaf's own.
    """
    config, shared = pipeline.config, dict(shared or {})
    for name, (values, part) in pipeline.parts.items():
        if name not in shared:
            weights.save_component(folder, name, values, _to_dict(part), dtype)
    top = {"format": FORMAT, "name": config.name, "resolution": list(config.resolution)}
    if config.sampler is not None:
        top["sampler"] = config.sampler.to_dict()
    if shared:
        top["components"] = shared
    weights.write_config(folder, top)


def read_pipeline_config(folder: weights.Folder) -> PipelineConfig:
    """Read and check all configs of a weights folder, without opening any weights.

    Raises:
        ValueError: in one line, if a config is missing, damaged, has unknown keys or contradicts another.
    """
    top, places = _read_top(folder)
    where = str(folder)

    def read(name: str, kind: Any) -> Any:
        return kind(weights.read_config(*places[name]))

    try:
        text = _read_text(places)
        return PipelineConfig(
            name=str(top.get("name", Path(folder).name)),
            model=read("transformer", ModelConfig.from_dict),
            sampler=SamplerConfig.from_dict(top["sampler"]) if "sampler" in top else None,
            resolution=_two_numbers(top.get("resolution")),
            video_vae=read("video_vae", VideoVAEConfig.from_dict),
            audio_vae=read("audio_vae", AudioVAEConfig.from_dict),
            vocoder=read("vocoder", VocoderConfig.from_dict),
            words=text if isinstance(text, WordsConfig) else None,
            encoder=text.config if isinstance(text, Encoder) else None,
        )
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def find_text(folder: weights.Folder) -> WordsConfig | Encoder | None:
    """Read which text encoder a weights folder has, which needs nothing else for this; None if it has none.

    Raises:
        ValueError: in one line, if a config is missing, damaged or contradicts another.
    """
    _, places = _read_top(folder)
    try:
        return _read_text(places)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(folder)) else f"{folder}: {error}") from None


def load_words(folder: weights.Folder, config: WordsConfig) -> Words:
    """Load the word vectors of a weights folder, and nothing else.

    Raises:
        ValueError: as `load_pipeline`.
    """
    _, places = _read_top(folder)
    return weights.load_component(*places["text"], _abstract_words(config))


def _abstract_words(config: WordsConfig) -> Any:
    return jax.eval_shape(lambda: init_words(config, jax.random.key(0)))


def _read_text(places: Mapping[str, tuple[Path, str]]) -> WordsConfig | Encoder | None:
    """Read the config of the text encoder: words where the vocabulary is words, else Gemma if it has connectors."""
    if not _is_there(*places["text"]):
        return None
    values = weights.read_config(*places["text"])
    if isinstance(values.get("vocabulary"), list):
        return WordsConfig.from_json(values)
    if not _is_there(*places["connectors"]):
        return None
    connectors = ConnectorsConfig.from_dict(weights.read_config(*places["connectors"]))
    config = EncoderConfig(gemma=GemmaConfig.from_dict(values), connectors=connectors)
    return Encoder(config=config, text=places["text"], connectors=places["connectors"])


def load_pipeline(folder: weights.Folder, config: PipelineConfig, dtype: DTypeLike = jnp.float32) -> Pipeline:
    """Load a weights folder whose configs were read; all names and shapes are checked before any tensor is read.

    With a mesh that is set the network is cut over it and everything else lies whole on each of its devices.

    Raises:
        ValueError: in one line, naming file and keys, if weights are missing, unknown or mis-shaped, or the mesh cannot
            cut the network.
    """
    _, places = _read_top(folder)
    mesh = meshes.mesh_that_is_set()
    if mesh is not None:
        meshes.config_of(mesh).check_network(config.model)
    wanted = {name: tree for name, (tree, _) in abstract_pipeline(config, dtype).parts.items()}
    for name, tree in wanted.items():
        file = open_tensors(Path(*places[name]) / weights.MODEL)
        shapes = {key: tuple(leaf.shape) for key, leaf in weights.name_leaves(tree).items()}
        weights.compare_shapes(file.shapes, shapes, str(file.path))
    if mesh is not None:
        specs = transformer_spec(config.model)
        wanted = {name: meshes.abstract_beside(tree, specs, mesh) for name, tree in wanted.items()}
    return assemble(config, {name: weights.load_component(*places[name], tree) for name, tree in wanted.items()})


def component_places(folder: weights.Folder) -> dict[str, tuple[Path, str]]:
    """Say where each component of a weights folder lies, there or not: folder and name, as `load_component` takes them.

    Raises:
        ValueError: in one line, if there is no such folder or its config is damaged.
    """
    return _read_top(folder)[1]


def _read_top(folder: weights.Folder) -> tuple[dict[str, Any], dict[str, tuple[Path, str]]]:
    """Read the top-level config; also returns folder and name of every component."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such weights folder")
    top = weights.read_config(folder)
    if unknown := sorted(set(top) - KEYS):
        raise ValueError(f"{folder / weights.CONFIG}: unknown keys {unknown}")
    if top.get("format") != FORMAT:
        raise ValueError(f"{folder / weights.CONFIG}: format={top.get('format')!r}: must be {FORMAT}")
    named = top.get("components", {})
    names = ("transformer", "video_vae", "audio_vae", "vocoder", "text", "connectors")
    if unknown := sorted(set(named) - set(names)):
        raise ValueError(f"{folder / weights.CONFIG}: unknown components {unknown}")
    paths = {name: Path(os.path.normpath(folder / named.get(name, name))) for name in names}
    return top, {name: (path.parent, path.name) for name, path in paths.items()}


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name).is_dir()


def _two_numbers(value: Any) -> tuple[int, int]:
    is_size = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    require(is_size, "resolution", value, "must be [height, width] in pixels")
    return value[0], value[1]


def _to_dict(config: Any) -> dict[str, Any]:
    return config.to_json() if isinstance(config, WordsConfig) else config.to_dict()
