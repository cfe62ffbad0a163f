"""`check --record`: ltx-core and diffusers record a case from a file as published, and a wrong conversion fails it."""

import sys

import ml_dtypes
import numpy as np
import pytest
from ltx25_files import NETWORK as LTX25
from published import NEWER, SMALL, draw_network, save_diffusers, save_ltx2
from run import refused, run
from safetensors.numpy import save_file

from converters.cli import main
from converters.component import DIFFUSERS
from converters.formats import transformer
from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.io.weights import read_config

QUERY = "transformer_blocks.0.attn1.to_q.weight"
KEY = "transformer_blocks.0.attn1.to_k.weight"
OUTPUTS = "8 outputs, 0 beyond their limits"


def calm(tensors):
    """Weights of the size that trained ones have, norms around 1, so that outputs are of order 1."""
    result = {}
    for key, value in tensors.items():
        size = value.shape[-1] ** -0.5 if value.ndim == 2 and "table" not in key else 0.25
        result[key] = (value.astype(np.float32) * size + float(key.endswith("norm.weight"))).astype(np.float32)
    return result


def save_file_of(path, config=SMALL):
    tensors = calm(draw_network(config, dtype=np.float32))
    save_ltx2(path, config, tensors=tensors)
    return tensors


def record(library, source, case):
    run("check", "--record", library, "--from", source, "--case", case)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """LTX-2's file of 2.0, its weights, and the case that ltx-core records of it."""
    root = tmp_path_factory.mktemp("recorded")
    tensors = save_file_of(root / "ltx.safetensors")
    record("ltx-core", root / "ltx.safetensors", root / "cases/mine")
    return root, tensors


def test_a_conversion_passes_what_ltx_core_recorded(recorded, tmp_path, capsys):
    root, _ = recorded
    run("convert", "--from", root / "ltx.safetensors", "--out", tmp_path / "ours")
    run("check", "--weights", tmp_path / "ours", "--case", root / "cases/mine")
    told = capsys.readouterr().out
    assert OUTPUTS in told


def test_recording_and_checking_go_in_one_command_for_2_3_as_well(tmp_path, capsys):
    save_file_of(tmp_path / "ltx.safetensors", NEWER)
    run("convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path / "ours")
    how = ("--record", "ltx-core", "--from", tmp_path / "ltx.safetensors", "--weights", tmp_path / "ours")
    run("check", *how, "--case", tmp_path / "mine")
    told = capsys.readouterr().out
    assert "mine: 2 forwards of ltx-core on " in told
    assert OUTPUTS in told


@pytest.mark.parametrize("config", [SMALL, LTX25], ids=["2.0", "2.5"])
def test_a_conversion_passes_what_diffusers_recorded(config, tmp_path, capsys):
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel.from_config(transformer.COMPONENT.namings[DIFFUSERS].table.write(config))
    model.save_pretrained(tmp_path / "pipeline/transformer")
    path = tmp_path / "pipeline/transformer/diffusion_pytorch_model.safetensors"
    save_file(calm(draw_network(config, DIFFUSERS, dtype=np.float32)), path, {"format": "pt"})
    (tmp_path / "pipeline/model_index.json").write_text('{"_class_name": "LTX2Pipeline"}')
    record("diffusers", tmp_path / "pipeline", tmp_path / "mine")
    run("convert", "--from", tmp_path / "pipeline", "--out", tmp_path / "ours")
    run("check", "--weights", tmp_path / "ours", "--case", tmp_path / "mine")
    told = capsys.readouterr().out
    assert OUTPUTS in told


def swap(first, second):
    return lambda tensors: tensors | {first: tensors[second], second: tensors[first]}


WRONG = {  # what a wrong conversion does, as changed weights
    "two matrices in each other's place": swap(transformer.PREFIX + QUERY, transformer.PREFIX + KEY),
    "rows of heads in another order": lambda tensors: (
        tensors | {transformer.PREFIX + QUERY: np.roll(tensors[transformer.PREFIX + QUERY], 1, 0)}
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_weights_fail_the_case(recorded, tmp_path, capsys, kind):
    root, tensors = recorded
    save_ltx2(tmp_path / "wrong.safetensors", tensors=WRONG[kind](dict(tensors)))
    run("convert", "--from", tmp_path / "wrong.safetensors", "--out", tmp_path / "ours")
    assert main(["check", "--weights", str(tmp_path / "ours"), "--case", str(root / "cases/mine")]) == 1
    assert "BEYOND" in capsys.readouterr().out


def test_a_wrong_setting_that_no_weight_tells_fails_the_case(recorded, tmp_path, capsys):
    root, _ = recorded
    run("convert", "--from", root / "ltx.safetensors", "--timesteps", "own", "--out", tmp_path / "ours")
    assert read_config(tmp_path / "ours", "transformer")["cross_timestep"] == CrossTimestep.OWN
    assert main(["check", "--weights", str(tmp_path / "ours"), "--case", str(root / "cases/mine")]) == 1
    run("convert", "--from", root / "ltx.safetensors", "--rotary", "interleaved", "--out", tmp_path / "other")
    line = refused(capsys, "check", "--weights", tmp_path / "other", "--case", root / "cases/mine")
    assert "no variant fits this model: scalar: left out, rope is split there and interleaved here" in line


def test_what_cannot_be_recorded_is_told_in_one_line(recorded, tmp_path, capsys, monkeypatch):
    root, _ = recorded
    source, case = root / "ltx.safetensors", tmp_path / "case"

    def line_of(*arguments):
        return refused(capsys, "check", *arguments, "--case", case)

    assert "--record and --from belong together" in line_of("--record", "ltx-core")
    assert "--weights: give a folder to check, or --record" in line_of()
    assert "diffusers reads folders with a config.json" in line_of("--record", "diffusers", "--from", source)
    eighth = draw_network(SMALL, dtype=ml_dtypes.float8_e4m3fn)
    save_ltx2(tmp_path / "fp8.safetensors", tensors=eighth)
    assert "has float8 tensors" in line_of("--record", "ltx-core", "--from", tmp_path / "fp8.safetensors")
    save_diffusers(tmp_path / "folder")
    assert "ltx-core reads LTX-2's .safetensors file" in line_of("--record", "ltx-core", "--from", tmp_path / "folder")
    save_file({f"{transformer.PREFIX}{QUERY}": np.zeros((2, 2), np.float32)}, tmp_path / "bare.safetensors")
    line_of("--record", "ltx-core", "--from", tmp_path / "bare.safetensors")
    monkeypatch.setattr("converters.check.record.record.free_ram", lambda: 1000)
    assert "GB of memory in float32, 0 GB are free" in line_of("--record", "ltx-core", "--from", source)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ltx_core", None)
    assert "ltx_core is not installed: pip install 'omniforcing_jax[record]'" in line_of(
        "--record", "ltx-core", "--from", source
    )
    assert not list(tmp_path.glob("case*"))
    held = open_tensors(root / "cases/mine.safetensors").path.read_bytes()
    line = refused(capsys, "check", "--record", "ltx-core", "--from", source, "--case", root / "cases/mine")
    assert "mine.safetensors: exists already; choose another --case" in line
    assert (root / "cases/mine.safetensors").read_bytes() == held
