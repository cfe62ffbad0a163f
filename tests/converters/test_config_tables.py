"""Config tables of every format: each is its own inverse, each key counts, and an absent key means its default."""

import copy
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.formats import audio_vae, connectors, gemma_configs, transformer, video_vae, video_vae_lists, vocoder
from converters.keys import ABSENT, Key, Repeated
from converters.section import REQUIRED, flatten, nest
from omniforcing_jax.codecs.audio_vae import AudioVAEConfig
from omniforcing_jax.codecs.bandwidth import ExtensionConfig
from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.codecs.generator import Activation, Final, GeneratorConfig
from omniforcing_jax.codecs.video_config import BlockKind, VideoVAEConfig, compress, expand, res
from omniforcing_jax.codecs.vocoder import VocoderConfig
from omniforcing_jax.config import CrossTimestep, GridPrecision, ModelConfig, RotaryConfig, RotaryKind, StreamConfig
from omniforcing_jax.text.connector import ConnectorConfig, ConnectorsConfig
from omniforcing_jax.text.features import FeatureNorm
from omniforcing_jax.text.gemma_config import GEMMA_3_12B, GemmaConfig, GlobalHeads

few = settings(deadline=None, max_examples=15)
# The type checker of the tests looks at an element of a list that it picks at random.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
small, even = st.integers(1, 9), st.integers(1, 9).map(lambda n: 2 * n)


@st.composite
def networks(draw, pixels):
    heads = draw(small)
    return ModelConfig(
        layers=draw(small),
        **{
            name: StreamConfig(
                latent_channels=draw(small), heads=heads, head_size=draw(even), mlp_bias=draw(st.booleans())
            )
            for name in ("video", "audio")
        },
        caption_channels=draw(st.none() | small),
        rotary=RotaryConfig(
            kind=draw(st.sampled_from(RotaryKind)),
            theta=draw(small.map(float)),
            max_seconds=draw(small.map(float)),
            max_pixels=draw(small.map(float)),
            grid=draw(st.sampled_from(GridPrecision)),
        ),
        cross_timestep=CrossTimestep.CROSS,
        gate_multiplier=draw(small.map(float)),
        gated_attention=draw(st.booleans()),
        text_adaln=draw(st.booleans()),
        prompt_time=draw(st.booleans()),
        keyframe_embedding=draw(st.booleans()),
        spatial_compression=draw(pixels),
    )


@st.composite
def text_paths(draw, norm, is_header):
    registers = draw(st.sampled_from([1, 2, 4, 128]))
    video = ConnectorConfig(layers=draw(small), heads=draw(small), head_size=draw(even), registers=registers)
    audio = dataclasses.replace(video, layers=draw(small))
    if norm is FeatureNorm.PER_TOKEN:
        audio = dataclasses.replace(audio, heads=draw(small), head_size=draw(even))
    return ConnectorsConfig(
        text_width=video.width if norm is FeatureNorm.PER_PROMPT else draw(small),
        text_states=GEMMA_3_12B.states if is_header else draw(small),
        norm=norm,
        video=video,
        audio=audio if is_header else dataclasses.replace(audio, registers=draw(st.sampled_from([1, 2, 4]))),
        gated_attention=draw(st.booleans()),
        rotary=draw(st.sampled_from(RotaryKind)),
        theta=10_000.0 if is_header else draw(small.map(float)),
        grid=draw(st.sampled_from(GridPrecision)),
        max_position=draw(small),
    )


@st.composite
def text_models(draw):
    kv_heads = draw(small)
    return GemmaConfig(
        vocabulary=draw(small),
        width=draw(small),
        mlp_width=draw(small),
        heads=kv_heads * draw(small),
        kv_heads=kv_heads,
        head_size=draw(even),
        query_scale=draw(st.floats(0.5, 300)),
        window=draw(small),
        is_global=tuple(draw(st.lists(st.booleans(), min_size=1, max_size=9))),
        local_theta=draw(small.map(float)),
        global_theta=draw(small.map(float)),
        global_stretch=draw(small.map(float)),
    )


@st.composite
def newer_text_models(draw):
    config = draw(text_models())
    divisors = [n for n in range(1, config.heads + 1) if config.heads % n == 0]
    return dataclasses.replace(
        config,
        is_global=(*config.is_global, False, True),
        query_scale=1.0,
        norm_offset=0.0,
        value_norm=True,
        layer_scale=True,
        global_rotated=draw(st.sampled_from([0.25, 0.5, 1.0])),
        global_heads=GlobalHeads(
            kv_heads=draw(st.sampled_from(divisors)), head_size=draw(even), keys_are_values=draw(st.booleans())
        ),
    )


@st.composite
def video_vaes(draw, is_header):
    kinds = draw(st.lists(st.sampled_from([BlockKind.SPACE, BlockKind.TIME, BlockKind.ALL]), min_size=1, max_size=3))
    channels, base = 32 * draw(small), 64 * draw(small)
    stages = [res(draw(small)) for _ in range(2 * len(kinds) + 2)]
    encoder, decoder = stages[:1], stages[1:2]
    for i, kind in enumerate(kinds):
        is_residual = draw(st.booleans()) and (kind is BlockKind.ALL or not is_header)
        encoder += [compress(kind, draw(st.sampled_from([1, 2]))), stages[2 + 2 * i]]
        decoder += [(compress if is_residual else expand)(kind, draw(st.sampled_from([1, 2]))), stages[3 + 2 * i]]
    paddings = draw(st.tuples(st.sampled_from(SpatialPadding), st.sampled_from(SpatialPadding)))
    if is_header and paddings == (SpatialPadding.REFLECT, SpatialPadding.ZEROS):
        paddings = paddings[::-1]
    return VideoVAEConfig(
        latent_channels=channels,
        patch_size=draw(small),
        encoder_base_channels=channels,
        decoder_base_channels=base,
        encoder_blocks=tuple(encoder),
        decoder_blocks=tuple(decoder),
        causal_decoder=draw(st.booleans()),
        encoder_padding=paddings[0],
        decoder_padding=paddings[1],
    )


@st.composite
def audio_vaes(draw):
    multipliers = tuple(draw(st.lists(small, min_size=1, max_size=3)))
    bins, channels = 2 ** (len(multipliers) - 1) * draw(small), draw(small)
    size = AudioVAEConfig(mel_bins=bins, multipliers=multipliers, z_channels=channels).latent_size
    return AudioVAEConfig(
        mel_bins=bins,
        audio_channels=draw(small),
        z_channels=channels,
        base_channels=size,
        multipliers=multipliers,
        res_blocks=draw(small),
    )


@st.composite
def generators(draw, activation, final, rates=None):
    rates = rates or draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))
    blocks = draw(st.lists(st.sampled_from([3, 5, 7]), min_size=1, max_size=2))
    return {
        "channels": tuple(64 // 2**i for i in range(len(rates) + 1)),
        "rates": tuple(rates),
        "kernels": tuple(rate + 2 * draw(small) for rate in rates),
        "resblock_kernels": tuple(blocks),
        "resblock_dilations": tuple(tuple(draw(st.lists(small, min_size=1, max_size=2))) for _ in blocks),
        "activation": activation,
        "final": final,
        "final_bias": draw(st.booleans()),
    }


@st.composite
def vocoders(draw, is_pair):
    if not is_pair:
        return VocoderConfig(**draw(generators(Activation.LEAKY_RELU, Final.TANH)), row_rate=draw(small))
    final = draw(st.sampled_from([Final.TANH, Final.CLAMP]))
    first = draw(generators(Activation.SNAKE, final, [4, 2]))
    second = GeneratorConfig(**draw(generators(Activation.SNAKE, Final.NONE, [4, 3])))
    extension = ExtensionConfig(generator=second, window=2 * draw(st.integers(4, 9)), hop=draw(st.sampled_from([4, 2])))
    return VocoderConfig(**first, row_rate=draw(small), extension=extension)


TABLES = {
    "transformer of LTX-2": (transformer.HEADER, networks(pixels=st.just(32))),
    "transformer of diffusers": (transformer.MODEL_CONFIG, networks(pixels=small)),
    "connectors of LTX-2 2.0": (connectors.HEADER_2_0, text_paths(FeatureNorm.PER_PROMPT, True)),
    "connectors of LTX-2 2.3": (connectors.HEADER_2_3, text_paths(FeatureNorm.PER_TOKEN, True)),
    "connectors of diffusers 2.0": (connectors.MODEL_CONFIG_2_0, text_paths(FeatureNorm.PER_PROMPT, False)),
    "connectors of diffusers 2.3": (connectors.MODEL_CONFIG_2_3, text_paths(FeatureNorm.PER_TOKEN, False)),
    "text model of Gemma 3": (dataclasses.replace(gemma_configs.TEXT_3, open=dict, wrap=dict), text_models()),
    "text model of Gemma 4": (dataclasses.replace(gemma_configs.TEXT_4, open=dict, wrap=dict), newer_text_models()),
    "video VAE of LTX-2": (video_vae.HEADER, video_vaes(is_header=True)),
    "video VAE of diffusers": (video_vae_lists.MODEL_CONFIG, video_vaes(is_header=False)),
    "audio VAE of LTX-2": (audio_vae.HEADER, audio_vaes()),
    "audio VAE of diffusers": (audio_vae.MODEL_CONFIG, audio_vaes()),
    "vocoder of LTX-2 2.0": (vocoder.HEADER_2_0, vocoders(is_pair=False)),
    "vocoder of LTX-2 2.3": (vocoder.HEADER_2_3, vocoders(is_pair=True)),
    "vocoder of diffusers 2.0": (vocoder.MODEL_CONFIG_2_0, vocoders(is_pair=False)),
    "vocoder of diffusers 2.3": (vocoder.MODEL_CONFIG_2_3, vocoders(is_pair=True)),
}


def keys_of(table, values):
    """The flat keys of a written config, without the section that they are in."""
    return flatten(values[table.section] if table.section else values)


def read(table, keys):
    """Read flat keys; None where they are refused."""
    values = {table.section: nest(keys)} if table.section else nest(keys)
    try:
        return table.read(copy.deepcopy(values))
    except ValueError:
        return None


def of_every_table(test):
    """Run a test of (name, data) on drawn configs of every table."""
    return few(pytest.mark.parametrize("name", TABLES)(given(data=st.data())(test)))


@of_every_table
def test_any_config_comes_back_as_it_was_written(name, data):
    table, configs = TABLES[name]
    config = data.draw(configs)
    assert table.read(table.write(config)) == config


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [other(value[0]), *value[1:]] if value else [1]
    return value + 1 if isinstance(value, int | float) else f"{value}x" if value else 1


@of_every_table
def test_a_key_that_is_written_counts_when_it_is_read_or_says_that_it_does_not(name, data):
    table, configs = TABLES[name]
    config = data.draw(configs)
    keys = keys_of(table, table.write(config))
    unchecked = {entry.source for entry in table.entries if isinstance(entry, Repeated) and not entry.checked}
    if isinstance(config, ModelConfig) and config.caption_channels is None:
        unchecked |= {"caption_channels"}  # the network has no projection of captions
    key = data.draw(st.sampled_from(sorted(keys)))
    assert (read(table, keys | {key: other(keys[key])}) == config) == (key in unchecked)


@of_every_table
def test_an_absent_key_means_the_default_of_the_table(name, data):
    table, configs = TABLES[name]
    entries = [entry for entry in table.entries if isinstance(entry, Key) and isinstance(entry.source, str)]
    entry = data.draw(st.sampled_from([entry for entry in entries if entry.default not in (REQUIRED, ABSENT)]))
    keys = {key: value for key, value in keys_of(table, table.write(data.draw(configs))).items() if key != entry.source}
    keys.pop(entry.older, None)
    assert read(table, keys) == read(table, keys | {entry.source: entry.default})


@of_every_table
def test_a_key_that_no_entry_knows_is_refused_where_the_format_is_strict(name, data):
    table, configs = TABLES[name]
    keys = keys_of(table, table.write(data.draw(configs)))
    inside = data.draw(st.sampled_from(sorted({key.rpartition(".")[0] for key in keys})))
    key = f"{inside}.new_idea" if inside else "new_idea"
    is_lenient = "text model" in name or "connectors of LTX-2" in name
    is_lenient |= name == "audio VAE of LTX-2" and "ddconfig" not in key
    assert (read(table, keys | {key: 1}) is None) == (not is_lenient or "rope_parameters" in key)
