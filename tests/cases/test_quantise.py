"""`convert --quantise`: what it writes, what it keeps of float8 files, and how it comes back."""

import dataclasses

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from brought import PREFIX, load, quantise, save_base, save_part
from lora_files import write_lora
from published import CODECS, NEWER, draw_network, save_ltx2
from run import refused, run
from safetensors.numpy import save_file

from omniforcing_jax.config import EightBitKind, EightBits, ModelConfig
from omniforcing_jax.io import weights
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.model.eight_bits import DEFAULT_PARTS
from omniforcing_jax.pipeline.quantise import quantising
from tests import eight_bits
from tests.tiny import TINY, random_params

pytestmark = pytest.mark.usefixtures("quiet")

LONG = pytest.mark.long
KINDS = pytest.mark.parametrize("kind", ["int8", "float8"])
DEEP = dataclasses.replace(NEWER, layers=6)
SELF = tuple(f"video/self_attn/{name}" for name in "qkvo")


def convert(source, out, *more):
    run("convert", "--from", source, "--out", out, *more)
    folder = out / "transformer"
    return open_tensors(folder / "model.safetensors"), ModelConfig.from_dict(weights.read_config(folder))


def read_all(file):
    return {name: file.read(name) for name in file.entries}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """LTX-2's file with its network alone."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_ltx2(path, DEEP, tensors=draw_network(DEEP))
    return path


@KINDS
def test_a_folder_in_eight_bits_holds_what_loading_a_wide_one_makes(base, tmp_path, kind, capsys):
    wide, config = convert(base, tmp_path / "wide")
    narrow, chosen = convert(base, tmp_path / "narrow", "--quantise", kind)
    assert f"transformer: 18 {kind} matrices in 5 of 6 layers are quantised" in capsys.readouterr().out
    layers = EightBits(kind=EightBitKind(kind), layers=(0, 1, 2, 3, 4), parts=DEFAULT_PARTS)
    assert chosen == dataclasses.replace(config, eight_bits=layers)
    made = quantising(wide, chosen)
    assert made.shapes == narrow.shapes
    for name, found in read_all(narrow).items():
        assert found.dtype == made.entries[name].dtype
        np.testing.assert_array_equal(found, made.read(name))
    expected = eight_bits.quantise(wide.read("layers/a2v/o/w")[:5], kind)
    np.testing.assert_array_equal(narrow.read("layers/a2v/o/w/narrow/values"), expected.values)
    np.testing.assert_array_equal(narrow.read("layers/a2v/o/w/narrow/scale"), expected.scale)
    np.testing.assert_array_equal(narrow.read("layers/a2v/o/w/wide"), wide.read("layers/a2v/o/w")[5:])


@KINDS
def test_any_slice_of_a_file_is_quantised_as_in_the_whole(tmp_path, kind):
    weights.save_component(tmp_path, "transformer", random_params(TINY, dtype=jnp.bfloat16), {})
    wide = open_tensors(tmp_path / "transformer/model.safetensors")
    made = quantising(wide, eight_bits.choose(TINY, kind, (1,), DEFAULT_PARTS))
    name = "layers/video/mlp/down/w"
    values, scale, others = (made.read(f"{name}/{part}") for part in ("narrow/values", "narrow/scale", "wide"))
    cut = (slice(0, 1), slice(4, 24), slice(8, 100))
    np.testing.assert_array_equal(made.read(f"{name}/narrow/values", cut), values[cut])
    np.testing.assert_array_equal(made.read(f"{name}/narrow/scale", cut[:2]), scale[cut[:2]])
    np.testing.assert_array_equal(made.read(f"{name}/wide", (slice(None), *cut[1:])), others[:, 4:24, 8:100])


@pytest.mark.parametrize("style", ["scaled_fp8", *(pytest.param(s, marks=LONG) for s in ("ltx2", "comfy_quant"))])
def test_float8_of_a_source_is_kept_bit_for_bit(tmp_path, style, capsys):
    base = save_base(tmp_path / "base.safetensors")
    quantise(tmp_path / "fp8.safetensors", base, style, dict(open_tensors(base).metadata))
    found, config = convert(tmp_path / "fp8.safetensors", tmp_path / "ours", "--quantise", "float8")
    assert "4 float8 matrices in 2 of 2 layers are kept as the source has them" in capsys.readouterr().out
    assert config.eight_bits == EightBits(kind=EightBitKind.FLOAT8, layers=(0, 1), parts=SELF)
    stored = load(tmp_path / "fp8.safetensors")
    for i in range(2):
        module = f"{PREFIX}transformer_blocks.{i}.attn1.to_q"
        scale = stored.get(f"{module}.weight_scale", stored.get(f"{module}.scale_weight"))
        values = found.read("layers/video/self_attn/q/w/narrow/values")[i]
        assert values.tobytes() == stored[f"{module}.weight"].tobytes()
        assert (found.read("layers/video/self_attn/q/w/narrow/scale")[i] == scale.reshape(())).all()
    wide, _ = convert(tmp_path / "fp8.safetensors", tmp_path / "wide")
    run("export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", tmp_path / "back.safetensors")
    again, _ = convert(tmp_path / "back.safetensors", tmp_path / "again")
    assert {k: v.tobytes() for k, v in read_all(again).items()} == {k: v.tobytes() for k, v in read_all(wide).items()}


def test_float8_of_a_source_is_quantised_anew_to_int8(tmp_path):
    base = save_base(tmp_path / "base.safetensors")
    quantise(tmp_path / "fp8.safetensors", base, "ltx2", dict(open_tensors(base).metadata))
    wide, _ = convert(tmp_path / "fp8.safetensors", tmp_path / "wide")
    narrow, chosen = convert(tmp_path / "fp8.safetensors", tmp_path / "ours", "--quantise", "int8")
    made = quantising(wide, chosen)
    for name, found in read_all(narrow).items():
        np.testing.assert_array_equal(found, made.read(name))


def test_float8_that_a_lora_changes_is_quantised_anew_and_the_rest_is_kept(tmp_path, capsys):
    base, modules = save_base(tmp_path / "base.safetensors"), ["transformer_blocks.1.attn1.to_q"]
    quantise(tmp_path / "fp8.safetensors", base, "ltx2", dict(open_tensors(base).metadata))
    lora = write_lora(tmp_path / "lora.safetensors", NEWER, modules=modules)
    plain, config = convert(tmp_path / "fp8.safetensors", tmp_path / "plain", "--quantise", "float8")
    fused, _ = convert(tmp_path / "fp8.safetensors", tmp_path / "fused", "--lora", lora, 1)
    capsys.readouterr()
    ours, found = convert(tmp_path / "fp8.safetensors", tmp_path / "ours", "--lora", lora, 1, "--quantise", "float8")
    assert "but for 1 of 8 that a LoRA changed: these are quantised anew" in capsys.readouterr().out
    assert found == config
    changed = {f"layers/video/self_attn/q/w/narrow/{leaf}" for leaf in ("values", "scale")}
    for name, values in read_all(ours).items():
        kept = plain.read(name)
        assert values[:1].tobytes() == kept[:1].tobytes()
        assert (values.tobytes() == kept.tobytes()) == (name not in changed), name
    again = eight_bits.quantise(fused.read("layers/video/self_attn/q/w"), "float8")
    for leaf in ("values", "scale"):
        np.testing.assert_array_equal(
            ours.read(f"layers/video/self_attn/q/w/narrow/{leaf}")[1], getattr(again, leaf)[1]
        )


def test_float8_that_differs_from_layer_to_layer_is_refused_by_name(tmp_path, capsys):
    base = save_base(tmp_path / "base.safetensors")
    quantise(tmp_path / "fp8.safetensors", base, "ltx2", dict(open_tensors(base).metadata), modules=".attn1.to_")
    stored = load(tmp_path / "fp8.safetensors")
    module = f"{PREFIX}transformer_blocks.1.attn1.to_k"
    stored[f"{module}.weight"] = load(base)[f"{module}.weight"]
    del stored[f"{module}.weight_scale"], stored[f"{module}.input_scale"]
    save_file(stored, tmp_path / "odd.safetensors", dict(open_tensors(base).metadata))
    line = refused(
        capsys, "convert", "--from", tmp_path / "odd.safetensors", "--quantise", "float8", "--out", tmp_path / "ours"
    )
    assert "video/self_attn/k is float8 in layers (0,), must be float8 in the same layers as video/self_attn/q" in line
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("kind", ["int8", pytest.param("float8", marks=LONG)])
def test_an_export_widens_and_says_so(base, tmp_path, kind, capsys):
    tensors = load(base)
    found, _ = convert(base, tmp_path / "ours", "--quantise", kind)
    for to, out in (("ltx2", "back.safetensors"), ("diffusers", "back")):
        run("export", "--from", tmp_path / "ours", "--to", to, "--components", "transformer", "--out", tmp_path / out)
        assert f"18 {kind} matrices in 5 of 6 layers become wide again" in capsys.readouterr().out
    back = load(tmp_path / "back.safetensors")
    assert {key: (value.dtype, value.shape) for key, value in back.items()} == {
        key: (value.dtype, value.shape) for key, value in tensors.items()
    }
    key = f"{PREFIX}transformer_blocks.{{}}.ff.net.2.weight"
    np.testing.assert_array_equal(back[key.format(5)], tensors[key.format(5)])
    values, scale = (found.read(f"layers/video/mlp/down/w/narrow/{name}")[3] for name in ("values", "scale"))
    expected = (values.astype(np.float32) * scale[:, None]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(back[key.format(3)], expected)


def test_inspect_says_what_is_in_eight_bits(base, tmp_path, capsys):
    convert(base, tmp_path / "ours", "--quantise", "int8")
    run("inspect", tmp_path / "ours", "--verify")
    said = capsys.readouterr().out
    assert "18 int8 matrices in 5 of 6 layers, see eight_bits" in said
    assert "layers/video/mlp/up/w/narrow/values  I8 [5, 256, 64]" in said
    assert "files as manifest.json lists them" in said


def test_only_a_transformer_can_be_quantised(tmp_path, capsys):
    path = save_part(tmp_path / "rest.safetensors", "vocoder", CODECS["vocoder"], "vocoder.", header=True)
    command = ("convert", "--from", path, "--quantise", "int8", "--out", tmp_path / "ours")
    assert "quantise='int8': needs a transformer, the sources have vocoder" in refused(capsys, *command)


def test_values_that_are_not_finite_are_refused(tmp_path, capsys):
    tensors = draw_network(DEEP)
    key = f"{PREFIX}transformer_blocks.1.ff.net.2.weight"
    tensors[key][3, 4] = np.nan
    save_ltx2(tmp_path / "base.safetensors", DEEP, tensors=tensors)
    command = ("convert", "--from", tmp_path / "base.safetensors", "--quantise", "int8", "--out", tmp_path / "ours")
    assert f"{key} has values that are not finite" in refused(capsys, *command)
