"""Gemma 3 in one file, with and without a config: the weights of its folder, its tokenizer with it, or a refusal."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from brought import (
    GEMMA,
    multimodal_gemma,
    quantise,
    save_base,
    save_comfy_gemma,
    save_gemma_folder,
    save_packed_gemma,
)
from run import refused, run
from safetensors.numpy import load_file, save_file

from converters import single_file_gemma
from converters.component import HUGGING_FACE, LTX2, LTX2_TEXT
from converters.formats.gemma import COMPONENT
from converters.missing_config import CONNECTORS_2_3
from converters.open_source import list_components
from converters.overrides import Overrides
from converters.plan import plan_component
from converters.registry import COMPONENTS
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.io.weights import read_config
from omniforcing_jax.text.gemma_config import GEMMA_3_12B, GEMMA_4_12B, GemmaConfig
from omniforcing_jax.text.tokenizer import GemmaTokenizer

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def tiny(monkeypatch):
    """Take a tiny text model for Gemma 3 12B."""
    monkeypatch.setattr(single_file_gemma, "GEMMA_3_12B", GEMMA)


def convert(source, out):
    run("convert", "--from", source, "--out", out)
    return out / "text"


def read(folder):
    file = open_tensors(folder / "model.safetensors")
    return {name: file.read(name) for name in file.entries}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_comfyui_s_file_has_the_weights_of_the_folder(tmp_path, tiny):
    folder = convert(save_gemma_folder(tmp_path / "gemma"), tmp_path / "a")
    tensors = load_file(tmp_path / "gemma/model.safetensors")
    save_file(tensors | {"spiece_model": np.frombuffer(b"pieces", np.uint8)}, tmp_path / "gemma_3.safetensors")
    ours = convert(tmp_path / "gemma_3.safetensors", tmp_path / "b")
    assert_same(read(ours), read(folder))
    assert GemmaConfig.from_dict(read_config(ours)) == GEMMA
    assert (ours / "tokenizer.model").read_bytes() == b"pieces"


def test_the_vision_tower_passes_through(tmp_path, tiny):
    ours = convert(save_comfy_gemma(tmp_path / "gemma_3.safetensors"), tmp_path / "ours")
    passed = open_tensors(ours / "passed.safetensors").entries
    assert passed
    assert all(key.startswith(("vision_tower.", "multi_modal_projector.")) for key in passed)
    tensors = multimodal_gemma()
    np.testing.assert_array_equal(read(ours)["embedding"], tensors["model.embed_tokens.weight"])


def test_ltx_2_5_s_text_file_is_not_written_of_gemma_3(tmp_path, capsys):
    sources = (save_base(tmp_path / "base.safetensors"), save_gemma_folder(tmp_path / "gemma"))
    run("convert", *(word for source in sources for word in ("--from", source)), "--out", tmp_path / "ours")
    command = ("export", "--from", tmp_path / "ours", "--to", "ltx2-text", "--out", tmp_path / "back.safetensors")
    line = refused(capsys, *command)
    assert f"to='ltx2-text': LTX-2.5's text encoder is Gemma 4, and {tmp_path / 'ours'} has Gemma 3" in line
    assert not (tmp_path / "back.safetensors").exists()


def test_what_is_converted_goes_back_as_a_folder_that_converts(tmp_path, tiny):
    ours = convert(save_comfy_gemma(tmp_path / "gemma_3.safetensors"), tmp_path / "ours")
    run("export", "--from", tmp_path / "ours", "--to", "diffusers", "--out", tmp_path / "back")
    assert_same(read(convert(tmp_path / "back", tmp_path / "again")), read(ours))


def test_the_packed_encoder_brings_its_config_and_its_tokenizer(tmp_path):
    path = save_packed_gemma(tmp_path / "text_encoder.safetensors")
    ours = convert(path, tmp_path / "ours")
    assert GemmaConfig.from_dict(read_config(ours)) == GEMMA
    ids, _ = GemmaTokenizer(ours, 8)(["a red ball"])
    assert ids.shape == (1, 8)
    assert (ours / "tokenizer_config.json").read_bytes() == b"{}"
    there = load_file(path)["language_model.model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(read(ours)["layers/up/w"][1], there)


@pytest.mark.parametrize("style", ["comfy_quant", "scaled_fp8"])
def test_a_text_model_in_scaled_float8_is_dequantised(tmp_path, tiny, style):
    save_file(multimodal_gemma(), tmp_path / "plain.safetensors")
    quantise(tmp_path / "fp8.safetensors", tmp_path / "plain.safetensors", style, None, "", ".self_attn.")
    ours = read(convert(tmp_path / "fp8.safetensors", tmp_path / "ours"))
    plain = load_file(tmp_path / "plain.safetensors")["model.layers.1.self_attn.q_proj.weight"].astype(np.float32)
    off = np.abs(ours["layers/q/w"][1].astype(np.float32) - plain)
    assert 0 < off.max() <= 0.08 * np.abs(plain).max()


@pytest.mark.parametrize("before", ["model.", "text_encoders.gemma3_12b.transformer.model.", "language_model.model."])
def test_whatever_nests_the_text_model_it_is_found(tmp_path, tiny, before):
    def change(tensors):
        return {
            key.replace("model.", before, 1) if key.startswith("model.") else key: each for key, each in tensors.items()
        }

    ours = convert(save_comfy_gemma(tmp_path / "gemma.safetensors", change=change), tmp_path / "ours")
    assert GemmaConfig.from_dict(read_config(ours)) == GEMMA


def test_a_text_model_beside_the_network_is_a_component_of_its_own(tmp_path, tiny):
    base = save_base(tmp_path / "base.safetensors")
    tensors = load_file(base) | multimodal_gemma()
    save_file(tensors, tmp_path / "all.safetensors", dict(open_tensors(base).metadata))
    run("convert", "--from", tmp_path / "all.safetensors", "--out", tmp_path / "ours")
    found = sorted(path.parent.name for path in (tmp_path / "ours").glob("*/model.safetensors"))
    assert found == ["connectors", "text", "transformer"]


def sparse(path, tensors, **metadata):
    """Write a file of any size whose values take no room on the disk."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for key, shape in tensors.items():
        begin, end = end, end + 2 * int(np.prod(shape, dtype=np.int64))
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.parametrize("vocabulary", [262_208, 262_144])
def test_gemma_3_12b_is_told_by_its_shapes(tmp_path, vocabulary):
    config = dataclasses.replace(GEMMA_3_12B, vocabulary=vocabulary)
    shapes = {each.source: each.source_shape for each in COMPONENT.expand(config, HUGGING_FACE)}
    comfy = {key.removeprefix("language_"): shape for key, shape in shapes.items()}
    path = sparse(tmp_path / "gemma_3_12B_it.safetensors", {k.removeprefix("model."): s for k, s in comfy.items()})
    (source,) = list_components(path, Overrides())
    assert source.config == config


def test_ltx_2_5_s_file_at_full_size_is_gemma_4_12b_and_the_text_projection(tmp_path):
    shapes = {each.source: each.source_shape for each in COMPONENT.expand(GEMMA_4_12B, LTX2_TEXT)}
    connectors = COMPONENTS["connectors"].expand(CONNECTORS_2_3, LTX2)
    shapes |= {each.source: each.source_shape for each in connectors if each.source.startswith("text_embedding_proj")}
    values = COMPONENT.namings[LTX2_TEXT].table.write(GEMMA_4_12B)
    path = sparse(tmp_path / "gemma4-12b-with-proj.safetensors", shapes, gemma_config=json.dumps(values))
    text, projection = list_components(path, Overrides())
    assert text.config == GEMMA_4_12B
    assert len(plan_component(text).source.tensors) == 666
    assert {key: each.shape for key, each in projection.tensors.items()} == {
        f"text_embedding_projection.{stream}_aggregate_embed.{name}": shape
        for stream, width in (("video", 4096), ("audio", 2048))
        for name, shape in (("weight", (width, 188_160)), ("bias", (width,)))
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 2560}, "width 2560"),
        ({"is_global": (True,) * 34}, "layers 34"),
        ({"head_size": 128}, "head_size 128"),
    ],
)
def test_what_cannot_be_read_off_another_size_is_named(tmp_path, capsys, change, named):
    config = dataclasses.replace(GEMMA_3_12B, vocabulary=4, **change)
    shapes = {each.source: each.source_shape for each in COMPONENT.expand(config, HUGGING_FACE)}
    path = sparse(tmp_path / "gemma.safetensors", shapes)
    line = refused(capsys, "convert", "--from", path, "--out", tmp_path / "ours")
    assert "a text model without config.json, not Gemma 3 12B" in line
    assert named in line
    assert "sliding_window, query_pre_attn_scalar and the rope's thetas and factor are in no tensor" in line


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"model_type": "gemma4"}', "model_type='gemma4': must be 'gemma4_unified' or 'gemma4_unified_text'"),
        ('{"model_type": "gemma2"}', "model_type='gemma2': must be 'gemma3' or 'gemma3_text'"),
        ('{"model_type": "gemma3"}', "text_config"),
        ("[]", "must be a JSON object"),
        ("{", "JSON"),
        ("[" * 100_000, "gemma_config"),
    ],
)
def test_a_config_that_is_damaged_or_of_another_model_is_named(tmp_path, capsys, text, complaint):
    tensors = multimodal_gemma()
    save_file(tensors, tmp_path / "text_encoder.safetensors", {"gemma_config": text})
    line = refused(capsys, "convert", "--from", tmp_path / "text_encoder.safetensors", "--out", tmp_path / "ours")
    assert "gemma_config in the header" in line
    assert complaint in line


def test_a_tokenizer_that_is_no_row_of_bytes_is_named(tmp_path, capsys, tiny):
    tensors = multimodal_gemma() | {"tokenizer_json": np.zeros((2, 2), ml_dtypes.bfloat16)}
    save_file(tensors, tmp_path / "gemma.safetensors")
    line = refused(capsys, "convert", "--from", tmp_path / "gemma.safetensors", "--out", tmp_path / "ours")
    assert "its tokenizer.json is bfloat16 of shape (2, 2), expected a row of bytes" in line
