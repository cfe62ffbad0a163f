"""Scaled float8 as ComfyUI's tools write it, old and new: the values that the scales say, or a refusal."""

import json

import ml_dtypes
import numpy as np
import pytest
from brought import GEMMA, NEWER, PREFIX, load, multimodal_gemma, quantise, save_base
from published import draw_network
from run import refused, run
from safetensors.numpy import save_file

from converters import single_file_gemma
from converters.float8 import dequantise
from converters.lazy_tensor import wrap_array
from omniforcing_jax.io.tensor_file import open_tensors

pytestmark = pytest.mark.usefixtures("quiet")

MODULE = f"{PREFIX}transformer_blocks.1.attn1.to_q"
KEY = f"{MODULE}.weight"
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
NOTE = b'{"format": "float8_e4m3fn"}'


def test_a_file_with_a_text_model_and_notes_in_its_header_is_read_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(single_file_gemma, "GEMMA_3_12B", GEMMA)
    base = save_base(tmp_path / "base.safetensors")
    keys = quantise(tmp_path / "fp8.safetensors", base, "header")
    kinds = {key.removesuffix(".weight"): {"format": "float8_e4m3fn"} for key in keys}
    metadata = dict(open_tensors(base).metadata) | {"_quantization_metadata": json.dumps({"layers": kinds})}
    text = {f"text_encoders.gemma3_12b.transformer.{key}": each for key, each in multimodal_gemma().items()}
    save_file(load(tmp_path / "fp8.safetensors") | text, tmp_path / "all.safetensors", metadata)
    run("convert", "--from", tmp_path / "all.safetensors", "--out", tmp_path / "ours")
    told = capsys.readouterr().out
    for name in ("transformer", "connectors", "text"):
        assert f"{name}: {len(keys)} float8 tensors become bfloat16, {len(keys)} of them scaled" in told


@pytest.mark.parametrize("style", ["ltx2", "comfy_quant", "scaled_fp8"])
def test_every_style_becomes_the_values_that_its_scales_say(tmp_path, style):
    base = save_base(tmp_path / "base.safetensors")
    keys = quantise(tmp_path / "fp8.safetensors", base, style, dict(open_tensors(base).metadata))
    assert KEY in keys
    run("convert", "--from", tmp_path / "fp8.safetensors", "--out", tmp_path / "ours")
    ours = open_tensors(tmp_path / "ours/transformer/model.safetensors").read("layers/video/self_attn/q/w")[1]
    stored, plain = load(tmp_path / "fp8.safetensors"), load(base)
    scale = next(stored[each] for each in (f"{KEY}_scale", f"{MODULE}.scale_weight") if each in stored)
    np.testing.assert_array_equal(ours, (stored[KEY].astype(np.float32) * scale.reshape(())).astype(ours.dtype))
    off = np.abs(ours.astype(np.float32) - plain[KEY].astype(np.float32)).max()
    assert off <= 0.08 * np.abs(plain[KEY].astype(np.float32)).max()


def tensors_with(**beside):
    """Return a matrix in float8 among others, and tensors beside it by the end of their key."""
    named = {KEY: np.full((4, 4), 2, E4M3)} | {f"{MODULE}.{name}": np.asarray(each) for name, each in beside.items()}
    return {key: wrap_array(value, "file") for key, value in named.items()}


def as_bytes(text):
    return np.frombuffer(text, np.uint8)


@pytest.mark.parametrize(
    ("beside", "complaint"),
    [
        ({"comfy_quant": as_bytes(NOTE)}, "missing model.* says that .*to_q.weight was scaled"),
        ({"comfy_quant": as_bytes(NOTE), "weight_scale": np.float32([1, 2])}, r"expected one number"),
        ({"comfy_quant": as_bytes(NOTE), "weight_scale": np.ones((4, 1), np.float32)}, r"expected one number"),
        ({"comfy_quant": as_bytes(NOTE), "weight_scale": np.float32(0)}, "must be positive and finite"),
        ({"scale_weight": np.float32([np.nan])}, "scale_weight=nan: must be positive and finite"),
        ({"scale_weight": np.float32([-1])}, "scale_weight=-1.0: must be positive and finite"),
        ({"scale_weight": np.int32([1])}, "scale_weight is int32"),
        ({"scale_weight": np.float32([1]), "weight_scale": np.float32(1)}, "has two scales"),
        ({"comfy_quant": as_bytes(b'{"format": "nvfp4"}'), "weight_scale": np.float32(1)}, "quantised as 'nvfp4'"),
        ({"comfy_quant": as_bytes(b'{"format": "float8_e5m2"}'), "weight_scale": np.float32(1)}, "says float8_e5m2"),
        ({"comfy_quant": as_bytes(b"{}"), "weight_scale": np.float32(1)}, "is quantised as None"),
        ({"comfy_quant": as_bytes(b"[1"), "weight_scale": np.float32(1)}, "comfy_quant: not JSON"),
        ({"comfy_quant": as_bytes(b"[" * 60_000), "weight_scale": np.float32(1)}, "comfy_quant: nested deeper"),
        ({"comfy_quant": np.zeros(3, np.float32), "weight_scale": np.float32(1)}, "comfy_quant is float32"),
    ],
)
def test_a_scale_that_is_wrong_or_missing_is_named(beside, complaint):
    with pytest.raises(ValueError, match=f"^file: .*{complaint}"):
        dequantise(tensors_with(**beside))


@pytest.mark.parametrize("mark", ["scaled_fp8", "model.diffusion_model.scaled_fp8", "diffusion_model.scaled_fp8"])
def test_a_file_that_says_it_is_scaled_must_have_the_scales(mark):
    marked = {mark: wrap_array(np.zeros(0, E4M3), "file")}
    with pytest.raises(ValueError, match=rf"missing .*to_q\.weight_scale, {mark} says"):
        dequantise(tensors_with() | marked)
    tensors, notes = dequantise(tensors_with(scale_weight=np.float32([3])) | marked)
    assert list(tensors) == [KEY]
    assert tensors[KEY].load().astype(np.float32).tolist() == np.full((4, 4), 6.0).tolist()
    assert notes == ("1 float8 tensors become bfloat16, 1 of them scaled",)


def test_the_header_may_say_the_kind_of_quantisation():
    note = {"_quantization_metadata": f'{{"layers": {{"{MODULE}": {{"format": "int8_tensorwise"}}}}}}'}
    with pytest.raises(ValueError, match="is quantised as 'int8_tensorwise'"):
        dequantise(tensors_with(weight_scale=np.float32(1)), note)
    good = {"_quantization_metadata": f'{{"layers": {{"{MODULE}": {{"format": "float8_e4m3fn"}}}}}}'}
    assert list(dequantise(tensors_with(weight_scale=np.float32(1)), good)[0]) == [KEY]
    with pytest.raises(ValueError, match=r"missing .*weight_scale"):
        dequantise(tensors_with(), good)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_a_scale_may_have_any_floating_type(dtype):
    tensors, _ = dequantise(tensors_with(weight_scale=np.asarray(0.5, dtype)))
    assert (tensors[KEY].load() == 1).all()


def test_a_scale_without_its_matrix_is_unknown(tmp_path, capsys):
    tensors = draw_network(NEWER) | {f"{MODULE}.scale_weight": np.ones(1, np.float32)}
    save_base(tmp_path / "base.safetensors")
    save_file(tensors, tmp_path / "odd.safetensors")
    command = ("convert", "--from", tmp_path / "base.safetensors", "--from", tmp_path / "odd.safetensors")
    assert f"unknown {MODULE}.scale_weight" in refused(capsys, *command, "--out", tmp_path / "ours")
