"""GGUF files of the transformer (ComfyUI-GGUF) and of Gemma 3 (llama.cpp), written by the package `gguf`."""

import dataclasses
import json
import resource
import sys

import gguf
import ml_dtypes
import numpy as np
import pytest
import tiny_text
import torch
from published import SMALL, draw_network
from run import refused, run
from transformers import AutoModelForCausalLM

from converters.component import LTX2
from converters.formats import gemma, transformer
from converters.gguf_file import read_gguf
from omniforcing_jax.io.tensor_file import open_tensors

KINDS = gguf.GGMLQuantizationType
PREFIX = transformer.PREFIX
WIDE = dataclasses.replace(  # widths of whole blocks: 32 values, or 256 of the kinds with K
    SMALL,
    video=dataclasses.replace(SMALL.video, head_size=64, latent_channels=32),
    audio=dataclasses.replace(SMALL.audio, head_size=32, latent_channels=32),
    caption_channels=32,
)
GEMMA = dataclasses.replace(tiny_text.ENCODER.gemma, width=64, mlp_width=96, is_global=(False,) * 5 + (True,))
HEADER = json.dumps(transformer.COMPONENT.namings[LTX2].table.write(WIDE))


def write(path, architecture, tensors, kind_of, **fields):
    """Write a file with the kind that `kind_of` says for each tensor; returns the values that it stands for."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        if name == "config":
            writer.add_string(name, value)
        else:
            getattr(writer, f"add_{name}")(*value)
    stands_for = {}
    for key, value in tensors.items():
        kind = kind_of(key, value)
        raw = gguf.quants.quantize(value.astype(np.float32), kind)
        writer.add_tensor(key, raw, raw_dtype=kind)
        stands_for[key] = gguf.quants.dequantize(raw, kind).reshape(value.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for


def comfy(kind):
    """How ComfyUI-GGUF chooses: matrices whose rows are whole blocks are quantised, all else stays float32."""
    block = gguf.GGML_QUANT_SIZES[kind][0]
    return lambda key, value: (
        kind if value.ndim == 2 and value.shape[-1] % block == 0 and "table" not in key else KINDS.F32
    )


def bare(tensors):
    return {key.removeprefix(PREFIX): value for key, value in tensors.items()}


def read(folder, config):
    """Read a converted transformer by original key."""
    file = open_tensors(folder / "transformer/model.safetensors")
    return {
        each.source: file.read(each.native)[... if each.layer is None else each.layer]
        for each in transformer.COMPONENT.expand(config, LTX2)
    }


@pytest.mark.parametrize("kind", [KINDS.Q8_0, KINDS.Q4_0, KINDS.BF16, KINDS.F16], ids=lambda kind: kind.name)
def test_a_quantised_transformer_becomes_what_it_stands_for(tmp_path, capsys, kind):
    tensors = bare(draw_network(WIDE, dtype=np.float32))
    stands_for = write(tmp_path / "ltx.gguf", "ltxv", tensors, comfy(kind), config=HEADER)
    run("convert", "--from", tmp_path / "ltx.gguf", "--out", tmp_path / "ours")
    assert f"{kind.name} (" in capsys.readouterr().out
    own_type = {KINDS.F16: np.float16}.get(kind, ml_dtypes.bfloat16)
    for key, value in read(tmp_path / "ours", WIDE).items():
        name = key.removeprefix(PREFIX)
        wanted = stands_for[name].astype(own_type if comfy(kind)(name, stands_for[name]) is kind else np.float32)
        assert value.dtype == wanted.dtype
        np.testing.assert_array_equal(value, wanted, err_msg=name)


def test_layers_of_several_kinds_get_one_type(tmp_path):
    """As in files of mixed kinds (Q4_K_M), where some layers' matrices are kept better than others'."""

    def choose(key, value):
        return (
            KINDS.F16 if key.startswith("transformer_blocks.1.") and value.ndim == 2 else comfy(KINDS.Q4_1)(key, value)
        )

    tensors = bare(draw_network(WIDE, dtype=np.float32))
    stands_for = write(tmp_path / "ltx.gguf", "ltxv", tensors, choose, config=HEADER)
    run("convert", "--from", tmp_path / "ltx.gguf", "--out", tmp_path / "ours")
    for layer in (0, 1):
        name = f"transformer_blocks.{layer}.attn1.to_q.weight"
        value = read(tmp_path / "ours", WIDE)[PREFIX + name]
        np.testing.assert_array_equal(value, stands_for[name].astype(ml_dtypes.bfloat16))


def test_a_shape_of_more_axes_is_comfyui_s_field(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "f.gguf", "ltxv")
    writer.add_array("comfy.gguf.orig_shape.x", [1, 2, 1, 3, 4])
    writer.add_tensor("x", np.arange(24, dtype=np.float32).reshape(6, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(tmp_path / "f.gguf").tensors["x"]
    assert tensor.shape == tensor.load().shape == (1, 2, 1, 3, 4)


def gemma_fields(config):
    """The fields that llama.cpp's conversion writes for a Gemma 3."""
    return {
        "embedding_length": (config.width,),
        "feed_forward_length": (config.mlp_width,),
        "block_count": (config.layers,),
        "head_count": (config.heads,),
        "head_count_kv": (config.kv_heads,),
        "key_length": (config.head_size,),
        "value_length": (config.head_size,),
        "sliding_window": (config.window,),
        "layer_norm_rms_eps": (1e-6,),
        "rope_freq_base": (config.global_theta,),
        "rope_scaling_type": (gguf.RopeScalingType.LINEAR,),
        "rope_scaling_factor": (config.global_stretch,),
        "tokenizer_model": ("llama",),
        "token_list": ([f"token {i}" for i in range(config.vocabulary)],),
    }


def save_gemma(path, kind, config=GEMMA):
    """Write a Gemma as llama.cpp does: its names, and 1 added to norms. Returns transformers' names and values."""
    tensors = draw_network(config, gemma.TEXT_ONLY, component=gemma.COMPONENT, dtype=np.float32)
    tensors = {key: value * np.float32(0.1) for key, value in tensors.items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.layers)
    theirs = {
        names.get_name(key, try_suffixes=(".weight",)): value + 1 if key.endswith("norm.weight") else value
        for key, value in tensors.items()
    }
    assert {"blk.0.attn_q.weight", "blk.0.post_ffw_norm.weight", "token_embd.weight"} < set(theirs)
    write(path, "gemma3", theirs, comfy(kind), **gemma_fields(config))
    return tensors


@pytest.mark.parametrize("stretch", [1.0, 8.0])
def test_gemma_of_llama_cpp_becomes_what_transformers_reads_from_it(tmp_path, capsys, stretch):
    config = dataclasses.replace(GEMMA, global_stretch=stretch)
    drawn = save_gemma(tmp_path / "gemma.gguf", KINDS.Q8_0, config)
    tiny_text.save_tokenizer(tmp_path)
    run("convert", "--from", tmp_path / "gemma.gguf", "--out", tmp_path / "ours")
    assert "no prompt can be read" not in capsys.readouterr().out
    assert (tmp_path / "ours/text/tokenizer.json").is_file()
    assert json.loads((tmp_path / "ours/text/config.json").read_text()) == config.to_dict()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="gemma.gguf", dtype=torch.float32)
    theirs = {key: value.numpy() for key, value in model.state_dict().items()}
    file = open_tensors(tmp_path / "ours/text/model.safetensors")
    for each in gemma.COMPONENT.expand(config, gemma.TEXT_ONLY):
        value = file.read(each.native)[... if each.layer is None else each.layer]
        wanted = theirs[each.source]
        np.testing.assert_allclose(value.astype(np.float32), wanted.astype(value.dtype).astype(np.float32), atol=1e-6)
        if each.source.endswith("norm.weight"):
            np.testing.assert_allclose(value, drawn[each.source], atol=1e-6)


def test_gemma_without_a_tokenizer_beside_it_says_so(tmp_path, capsys):
    save_gemma(tmp_path / "gemma.gguf", KINDS.F16)
    run("convert", "--from", tmp_path / "gemma.gguf", "--out", tmp_path / "ours")
    assert "no prompt can be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("architecture", "complaint"),
    [
        ("llama", "general.architecture='llama': expected a transformer of LTX-2"),
        ("clip", "general.architecture='clip': expected"),
        ("gemma3", "the field gemma3.embedding_length is None, expected a number"),
    ],
)
def test_a_gguf_file_of_something_else_is_told_by_name(tmp_path, capsys, architecture, complaint):
    write(tmp_path / "f.gguf", architecture, {"x.weight": np.zeros((2, 32))}, comfy(KINDS.F16))
    line = refused(capsys, "convert", "--from", tmp_path / "f.gguf", "--out", tmp_path / "o")
    assert complaint in line
    assert not (tmp_path / "o").exists()


def test_a_part_of_a_file_is_told_how_to_be_joined(tmp_path, capsys):
    fields = {"uint16": ("split.count", 3)}
    write(tmp_path / "f.gguf", "gemma3", {"x.weight": np.zeros((2, 32))}, comfy(KINDS.F16), **fields)
    line = refused(capsys, "convert", "--from", tmp_path / "f.gguf", "--out", tmp_path / "o")
    assert "is one of 3 parts; join them with llama.cpp's `llama-gguf-split --merge`" in line


@pytest.mark.parametrize("keep", [0, 3, 60, 0.5, 0.999])
def test_a_cut_off_gguf_file_is_refused(tmp_path, capsys, keep):
    path = tmp_path / "ltx.gguf"
    write(path, "ltxv", bare(draw_network(WIDE)), comfy(KINDS.Q8_0), config=HEADER)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    assert "ltx.gguf: cannot be read as GGUF" in refused(capsys, "convert", "--from", path, "--out", tmp_path / "o")


def test_gguf_is_asked_for_by_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "f.gguf").write_bytes(b"GGUF")
    line = refused(capsys, "convert", "--from", tmp_path / "f.gguf", "--out", tmp_path / "o")
    assert "gguf is not installed: pip install 'omniforcing_jax[convert]'" in line


def test_a_large_tensor_is_dequantised_piece_by_piece(tmp_path):
    """60 million values are 240 MB in float32; their blocks are a few megabytes each."""
    raw = gguf.quants.quantize(np.ones((1, 4096), np.float32), KINDS.Q8_0).repeat(16_000, 0)
    writer = gguf.GGUFWriter(tmp_path / "f.gguf", "ltxv")
    writer.add_tensor("x", raw, raw_dtype=KINDS.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(tmp_path / "f.gguf").tensors["x"]
    before, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for block in tensor.blocks():
        count += block.size
        assert block.nbytes <= 1 << 23
        assert (block == 1).all()
    assert count == 16_000 * 4096
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000
