"""Folders and files of the hub: parts that are not ours are passed by with a word, others told by name."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from brought import SMALL, save_base, save_fine_tune, save_gemma_folder, save_pipeline
from run import refused, run
from safetensors.numpy import save_file

from converters.tensor_folder import CONTENTS
from converters.tokenizer_files import find_tokenizer
from omniforcing_jax.io.foreign_file import name_foreign
from omniforcing_jax.io.plain_text import one_line, printable
from omniforcing_jax.io.tensor_file import open_tensors

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_part_that_nothing_uses_is_passed_by_with_a_word_and_an_upsampler_is_not(tmp_path, capsys):
    run("convert", "--from", save_pipeline(tmp_path / "LTX-2"), "--out", tmp_path / "ours")
    told = capsys.readouterr().out
    assert "passed by, nothing here uses it: duration_head (LTX2DurationHead)" in told
    assert "spatial_upsampler: diffusers" in told
    run("inspect", tmp_path / "LTX-2")
    assert "duration_head (LTX2DurationHead)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["duration_head", "processor", "text_encoder_2", "safety_checker"])
def test_so_is_any_other_part(tmp_path, capsys, name):
    folder = save_pipeline(tmp_path / "LTX-2", extras=False)
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps({"model_type": "other"}))
    run("convert", "--from", folder, "--out", tmp_path / "ours")
    assert f"{name} (other)" in capsys.readouterr().out


def test_a_pipeline_with_none_of_our_parts_is_refused(tmp_path, capsys):
    (tmp_path / "p" / "unet").mkdir(parents=True)
    (tmp_path / "p" / "unet" / "config.json").write_text("{}")
    (tmp_path / "p" / "model_index.json").write_text("{}")
    line = refused(capsys, "convert", "--from", tmp_path / "p", "--out", tmp_path / "ours")
    assert "p: has a model_index.json, but none of transformer, connectors" in line


def test_notes_of_a_system_beside_the_weights_are_not_weights(tmp_path):
    folder = save_pipeline(tmp_path / "LTX-2") / "transformer"
    (folder / "._diffusion_pytorch_model.safetensors").write_bytes(b"\0\5\x16\7")
    run("convert", "--from", folder, "--out", tmp_path / "ours")


@pytest.mark.parametrize(
    ("own", "beside", "taken"),
    [
        (["tokenizer.json"], ["tokenizer.json", "tokenizer.model"], {"tokenizer.json": "own"}),
        ([], ["tokenizer.json"], {"tokenizer.json": "beside"}),
        (["tokenizer_config.json"], ["tokenizer.json"], {"tokenizer.json": "beside"}),
        (["tokenizer.model"], [], {"tokenizer.model": "own"}),
    ],
)
def test_the_tokenizer_is_that_of_the_model_s_folder_before_that_of_another_one(tmp_path, own, beside, taken):
    for folder, names in (("gemma", own), ("tokenizer", beside)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text("own" if folder == "gemma" else "beside")
    found = [Path(file) for file in find_tokenizer(tmp_path / "gemma")]
    assert {path.name: path.read_text() for path in found} == taken


def test_a_tokenizer_that_is_a_pointer_is_named_before_any_work(tmp_path, capsys):
    folder = save_gemma_folder(tmp_path / "gemma")
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4\nsize 33384568\n")
    line = refused(capsys, "convert", "--from", folder, "--out", tmp_path / "ours")
    assert line.startswith(f"error: {folder}/tokenizer.json: is a pointer of Git LFS")


def test_a_pointer_among_shards_is_named(tmp_path, capsys):
    save_file({"a": np.zeros(2)}, tmp_path / "a-00001-of-00002.safetensors")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4\nsize 4\n"
    (tmp_path / "a-00002-of-00002.safetensors").write_text(pointer)
    places = {"a": "a-00001-of-00002.safetensors", "b": "a-00002-of-00002.safetensors"}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    line = refused(capsys, "inspect", tmp_path)
    assert "a-00002-of-00002.safetensors: is a pointer of Git LFS" in line


def test_a_file_that_is_all_of_its_shards_is_read_alone(tmp_path, capsys):
    run("inspect", save_base(tmp_path / "ltx-00001-of-00001.safetensors"))
    save_base(tmp_path / "ltx-00001-of-00002.safetensors")
    line = refused(capsys, "inspect", tmp_path / "ltx-00001-of-00002.safetensors")
    assert f"is one of several shards; name their folder, {tmp_path}" in line


@pytest.mark.parametrize("name", ["a.gguf", "a.msgpack", "a.pt", "mp_rank_00_model_states.pt", "__0_0.distcp", "a.bin"])
def test_a_folder_of_other_files_is_told_by_name(tmp_path, capsys, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(b"x")
    line = refused(capsys, "convert", "--from", tmp_path / "folder", "--out", tmp_path / "ours")
    assert any(f"folder: {what}" in line for what in CONTENTS.values())


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"Entry not found", "is an answer of the hub"),
        (b"Access to model x is restricted", "is an answer of the hub"),
        (b"<html>", "is a web page"),
        (b"GGUF\3\0\0\0", "is a GGUF file"),
        (b"PK\3\4data", "its name must end in .pt"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    ],
)
def test_a_file_is_told_by_its_head(tmp_path, capsys, head, words):
    assert words in str(name_foreign(head))
    (tmp_path / "a.safetensors").write_bytes(head)
    assert words in refused(capsys, "inspect", tmp_path / "a.safetensors")


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path):
    length = int.from_bytes(b"\x80\2", "little")
    text = json.dumps({"__metadata__": {"a": ""}})
    text = text.replace('""', f'"{"x" * (length - len(text))}"')
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text.encode())
    assert len(open_tensors(path).metadata["a"]) > 500


def test_a_pipe_is_refused_in_the_place_of_any_file(tmp_path, capsys):
    for place in ("model_index.json", "config.json", "model.safetensors", "model.safetensors.index.json", "model.pt"):
        folder = tmp_path / place.replace(".", "_")
        folder.mkdir()
        os.mkfifo(folder / place)
        path = folder / place if place == "model.pt" else folder
        assert place in refused(capsys, "convert", "--from", path, "--out", tmp_path / "ours")


def test_more_axes_than_an_array_can_have_are_refused(tmp_path, capsys):
    header = {"a": {"dtype": "U8", "shape": [1] * 65, "data_offsets": [0, 1]}}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0")
    assert "'a' has 65 axes, an array has at most 64" in refused(capsys, "inspect", tmp_path / "a.safetensors")


ESCAPE = "model\x1b]0;owned\x07\x1b[2J\u202e.\u2028weight"


def test_names_from_a_file_cannot_steer_a_terminal(tmp_path, capsys):
    save_file({ESCAPE: np.zeros(2)}, tmp_path / "a.safetensors")
    line = refused(capsys, "inspect", tmp_path / "a.safetensors")
    assert line.isprintable()
    assert r"unknown model\x1b]0;owned\x07\x1b[2J\u202e." in line
    save_base(tmp_path / "base.safetensors", SMALL)
    file = open_tensors(tmp_path / "base.safetensors")
    tensors = {key: file.read(key) for key in file.entries}
    save_file(tensors, tmp_path / "b.safetensors", {**file.metadata, ESCAPE: ESCAPE})
    run("inspect", tmp_path / "b.safetensors")
    assert all(each.isprintable() for each in capsys.readouterr().out.splitlines())


def test_text_of_half_a_letter_can_be_printed():
    assert printable("a\ud800\tb") == r"a\ud800\tb"
    assert one_line(" a\n b\x7f") == r"a b\x7f"


def test_a_lora_is_sent_to_its_flag_in_every_dialect(tmp_path, capsys):
    for key in ("a.lora_A.weight", "lora_unet_a.lora_down.weight", "diffusion_model.a.lokr_w1"):
        save_file({key: np.zeros((2, 2))}, tmp_path / "a.safetensors")
        assert "is a LoRA; fuse it" in refused(capsys, "convert", "--from", tmp_path / "a.safetensors", "--out", "x")


def test_a_part_of_a_checkpoint_names_its_folder(tmp_path, capsys):
    save_fine_tune(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    line = refused(capsys, "inspect", tmp_path / "model.safetensors.index.json")
    assert line.endswith(f"is a part of a checkpoint; name its folder, {tmp_path}")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.distcp")
    assert "name its folder" in refused(capsys, "inspect", tmp_path / "x.distcp")
