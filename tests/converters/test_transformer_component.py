"""The transformer's config through an LTX-2 header and diffusers' config.json, and both namings at full size."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import torch
from conversion import assert_not_expressed
from diffusers import LTX2VideoTransformer3DModel
from diffusers_keys import rename
from ltx_core.model.transformer.model_configurator import LTXModelConfigurator

from converters.component import DIFFUSERS, LTX2
from converters.formats.transformer import COMPONENT, PREFIX
from converters.missing_config import CONNECTORS_2_3
from omniforcing_jax.config import CrossTimestep, GridPrecision, RotaryConfig, RotaryKind
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel.spec import abstract, count
from omniforcing_jax.pipeline.presets import LTX2_19B, LTX25_22B, TINY
from omniforcing_jax.text.connector import connectors_spec

CROSS = dataclasses.replace(LTX2_19B, cross_timestep=CrossTimestep.CROSS)
NEWER = {"caption_channels": None, "gated_attention": True, "text_adaln": True}
FULL = {"2.0": CROSS, "2.3": dataclasses.replace(CROSS, **NEWER)}
SMALL = dataclasses.replace(TINY, cross_timestep=CrossTimestep.CROSS)
UNUSUAL = dataclasses.replace(
    SMALL,
    **NEWER,
    gate_multiplier=1.0,
    rotary=RotaryConfig(
        kind=RotaryKind.INTERLEAVED, theta=500.0, max_seconds=10.0, max_pixels=512.0, grid=GridPrecision.FLOAT32
    ),
)
COUNTS = {"2.0": 3510, "2.3": 4186}
LTX25 = dataclasses.replace(LTX25_22B, float32_tables=False)  # which no config tells
CACHEABLE = dataclasses.replace(
    SMALL, **NEWER, prompt_time=False, keyframe_embedding=True, audio=dataclasses.replace(SMALL.audio, mlp_bias=False)
)


def build(naming, config):
    """The peer's own model at full size, without memory, from the config that we write."""
    values = COMPONENT.namings[naming].table.write(config)
    with torch.device("meta"):
        if naming == LTX2:
            return LTXModelConfigurator.from_config(values)
        return LTX2VideoTransformer3DModel.from_config(values)


@pytest.mark.parametrize("generation", FULL)
@pytest.mark.parametrize("naming", [LTX2, DIFFUSERS])
def test_at_full_size_the_peer_s_keys_and_shapes_are_ours(naming, generation):
    theirs = {name: tuple(value.shape) for name, value in build(naming, FULL[generation]).state_dict().items()}
    ours = {p.source: p.source_shape for p in COMPONENT.expand(FULL[generation], naming)}
    assert len(theirs) == COUNTS[generation]
    assert ours == {(PREFIX if naming == LTX2 else "") + name: shape for name, shape in theirs.items()}


def test_at_full_size_ltx_2_5_has_diffusers_keys_and_shapes_and_those_of_its_own_files_renamed():
    # 4,349 tensors of the published file less 258 of the connectors; 290 of them are tables.
    theirs = {name: tuple(value.shape) for name, value in build(DIFFUSERS, LTX25).state_dict().items()}
    assert len(theirs) == 4349 - 258
    assert sum(name.endswith("table") for name in theirs) == 290
    assert {p.source: p.source_shape for p in COMPONENT.expand(LTX25, DIFFUSERS)} == theirs
    original = {p.source.removeprefix(PREFIX): p.source_shape for p in COMPONENT.expand(LTX25, LTX2)}
    assert {rename(name): shape for name, shape in original.items()} == theirs


def test_the_published_file_of_ltx_2_5_has_as_many_bytes_as_these_weights():
    # The repository Lightricks/LTX-2.5 lists both its bfloat16 transformers with 42,018,190,584 bytes.
    network = abstract(transformer_spec(LTX25_22B), jnp.bfloat16)
    connectors = abstract(connectors_spec(CONNECTORS_2_3), jnp.bfloat16)  # without the features of Gemma's file
    leaves = jax.tree.leaves((network, connectors.video, connectors.audio))
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert count(transformer_spec(LTX25_22B)) == 18_987_859_200
    assert 8 + 677_616 + nbytes == 42_018_190_584  # its header is 677,616 bytes long


def test_the_published_header_of_ltx_2_5_is_read():
    # Keys that differ from LTX-2.3's; absent ones have ltx-core's defaults.
    header = COMPONENT.namings[LTX2].table.write(FULL["2.3"])
    header["transformer"] |= {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
    assert COMPONENT.namings[LTX2].table.read(header | {"vae": None}) == LTX25


@pytest.mark.parametrize("config", [*FULL.values(), LTX25, SMALL, UNUSUAL, CACHEABLE])
@pytest.mark.parametrize("naming", [LTX2, DIFFUSERS])
def test_a_config_comes_back_as_it_was_written(naming, config):
    table = COMPONENT.namings[naming].table
    assert table.read(table.write(config)) == config


@pytest.mark.parametrize("naming", [LTX2, DIFFUSERS])
@pytest.mark.parametrize("change", [{"sinks": 2}, {"log_ratio": True}])
def test_what_a_format_cannot_express_is_refused(naming, change):
    assert_not_expressed(COMPONENT.namings[naming].table, SMALL, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": "layer_norm"}, r"transformer\.qk_norm='layer_norm': must be 'rms_norm'"),
        ({"ff_bias": 0}, r"transformer\.ff_bias=0: must be of type bool"),
        ({"num_layers": "48"}, r"transformer\.num_layers='48': must be of type int"),
        ({"new_idea": 1}, r"transformer: unknown keys \['new_idea'\]"),
        ({"audio_positional_embedding_max_pos": [10]}, r"audio_positional_embedding_max_pos=\[10\]: must be \[20\]"),
        ({"positional_embedding_max_pos": [20]}, r"positional_embedding_max_pos=\[20\]: must be \[seconds, rows"),
        ({"rope_type": "spiral"}, r"transformer\.rope_type='spiral': must be one of \['split', 'interleaved'\]"),
    ],
)
def test_a_header_of_another_network_is_refused_by_key(change, message):
    table = COMPONENT.namings[LTX2].table
    header = table.write(SMALL)
    header["transformer"] |= change
    with pytest.raises(ValueError, match=message):
        table.read(header)


def test_a_header_without_its_section_is_refused():
    with pytest.raises(ValueError, match=r"header config=\['vae'\]: must have a transformer section"):
        COMPONENT.namings[LTX2].table.read({"vae": {}})
