"""Everything between a prompt and its pixels as one value: network, text encoder and codecs with their configs.

A `Pipeline` is declared here, and its configs are checked against each other. `weights_folder.py` reads and writes it.
A text encoder as large as Gemma is no part of it: it stays on disk (`weights_folder.find_text_encoder`), and its
contexts are inputs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.typing import VariableDict
from jaxtyping import Array, DTypeLike, PyTree

from omniforcing_jax import layout
from omniforcing_jax.codecs.audio_vae import AudioVAE, AudioVAEConfig
from omniforcing_jax.codecs.upsampler import init_upsampler
from omniforcing_jax.codecs.upsampler_config import UpsamplerConfig
from omniforcing_jax.codecs.video_config import VideoVAEConfig
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.codecs.vocoder import Vocoder, VocoderConfig
from omniforcing_jax.config import CrossTimestep, ModelConfig, SamplerConfig
from omniforcing_jax.io import weights
from omniforcing_jax.model.eight_bits import eight_bit_kind, in_eight_bits
from omniforcing_jax.model.lora import detach_loras
from omniforcing_jax.model.transformer import Transformer, list_layers, stack_layers, transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.parallel.sharding import mesh_in_use
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.encoder import EncoderConfig
from omniforcing_jax.text.words import Words, WordsConfig, init_words

INIT_SIDE = 8  # latents per side of the input that a codec is initialised with: enough for every padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """All configs of a weights folder, checked against each other.

    Attributes:
        name: Name of the weights in messages.
        model: The network.
        sampler: Sampling config of a causal student; None for a bidirectional teacher.
        resolution: Height and width, in pixels, that the weights were trained at.
        video_vae: The video codec.
        audio_vae: The audio codec.
        vocoder: Log-mel to sound.
        words: The text encoder of a small world; None if there is none.
        encoder: Gemma and the connectors, if the folder has them; then there are no words.
        upsampler: The upsampler of the picture, if it was asked for; None otherwise, even if the folder has it.

    Raises:
        ValueError: If the configs contradict each other; names both fields.
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
    upsampler: UpsamplerConfig | None = None

    def __post_init__(self) -> None:
        """Check the components against each other."""
        model, video, audio, vocoder = self.model, self.video_vae, self.audio_vae, self.vocoder
        _same("transformer.video.latent_channels", model.video.latent_channels, "video_vae", video.latent_channels)
        _same("transformer.audio.latent_channels", model.audio.latent_channels, "audio_vae", audio.latent_size)
        _same("transformer.spatial_compression", model.spatial_compression, "video_vae", video.spatial_compression)
        _same("video_vae.temporal_compression", video.temporal_compression, "layout", layout.PIXELS_PER_LATENT)
        _same("audio_vae.rows_per_latent", audio.rows_per_latent, "layout", layout.ROWS_PER_LATENT)
        _same("vocoder.mel_bins", vocoder.mel_bins, "audio_vae", audio.mel_bins)
        _same("vocoder.row_rate", vocoder.row_rate, "layout", layout.ROW_RATE)
        if self.sampler is not None and self.sampler.scalar_sigma is not None:
            drives = model.text_needs_sigma or model.cross_timestep is not CrossTimestep.OWN
            rule = "drives nothing: the transformer's text keys need no sigma, and its cross_timestep is 'own'"
            require(drives, "sampler.scalar_sigma", self.sampler.scalar_sigma, rule)
        if self.words is not None:
            _same("text.channels", self.words.channels, "transformer.caption_channels", model.caption_channels)
        if self.encoder is not None:
            connectors, widths = self.encoder.connectors, self.context_widths
            _same("connectors.video.width", connectors.video.width, "transformer's video context", widths[0])
            _same("connectors.audio.width", connectors.audio.width, "transformer's audio context", widths[1])
            require(self.words is None, "words", self.words, "must be None if there is an encoder")
        if self.upsampler is not None:
            _same(
                "spatial_upsampler", self.upsampler.latent_channels, "video_vae.latent_channels", video.latent_channels
            )
            axes, rule = self.upsampler.resampling.value, "must leave time as it is"
            require(not self.upsampler.doubles_time, "spatial_upsampler.resampling", axes, rule)
        self.grid(*self.resolution)

    @property
    def context_widths(self) -> tuple[int, int]:
        """Channels of the text contexts of video and audio."""
        captions = self.model.caption_channels
        return captions or self.model.video.width, captions or self.model.audio.width

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return latent rows and columns of a picture.

        Raises:
            ValueError: If a side is no multiple of the codec's compression.
        """
        pixels = self.video_vae.spatial_compression
        for name, size in (("height", height), ("width", width)):
            require(size > 0 and size % pixels == 0, name, size, f"must be a positive multiple of {pixels} pixels")
        return height // pixels, width // pixels


def with_weights_dtype(config: PipelineConfig, weights_dtype: str | None) -> PipelineConfig:
    """Return the configs of the same weights with the network in eight bits, or unchanged for None.

    Raises:
        ValueError: There is no such type, or the weights are in eight bits of another kind.
    """
    kind = eight_bit_kind(weights_dtype, "weights_dtype")
    return dataclasses.replace(config, model=in_eight_bits(config.model, kind))


def _same(field: str, value: object, other: str, expected: object) -> None:
    require(value == expected, field, value, f"{other} has {expected}")


@struct.dataclass
class Codecs:
    """Variables of the codecs, ready for `apply`."""

    video: VariableDict
    audio: VariableDict
    vocoder: VariableDict
    video_config: VideoVAEConfig = struct.field(pytree_node=False)
    audio_config: AudioVAEConfig = struct.field(pytree_node=False)
    vocoder_config: VocoderConfig = struct.field(pytree_node=False)
    upsampler: VariableDict | None = None
    upsampler_config: UpsamplerConfig | None = struct.field(pytree_node=False, default=None)

    @property
    def upsampling(self) -> tuple[UpsamplerConfig, VariableDict]:
        """Config and variables of the upsampler.

        Raises:
            ValueError: The codecs were loaded without it.
        """
        if self.upsampler_config is None or self.upsampler is None:
            raise ValueError("the codecs were loaded without their upsampler; give load_pipeline(..., upsampler=True)")
        return self.upsampler_config, self.upsampler

    def picture_size(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return height and width, in pixels, of what becomes of so many rows and columns of latents."""
        side, larger = self.video_config.spatial_compression, self.upsampler_config
        rows, columns = grid if larger is None else (larger.enlarge(grid[0]), larger.enlarge(grid[1]))
        return rows * side, columns * side


@struct.dataclass
class Pipeline:
    """The values of a `PipelineConfig`: arrays, or shapes (`abstract_pipeline`)."""

    transformer: Transformer
    codecs: Codecs
    words: Words | None
    config: PipelineConfig = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        kind = "teacher" if self.config.sampler is None else "student"
        leaves = [leaf for leaf in jax.tree.leaves(self.transformer) if hasattr(leaf, "dtype")]
        millions = sum(leaf.size for leaf in leaves) / 1e6
        dtype = leaves[0].dtype if leaves else "no arrays"
        height, width = self.config.resolution
        eight_bits = self.config.model.eight_bits
        types = dtype if eight_bits is None else f"{eight_bits.kind.value} and {dtype}"
        return f"Pipeline({self.config.name!r}, {kind}, {millions:.1f} M parameters, {height}x{width}, {types})"

    @property
    def parts(self) -> dict[str, tuple[PyTree, Any]]:
        """Values and config of each component, by its name on disk."""
        config, codecs = self.config, self.codecs
        named = {
            "transformer": (stack_layers(detach_loras(self.transformer)), config.model),
            "video_vae": (codecs.video, config.video_vae),
            "audio_vae": (codecs.audio, config.audio_vae),
            "vocoder": (codecs.vocoder, config.vocoder),
        }
        if config.upsampler is not None:
            named["spatial_upsampler"] = (codecs.upsampler, config.upsampler)
        return named if config.words is None else {**named, "text": (self.words, config.words)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash that identifies these weights at the dtype they are loaded in."""
        return weights.fingerprint({name: values for name, (values, _) in self.parts.items()})


def with_same_weights(pipeline: Pipeline, transformer: Transformer) -> Pipeline:
    """Replace the network by one of the same weights, such as with LoRAs beside them; a hash that was taken stays."""
    replaced = dataclasses.replace(pipeline, transformer=transformer)
    if "fingerprint" in vars(pipeline):
        vars(replaced)["fingerprint"] = pipeline.fingerprint
    return replaced


def without_upsampler(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline without its upsampler; one that has none is returned as it is."""
    if pipeline.config.upsampler is None:
        return pipeline
    codecs = dataclasses.replace(pipeline.codecs, upsampler=None, upsampler_config=None)
    return dataclasses.replace(pipeline, codecs=codecs, config=dataclasses.replace(pipeline.config, upsampler=None))


def has_list(config: PipelineConfig) -> bool:
    """Whether loaded weights have a list of layers (`transformer.list_layers`): a student's on one GPU.

    CPUs and TPUs scan a stack. On a CPU a list takes a tenth longer, in each block and to compile.
    """
    return config.sampler is not None and mesh_in_use() is None and jax.default_backend() == "gpu"


def cut_rows(name: str, leaf: Array) -> Array | tuple[Array, ...]:
    """Cut a leaf of a transformer that `list_layers` takes next into its rows, if it has one for each layer."""
    return tuple(leaf) if name.startswith("layers/") else leaf


def with_list(config: PipelineConfig, transformer: Transformer) -> Transformer:
    """Return loaded weights in the form that they have in a pipeline."""
    return list_layers(transformer) if has_list(config) else transformer


def component_configs(config: PipelineConfig) -> dict[str, Any]:
    """Return the configs of all components as JSON values, by their names on disk."""
    return {name: to_dict(part) for name, (_, part) in abstract_pipeline(config).parts.items()}


def assemble(config: PipelineConfig, parts: Mapping[str, PyTree]) -> Pipeline:
    """Build a pipeline from the values of its components, by their names on disk."""
    codecs = assemble_codecs(config, parts)
    return Pipeline(transformer=parts["transformer"], codecs=codecs, words=parts.get("text"), config=config)


def assemble_codecs(config: PipelineConfig, parts: Mapping[str, PyTree]) -> Codecs:
    """Build the codecs from the values of their components, by their names on disk."""
    return Codecs(
        video=parts["video_vae"],
        audio=parts["audio_vae"],
        vocoder=parts["vocoder"],
        video_config=config.video_vae,
        audio_config=config.audio_vae,
        vocoder_config=config.vocoder,
        upsampler=parts.get("spatial_upsampler"),
        upsampler_config=config.upsampler,
    )


def abstract_pipeline(config: PipelineConfig, dtype: DTypeLike = jnp.float32) -> Pipeline:
    """Return shapes and types: network and video codec in `dtype`; statistics, audio codecs and words in float32."""
    return _abstract_pipeline(config, jnp.dtype(dtype))  # a name for each type, so that the cache has it once


@functools.cache
def _abstract_pipeline(config: PipelineConfig, dtype: np.dtype) -> Pipeline:
    video = jax.eval_shape(lambda: _init_video(config.video_vae, jax.random.key(0)))
    parts = {
        "transformer": spec.abstract(transformer_spec(config.model), dtype),
        "video_vae": {**video, "params": _in_type(video["params"], dtype)},
        "audio_vae": jax.eval_shape(lambda: _init_audio(config.audio_vae, jax.random.key(0))),
        "vocoder": jax.eval_shape(lambda: _init_vocoder(config.vocoder, jax.random.key(0))),
    }
    if config.words is not None:
        parts["text"] = abstract_words(config.words)
    if config.upsampler is not None:
        parts["spatial_upsampler"] = _in_type(init_upsampler(config.upsampler), dtype)
    return assemble(config, parts)


def _init_video(config: VideoVAEConfig, key: Array) -> VariableDict:
    side = INIT_SIDE * config.spatial_compression
    return VideoVAE(config).init(key, jnp.zeros((1, 1 + config.temporal_compression, side, side, 3)))


def _init_audio(config: AudioVAEConfig, key: Array) -> VariableDict:
    return AudioVAE(config).init(key, jnp.zeros((1, config.mel_rows(2), config.mel_bins, config.audio_channels)))


def _init_vocoder(config: VocoderConfig, key: Array) -> VariableDict:
    return Vocoder(config).init(key, jnp.zeros((1, 5, config.mel_bins, config.audio_channels)))


def _in_type(tree: PyTree, dtype: DTypeLike) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def abstract_words(config: WordsConfig) -> Any:
    """Return the shapes of the word vectors."""
    return jax.eval_shape(lambda: init_words(config, jax.random.key(0)))


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config of a component as JSON values."""
    return config.to_json() if isinstance(config, WordsConfig) else config.to_dict()
