"""Whatever is wrong with a source is said in one line that names file and key, and nothing is left behind."""

import errno
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from published import FORCED, SMALL, draw_network, save_ltx2, without_tables
from run import refused, run
from safetensors.numpy import save_file

from converters.finite import check_finite
from converters.formats.transformer import PREFIX
from converters.lazy_tensor import BLOCK, cut_blocks, list_tensors
from omniforcing_jax.io.tensor_file import open_tensors

KEY = f"{PREFIX}transformer_blocks.1.attn1.to_q.weight"


@pytest.fixture(autouse=True)
def _untabled(monkeypatch, quiet):
    without_tables(monkeypatch)


@pytest.fixture
def damaged(tmp_path, capsys):
    """Change the tensors of a small file, convert it, and give the line of the refusal; nothing may be left."""

    def try_it(change, **header):
        tensors = draw_network(SMALL)
        change(tensors)
        save_ltx2(tmp_path / "bad.safetensors", tensors=tensors, extra=header)
        before = sorted(tmp_path.rglob("*"))
        line = refused(capsys, "convert", "--from", tmp_path / "bad.safetensors", "--out", tmp_path / "ours" / "deep")
        assert sorted(tmp_path.rglob("*")) == before
        return line.removeprefix(f"error: {tmp_path}/")

    return try_it


def put(key, value):
    return lambda tensors: tensors.__setitem__(key, value)


def test_a_missing_key_is_named(damaged):
    assert damaged(lambda tensors: tensors.pop(KEY)) == f"bad.safetensors: missing {KEY}"


def test_an_unknown_key_is_named(damaged):
    assert damaged(put(f"{PREFIX}new.weight", np.zeros(1))) == f"bad.safetensors: unknown {PREFIX}new.weight"


def test_a_key_of_nobody_is_named(damaged):
    assert damaged(put("new.weight", np.zeros(1))).startswith("bad.safetensors: unknown new.weight, no component's key")


def test_a_wrong_shape_is_named(damaged):
    line = damaged(put(KEY, np.zeros((64, 65), ml_dtypes.bfloat16)))
    assert line == f"bad.safetensors: mis-shaped {KEY}: (64, 65) instead of (64, 64)"


def test_a_wrong_type_is_named(damaged):
    line = damaged(put(KEY, np.zeros((64, 64), np.int32)))
    assert line.startswith(f"bad.safetensors: {KEY} is int32, expected one of float16, bfloat16")


def test_layers_of_different_types_are_named(damaged):
    line = damaged(put(KEY, np.zeros((64, 64), np.float32)))
    assert line == f"bad.safetensors: {KEY} is float32, its other layers are bfloat16"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, np.float16, np.float64])
def test_a_value_that_is_not_finite_is_named(damaged, value, dtype):
    matrix = np.zeros(64, dtype)
    matrix[-1] = value
    key = f"{PREFIX}patchify_proj.bias"
    assert damaged(put(key, matrix)) == f"bad.safetensors: {key} has values that are not finite"


def test_a_header_that_contradicts_the_tensors_is_named(damaged):
    assert "missing model.diffusion_model.transformer_blocks.2." in damaged(lambda tensors: None, num_layers=3)
    line = damaged(lambda tensors: None, qk_norm="layer_norm")
    assert line.startswith("bad.safetensors: header config, transformer.qk_norm='layer_norm': must be 'rms_norm'")


def test_a_network_that_is_given_twice_is_named(tmp_path, capsys):
    tensors = draw_network(FORCED)
    twice = {f"{mark}.{key.removeprefix(PREFIX)}": value for mark in "ab" for key, value in tensors.items()}
    save_file(twice, tmp_path / "bad.safetensors")
    line = refused(capsys, "convert", "--from", tmp_path / "bad.safetensors", "--out", tmp_path / "ours")
    assert "audio_patchify_proj.weight is given twice: a.audio_patchify_proj.weight, b.audio" in line


@pytest.fixture
def shards(tmp_path):
    """A folder of two shards with its index."""
    tensors, folder = draw_network(FORCED), tmp_path / "shards"
    folder.mkdir()
    halves = {"a.safetensors": list(tensors)[::2], "b.safetensors": list(tensors)[1::2]}
    for name, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, folder / name)
    places = {key: name for name, keys in halves.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder, places


def test_a_folder_without_an_index_is_named(shards, tmp_path, capsys):
    (shards[0] / "model.safetensors.index.json").unlink()
    line = refused(capsys, "convert", "--from", shards[0], "--out", tmp_path / "ours")
    assert "shards: has 2 safetensors files and no *.safetensors.index.json; add it" in line


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda places, key: places.pop(key), "which model.safetensors.index.json does not list there"),
        (
            lambda places, key: places.update({"x": "b.safetensors"}),
            "b.safetensors: missing x, which model.safetensors.index.json lists there",
        ),
        (lambda places, key: places.update({"x": "0.safetensors"}), "0.safetensors: No such file"),
        (lambda places, key: places.update({key: "../c.safetensors"}), "names ../c.safetensors, must be a file in"),
    ],
)
def test_an_index_that_contradicts_its_shards_is_named(shards, tmp_path, capsys, change, complaint):
    folder, places = shards
    change(places, next(iter(places)))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert complaint in refused(capsys, "convert", "--from", folder, "--heads", 2, "--out", tmp_path / "ours")


def test_no_space_left_is_said_before_any_work(tmp_path, capsys, monkeypatch):
    save_ltx2(tmp_path / "ltx.safetensors")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    line = refused(capsys, "convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path / "ours")
    assert f"{tmp_path}/ours: no space left" in line
    assert not (tmp_path / "ours").exists()


def test_space_that_runs_out_on_the_way_leaves_what_was_there(tmp_path, capsys, monkeypatch):
    save_ltx2(tmp_path / "ltx.safetensors")
    run("convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path / "ours")
    before = {path: path.read_bytes() for path in (tmp_path / "ours").rglob("*") if path.is_file()}

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("omniforcing_jax.io.tensor_file._write_all", full)
    line = refused(capsys, "convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path / "ours")
    assert line == f"error: {tmp_path}/ours: No space left on device"
    assert {path: path.read_bytes() for path in (tmp_path / "ours").rglob("*") if path.is_file()} == before
    assert not list((tmp_path / "ours").glob(".*"))


def test_a_value_that_is_not_finite_is_found_in_the_last_block_of_a_large_tensor(tmp_path):
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        for dtype, size in ((ml_dtypes.bfloat16, 2 * BLOCK), (np.float64, BLOCK // 4)):
            large = np.full(size // 2 + 3, -1, dtype)
            save_file({"large": large}, tmp_path / "large.safetensors")
            (piece,) = list_tensors(open_tensors(tmp_path / "large.safetensors")).values()
            joined = np.concatenate(list(check_finite(piece.blocks(), "large", "file")))
            np.testing.assert_array_equal(joined, large)
            large[-1] = value
            with pytest.raises(ValueError, match="file: large has values that are not finite"):
                list(check_finite(cut_blocks(large), "large", "file"))


@pytest.mark.parametrize("name", ["nothing.safetensors", "nothing.pt", "nothing"])
def test_a_path_that_is_not_there_is_named(tmp_path, capsys, name):
    assert f"{tmp_path}/{name}: " in refused(capsys, "convert", "--from", tmp_path / name, "--out", tmp_path / "ours")


def test_other_people_s_folders_are_not_written_into(tmp_path, capsys):
    save_ltx2(tmp_path / "ltx.safetensors")
    line = refused(capsys, "convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path)
    assert line == f"error: {tmp_path}: is neither empty nor a weights folder; choose another --out"


def test_an_output_that_exists_is_not_written_over(tmp_path, capsys):
    save_ltx2(tmp_path / "ltx.safetensors")
    run("convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path / "ours")
    command = ("export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", tmp_path / "ltx.safetensors")
    assert refused(capsys, *command) == f"error: {tmp_path}/ltx.safetensors: exists already; choose another --out"


@pytest.mark.parametrize(("flag", "near"), [("--form", "--from"), ("--rotery", "--rotary")])
def test_an_unknown_flag_is_answered_with_the_nearest(capsys, flag, near):
    assert refused(capsys, "convert", flag, "x") == f"error: unknown flag {flag}; did you mean {near}?"
