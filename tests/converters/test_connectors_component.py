"""The connectors' config through an LTX-2 header and diffusers' config.json, and both namings at full size."""

import dataclasses

import pytest
import torch
from conversion import assert_not_expressed
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from ltx_core.text_encoders.gemma.encoders.encoder_configurator import EmbeddingsProcessorConfigurator

from converters.component import DIFFUSERS, LTX2
from converters.formats import transformer
from converters.formats.connectors import COMPONENT
from converters.missing_config import CONNECTORS_2_0 as OLDER
from converters.missing_config import CONNECTORS_2_3 as NEWER
from omniforcing_jax.config import GridPrecision, RotaryKind
from omniforcing_jax.pipeline.presets import LTX2_19B
from omniforcing_jax.text.connector import ConnectorConfig

FULL = {"2.0": OLDER, "2.3": NEWER}
UNUSUAL = dataclasses.replace(
    NEWER,
    text_width=24,
    audio=ConnectorConfig(layers=3, heads=2, head_size=6, registers=128),
    gated_attention=False,
    rotary=RotaryKind.INTERLEAVED,
    grid=GridPrecision.FLOAT32,
    max_position=512,
)
COUNTS = {"2.0": 59, "2.3": 262}
SIZES = {"num_attention_heads": 32, "attention_head_dim": 128}  # of the transformer, which ltx-core reads of the header
# As published: only keys that concern the connectors, beside some that do not.
PUBLISHED = {
    "2.0": {
        "rope_type": "split",
        "frequencies_precision": "float64",
        "caption_channels": 3840,
        "num_layers": 48,
        "connector_num_layers": 2,
        "connector_num_attention_heads": 30,
        "connector_attention_head_dim": 128,
        "connector_num_learnable_registers": 128,
        "connector_positional_embedding_max_pos": [4096],
        "use_embeddings_connector": True,
        "connector_norm_output": True,
        "dropout": 0.0,
    },
}
PUBLISHED["2.3"] = PUBLISHED["2.0"] | {
    "connector_num_layers": 8,
    "connector_num_attention_heads": 32,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "connector_apply_gated_attention": True,
    "text_encoder_norm_type": "per_token_rms",
    "connector_learnable_registers_std": 1,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}


def build(naming, config):
    """The peer's own connectors at full size, without memory, from the config that we write."""
    values = COMPONENT.namings[naming].table.write(config)
    with torch.device("meta"):
        if naming == DIFFUSERS:
            return LTX2TextConnectors.from_config(values).state_dict()
        sizes = SIZES | {"audio_num_attention_heads": 32, "audio_attention_head_dim": 64}
        return EmbeddingsProcessorConfigurator.from_config({"transformer": sizes | values["transformer"]}).state_dict()


def original(key):
    """The key of a published file for ltx-core's name in memory."""
    for stream in ("video", "audio"):
        key = key.replace(f"{stream}_connector.", f"model.diffusion_model.{stream}_embeddings_connector.")
    return key.replace("feature_extractor.", "text_embedding_projection.")


@pytest.mark.parametrize("generation", FULL)
@pytest.mark.parametrize("naming", [LTX2, DIFFUSERS])
def test_at_full_size_the_peer_s_keys_and_shapes_are_ours(naming, generation):
    theirs = {key: tuple(value.shape) for key, value in build(naming, FULL[generation]).items()}
    assert len(theirs) == COUNTS[generation]
    theirs = {original(key): shape for key, shape in theirs.items()} if naming == LTX2 else theirs
    assert theirs == {p.source: p.source_shape for p in COMPONENT.expand(FULL[generation], naming)}
    assert naming == DIFFUSERS or all(key.startswith(COMPONENT.namings[LTX2].prefixes) for key in theirs)


@pytest.mark.parametrize("generation", FULL)
def test_beside_the_transformer_s_part_of_the_header_ltx_core_takes_the_same_generation(generation):
    newer = {"caption_channels": None, "gated_attention": True, "text_adaln": True} if generation == "2.3" else {}
    network = transformer.COMPONENT.namings[LTX2].table.write(dataclasses.replace(LTX2_19B, **newer))
    header = network["transformer"] | COMPONENT.namings[LTX2].table.write(FULL[generation])["transformer"]
    with torch.device("meta"):
        theirs = EmbeddingsProcessorConfigurator.from_config({"transformer": header}).state_dict()
    assert theirs.keys() == build(LTX2, FULL[generation]).keys()


@pytest.mark.parametrize("generation", FULL)
def test_the_published_header_is_the_generation_s(generation):
    assert COMPONENT.namings[LTX2].table.read({"transformer": PUBLISHED[generation]}) == FULL[generation]


@pytest.mark.parametrize("config", [OLDER, NEWER, UNUSUAL])
@pytest.mark.parametrize("naming", [LTX2, DIFFUSERS])
def test_a_config_comes_back_as_it_was_written(naming, config):
    table = COMPONENT.namings[naming].table
    assert table.read(table.write(config)) == config
    assert COMPONENT.config.from_dict(config.to_dict()) == config


def test_what_diffusers_saves_is_understood():
    with torch.device("meta"):
        saved = dict(LTX2TextConnectors(rope_type="split").config)
    assert COMPONENT.namings[DIFFUSERS].table.read(saved) == OLDER


@pytest.mark.parametrize(
    ("naming", "change"),
    [
        (LTX2, {"tokens": 512}),
        (LTX2, {"text_states": 5}),
        (LTX2, {"theta": 100.0}),
        (DIFFUSERS, {"tokens": 512}),
    ],
)
def test_what_a_format_cannot_express_is_refused(naming, change):
    assert_not_expressed(COMPONENT.namings[naming].table, OLDER, change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text_encoder_norm_type": "layer"}, "text_encoder_norm_type='layer'"),
        ({"caption_proj_input_norm": True}, "caption_proj_input_norm=True"),
        ({"connector_norm_output": False}, "connector_norm_output=False"),
        ({"connector_depth": 3}, "unknown keys ['connector_depth']"),
        ({"connector_positional_embedding_max_pos": [1, 2]}, "connector_positional_embedding_max_pos=[1, 2]"),
    ],
)
def test_a_header_of_a_new_generation_is_refused(change, named):
    with pytest.raises(ValueError) as caught:
        COMPONENT.namings[LTX2].table.read({"transformer": PUBLISHED["2.3"] | change})
    assert named in str(caught.value)
