"""Training checkpoints, float8 files and LoRA become the weights that they stand for; what is inside them is told."""

import ml_dtypes
import numpy as np
import pytest
import torch
from ltx_core.loader.fuse_loras import apply_loras
from ltx_core.loader.primitives import LoraStateDictWithStrength, StateDict
from published import FORCED, SMALL, draw, draw_network, save_diffusers, save_ltx2, without_tables
from run import refused, run
from safetensors.numpy import save_file

from converters.cli import main
from converters.formats.transformer import PREFIX
from omniforcing_jax.io.tensor_file import open_tensors

MATRIX = "transformer_blocks.1.ff.net.0.proj"
FLOAT8 = ml_dtypes.float8_e4m3fn


@pytest.fixture(autouse=True)
def _untabled(monkeypatch, quiet):
    without_tables(monkeypatch)


def read(folder, name, layer=None):
    value = open_tensors(folder / "transformer/model.safetensors").read(name)
    return value if layer is None else value[layer]


def as_torch(tensors, before=""):
    return {
        before + key.removeprefix(PREFIX): torch.from_numpy(value.astype(np.float32)).bfloat16()
        for key, value in tensors.items()
    }


@pytest.fixture
def training(tmp_path):
    """A checkpoint with a student, its average and a critic, wrapped as FSDP does."""
    states = {
        name: draw_network(FORCED, seed=seed) for seed, name in enumerate(("generator", "generator_ema", "critic"))
    }
    path = tmp_path / "model.pt"
    wrapped = {name: as_torch(tensors, "model._fsdp_wrapped_module.") for name, tensors in states.items()}
    torch.save(wrapped | {"step": 7}, path)
    return path, states


@pytest.mark.parametrize(("flag", "state"), [("ema", "generator_ema"), ("trained", "generator")])
def test_the_chosen_state_of_a_training_checkpoint_is_converted(tmp_path, training, flag, state):
    path, states = training
    save_file(states[state], tmp_path / "plain.safetensors")
    run("convert", "--from", path, "--state", flag, "--heads", 2, "--out", tmp_path / "a")
    run("convert", "--from", tmp_path / "plain.safetensors", "--heads", 2, "--out", tmp_path / "b")
    name = "transformer/model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_which_state_is_meant_must_be_said(tmp_path, training, capsys):
    line = refused(capsys, "convert", "--from", training[0], "--heads", 2, "--out", tmp_path / "ours")
    assert "has 'generator_ema' and 'generator': choose with --state ema or --state trained" in line


class Trap:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (print, ("ran",))


def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, capsys):
    torch.save({"generator": as_torch(draw_network(FORCED)), "x": Trap()}, tmp_path / "model.pt")
    line = refused(capsys, "convert", "--from", tmp_path / "model.pt", "--heads", 2, "--out", tmp_path / "ours")
    assert "model.pt: the pickle holds more than tensors" in line
    assert not (tmp_path / "ours").exists()


def test_a_cut_off_pickle_is_refused(tmp_path, training, capsys):
    path = training[0]
    path.write_bytes(path.read_bytes()[:5000])
    assert "model.pt: " in refused(capsys, "convert", "--from", path, "--state", "ema", "--out", tmp_path / "ours")


def test_float8_matrices_become_what_their_scales_say(tmp_path):
    tensors = draw_network(SMALL)
    plain, scaled = f"{PREFIX}transformer_blocks.0.attn1.to_q.weight", f"{PREFIX}{MATRIX}.weight"
    for key in (plain, scaled):
        tensors[key] = tensors[key].astype(FLOAT8)
    tensors[f"{scaled}_scale"] = np.array(0.3, np.float32)
    tensors[f"{PREFIX}{MATRIX}.input_scale"] = np.array(2.0, np.float32)
    save_ltx2(tmp_path / "fp8.safetensors", tensors=tensors)
    run("convert", "--from", tmp_path / "fp8.safetensors", "--out", tmp_path / "ours")
    wanted = (tensors[scaled].astype(np.float32) * np.float32(0.3)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(read(tmp_path / "ours", "layers/video/mlp/up/w", 1), wanted)
    wanted = tensors[plain].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(read(tmp_path / "ours", "layers/video/self_attn/q/w", 0), wanted)


@pytest.mark.parametrize("value", [np.array([1, 2], np.float32), np.array(np.nan, np.float32), np.array(1, np.int32)])
def test_a_scale_that_is_no_positive_number_is_named(tmp_path, capsys, value):
    tensors = draw_network(SMALL)
    key = f"{PREFIX}{MATRIX}.weight"
    save_ltx2(tmp_path / "f.safetensors", tensors=tensors | {key: tensors[key].astype(FLOAT8), f"{key}_scale": value})
    line = refused(capsys, "convert", "--from", tmp_path / "f.safetensors", "--out", tmp_path / "ours")
    assert f"{key}_scale" in line


def save_lora(path, before="diffusion_model.", **alpha):
    shapes = {f"{before}{MATRIX}.lora_A.weight": (3, 64), f"{before}{MATRIX}.lora_B.weight": (256, 3)}
    tensors = draw(shapes, 5, np.float32) | {f"{before}{MATRIX}.{k}": np.array(v, np.float32) for k, v in alpha.items()}
    save_file(tensors, path)
    return tensors


def test_a_fused_lora_is_ltx_core_s(tmp_path):
    tensors = draw_network(SMALL)
    save_ltx2(tmp_path / "f.safetensors", tensors=tensors)
    lora = save_lora(tmp_path / "lora.safetensors")
    run(
        "convert",
        "--from",
        tmp_path / "f.safetensors",
        "--lora",
        tmp_path / "lora.safetensors",
        0.7,
        "--out",
        tmp_path / "ours",
    )
    matrix = tensors[f"{PREFIX}{MATRIX}.weight"].astype(np.float32)
    state = StateDict({f"{MATRIX}.weight": torch.from_numpy(matrix).bfloat16()}, None, 0, set())
    bare = {key.removeprefix("diffusion_model."): torch.from_numpy(value) for key, value in lora.items()}
    change = LoraStateDictWithStrength(StateDict(bare, None, 0, set()), 0.7)
    wanted = apply_loras(state, [change]).sd[f"{MATRIX}.weight"].float().numpy()
    fused = read(tmp_path / "ours", "layers/video/mlp/up/w", 1).astype(np.float32)
    # ltx-core rounds the change and then the sum to bfloat16, we the sum alone.
    assert np.all(np.abs(fused - wanted) <= 2**-8 * (np.abs(wanted - matrix) + 2 * np.abs(wanted)) + 1e-6)
    assert np.abs(wanted - matrix).max() > 1
    np.testing.assert_array_equal(
        read(tmp_path / "ours", "layers/video/mlp/up/w", 0),
        tensors[f"{PREFIX}transformer_blocks.0.ff.net.0.proj.weight"],
    )


def test_alpha_scales_a_lora_and_diffusers_weights_take_it_too(tmp_path):
    tensors = save_diffusers(tmp_path / "pipeline")
    lora = save_lora(tmp_path / "lora.safetensors", "transformer.", alpha=6.0)
    run(
        "convert",
        "--from",
        tmp_path / "pipeline",
        "--lora",
        tmp_path / "lora.safetensors",
        0.5,
        "--out",
        tmp_path / "ours",
    )
    down, up = (lora[f"transformer.{MATRIX}.lora_{role}.weight"] for role in "AB")
    wanted = tensors[f"{MATRIX}.weight"] + 0.5 * 6 / 3 * up @ down
    np.testing.assert_allclose(read(tmp_path / "ours", "layers/video/mlp/up/w", 1), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "shape", "complaint"),
    [
        ("diffusion_model.proj_out.lora_A.weight", (2, 64), "missing diffusion_model.proj_out.lora_B.weight"),
        ("diffusion_model.nothing.lora_A.weight", (3, 64), "missing diffusion_model.nothing.lora_B.weight"),
        ("diffusion_model.proj_out.weight", (8, 64), "unknown diffusion_model.proj_out.weight, not a LoRA's"),
        (f"transformer.{MATRIX}.lora_A.weight", (3, 64), f"missing transformer.{MATRIX}.lora_B.weight"),
        (f"diffusion_model.{MATRIX}.lora_down.weight", (3, 64), f"{MATRIX}.lora_down.weight is given twice"),
    ],
)
def test_a_lora_that_does_not_fit_is_named(tmp_path, capsys, key, shape, complaint):
    save_ltx2(tmp_path / "f.safetensors")
    tensors = save_lora(tmp_path / "lora.safetensors") | draw({key: shape})
    save_file(tensors, tmp_path / "lora.safetensors")
    command = ("convert", "--from", tmp_path / "f.safetensors", "--lora", tmp_path / "lora.safetensors", 1)
    assert complaint in refused(capsys, *command, "--out", tmp_path / "ours")


def test_inspect_names_components_tensors_config_and_what_can_be_run(tmp_path, capsys):
    save_ltx2(tmp_path / "ltx.safetensors")
    run("inspect", tmp_path / "ltx.safetensors")
    told = capsys.readouterr().out
    assert "audio_vae: LTX-2" in told
    assert "all pass through untouched" in told
    assert f"{PREFIX}transformer_blocks.*.attn1.to_q.weight  BF16 [64, 64]  x2" in told
    assert '"gate_multiplier": 1000.0' in told
    run("convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path / "ours")
    capsys.readouterr()
    run("inspect", tmp_path / "ours")
    told = capsys.readouterr().out
    assert "layers/video/self_attn/q/w  BF16 [2, 64, 64]" in told
    assert "stream: cannot run: no video_vae, no audio_vae, no vocoder, no sampler section: it is a teacher" in told
    assert "prompts: cannot run: no text; --contexts" in told


def test_diff_says_what_differs_and_how_much(tmp_path, capsys):
    tensors = save_ltx2(tmp_path / "a.safetensors")
    key = f"{PREFIX}proj_out.bias"
    changed = dict(tensors) | {key: tensors[key] + np.asarray(1, tensors[key].dtype)}
    save_ltx2(tmp_path / "b.safetensors", tensors=changed, extra={"num_layers": 2, "norm_eps": 1e-6, "dropout": 0.0})
    for name in "ab":
        run("convert", "--from", tmp_path / f"{name}.safetensors", "--out", tmp_path / name)
    capsys.readouterr()
    run("diff", tmp_path / "a", tmp_path / "a")
    assert capsys.readouterr().out == "the same\n"
    for pair, name in ((("a.safetensors", "b.safetensors"), key), (("a", "b"), "transformer/video/head/b")):
        assert main(["diff", *(str(tmp_path / each) for each in pair)]) == 1
        told = capsys.readouterr().out
        assert f"{name}: 8 of 8 values differ, by 1" in told or f"{name}: 8 of 8 values differ, by 0.99" in told
    assert "convert or export one of them first" in refused(capsys, "diff", tmp_path / "a", tmp_path / "a.safetensors")
