"""Configs of Gemma 3 and 4 through every form of config.json, and their names at full size."""

import dataclasses

import pytest
import torch
from ltx25_files import flatten_gemma
from tiny_text import VISION
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForCausalLM,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
)

from converters.component import HUGGING_FACE, LTX2_TEXT
from converters.formats.gemma import COMPONENT, CURRENT, TEXT_ONLY, find_naming
from omniforcing_jax.text.gemma_config import GEMMA_3_12B, GEMMA_4_12B, GlobalHeads, every_sixth

read_config = COMPONENT.namings[HUGGING_FACE].table.read

# As published with the multimodal 12B model: what is not said is what transformers' class supposes.
PUBLISHED = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
SMALL = dataclasses.replace(
    GEMMA_3_12B, width=32, heads=4, kv_heads=1, head_size=16, query_scale=24.0, global_stretch=1.0, window=512
)
UNUSUAL = dataclasses.replace(
    SMALL, is_global=(True, False, True), local_theta=500.0, global_theta=7000.0, global_stretch=2.0
)


OWN_VALUES = dataclasses.replace(
    GEMMA_4_12B,
    is_global=(True, False, True),
    global_rotated=0.5,
    global_stretch=2.0,
    global_heads=GlobalHeads(kv_heads=8, head_size=128),
)


def build(naming, config):
    """Transformers' own model without memory, from the config that we write; its keys as a file has them."""
    values = COMPONENT.namings[naming].table.write(config)
    with torch.device("meta"):
        if config.is_gemma_4:
            if naming == TEXT_ONLY:
                return Gemma4UnifiedForCausalLM(Gemma4UnifiedTextConfig(**values)).state_dict()
            parts = {"vision_config": {}, "audio_config": {}}
            return Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(**values, **parts)).state_dict()
        if naming == TEXT_ONLY:
            return Gemma3ForCausalLM(Gemma3TextConfig(**values)).state_dict()
        return Gemma3ForConditionalGeneration(Gemma3Config(**values, vision_config=VISION)).state_dict()


def published(key):
    """The older name of a key, which hub files have."""
    key = key.replace("model.language_model.", "language_model.model.").replace("lm_head", "language_model.lm_head")
    return key.removeprefix("model.") if key.startswith(("model.vision", "model.multi")) else key


@pytest.mark.parametrize(
    ("config", "naming", "count"),
    [
        *((GEMMA_3_12B, naming, 2 + 48 * 13) for naming in (HUGGING_FACE, CURRENT, TEXT_ONLY)),
        *((GEMMA_4_12B, naming, 2 + 40 * 14 + 8 * 13) for naming in (CURRENT, TEXT_ONLY, LTX2_TEXT)),
    ],
)
def test_at_full_size_keys_and_shapes_are_those_of_transformers(config, naming, count):
    table, spell = COMPONENT.namings[naming], SPELLINGS.get(naming, str)
    found = {spell(key): tuple(value.shape) for key, value in build(naming, config).items()}
    used = {key: shape for key, shape in found.items() if not table.is_passed(key)}
    assert used == {p.source: p.source_shape for p in COMPONENT.expand(config, naming)}
    assert len(used) == count
    assert len(found) > len(used)
    if config == GEMMA_4_12B and naming != TEXT_ONLY:
        assert len(found) - len(used) == 11 + 1  # the other parts, and the language head
    if naming != LTX2_TEXT:
        assert find_naming(found) == naming


SPELLINGS = {HUGGING_FACE: published, LTX2_TEXT: flatten_gemma}


def test_keys_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"^file: no text model of Gemma 3 or 4, .*language_model\.model\.embed"):
        find_naming(["encoder.embed_tokens.weight", "model.layers.0.input_layernorm.weight"], "file")


def test_the_published_config_is_gemma_3_12b():
    assert read_config(PUBLISHED) == GEMMA_3_12B


# What LTX-2.5's file has under `gemma_config`, without keys that say nothing about text.
PACKED = {
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    "gemma_version": "gemma4-12b-ltx-v1",
    "model_type": "gemma4_unified",
    "text_config": {
        "attention_k_eq_v": True,
        "enable_moe_block": False,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_size": 3840,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 15360,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 8,
        "model_type": "gemma4_unified_text",
        "num_attention_heads": 16,
        "num_experts": None,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_kv_shared_layers": 0,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 1024,
        "use_bidirectional_attention": "vision",
        "vocab_size": 262144,
    },
}


def test_the_packed_config_is_gemma_4_12b_and_so_is_what_transformers_makes_of_it():
    assert read_config(PACKED) == GEMMA_4_12B
    newer = Gemma4UnifiedConfig(**PACKED).to_dict()
    assert "per_layer_config" in newer["text_config"]
    assert read_config(newer) == GEMMA_4_12B


@pytest.mark.parametrize("naming", [HUGGING_FACE, TEXT_ONLY])
@pytest.mark.parametrize("config", [GEMMA_3_12B, SMALL, UNUSUAL, GEMMA_4_12B, OWN_VALUES])
def test_a_config_comes_back_as_transformers_writes_it(naming, config):
    values = COMPONENT.namings[naming].table.write(config)
    assert read_config(values) == config
    text, whole = (Gemma3TextConfig, Gemma4UnifiedTextConfig), (Gemma3Config, Gemma4UnifiedConfig)
    again = (text if naming == TEXT_ONLY else whole)[config.is_gemma_4](**values)
    assert read_config(again.to_dict()) == config
    assert COMPONENT.config.from_dict(config.to_dict()) == config


def test_an_older_config_with_a_pattern_is_understood():
    older = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 8,
        "sliding_window_pattern": 3,
        "rope_local_base_freq": 500.0,
        "rope_theta": 7000,
        "rope_scaling": None,
    }
    config = read_config(older)
    assert config.is_global == (False, False, True, False, False, True, False, False)
    assert (config.local_theta, config.global_theta, config.global_stretch) == (500.0, 7000.0, 1.0)
    assert read_config({"model_type": "gemma3_text"}).is_global == every_sixth(26)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gemma4"}, "model_type='gemma4': must be 'gemma4_unified' or 'gemma4_unified_text'"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention='all'"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers=2"),
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input=256"),
        ({"enable_moe_block": True}, "enable_moe_block=True"),
        ({"use_double_wide_mlp": True}, "use_double_wide_mlp=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "must be a list that ends with full_attention"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type='yarn': must be 'proportional'"),
        ({"per_layer_config": {"3": {"head_dim": 64}}}, "per_layer_config={'3'"),
        ({"per_layer_config": {"05": {"head_dim": 64}, "11": {"head_dim": 32}}}, "per_layer_config={'05'"),
        ({"num_global_key_value_heads": 3, "attention_k_eq_v": True}, "global_heads.kv_heads=3"),
    ],
)
def test_what_is_not_supported_of_gemma_4_is_named(change, named):
    with pytest.raises(ValueError) as caught:
        read_config({"model_type": "gemma4_unified_text", "num_hidden_layers": 12} | change)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gemma2"}, "model_type='gemma2'"),
        ({"hidden_activation": "relu"}, "hidden_activation='relu'"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_type='yarn'"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0, "beta": 1}},
            "full_attention.beta']",
        ),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention"]}, "layer_types"),
        ({"hidden_size": "wide"}, "hidden_size='wide'"),
    ],
)
def test_what_is_not_supported_is_named(change, named):
    with pytest.raises(ValueError) as caught:
        read_config({"model_type": "gemma3_text"} | change)
    assert named in str(caught.value)
