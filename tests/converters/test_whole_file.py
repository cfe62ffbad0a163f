"""A file with all components, none of them without a table, comes back bit by bit."""

import dataclasses
import json

import ml_dtypes
import numpy as np
from published import CODECS, SMALL, draw_network, text_path
from run import run
from safetensors.numpy import save_file
from tiny_text import ENCODER

from converters.component import HUGGING_FACE, LTX2
from converters.registry import COMPONENTS, PREFIXES

TEXT = dataclasses.replace(ENCODER.gemma, vocabulary=11, width=8, mlp_width=12)

CONFIGS = {"transformer": SMALL, "connectors": text_path(SMALL), **CODECS}


def write_whole(path):
    """Write a file with every component and a tensor that nobody uses."""
    tensors, header = {}, {}
    for name in PREFIXES:
        component = COMPONENTS[name]
        tensors |= draw_network(CONFIGS[name], component=component, dtype=ml_dtypes.bfloat16)
        for section, values in component.namings[LTX2].table.write(CONFIGS[name]).items():
            header[section] = {**header.get(section, {}), **values}
    tensors["vae.per_channel_statistics.channel"] = np.arange(8, dtype=np.float32)
    save_file(tensors, path, {"config": json.dumps(header)})


def test_a_whole_file_comes_back_bit_by_bit(tmp_path, capsys):
    write_whole(tmp_path / "whole.safetensors")
    run("convert", "--from", tmp_path / "whole.safetensors", "--out", tmp_path / "ours")
    told = capsys.readouterr().out
    assert "untouched" in told
    run("inspect", tmp_path / "ours")
    assert "sample: can run" in capsys.readouterr().out
    run("export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    capsys.readouterr()


def test_through_diffusers_nothing_is_lost(tmp_path, capsys):
    write_whole(tmp_path / "whole.safetensors")
    folders = [tmp_path / name for name in ("ours", "again")]
    run("convert", "--from", tmp_path / "whole.safetensors", "--out", folders[0])
    run("export", "--from", folders[0], "--to", "diffusers", "--out", tmp_path / "pipeline")
    run("convert", "--from", tmp_path / "pipeline", "--out", folders[1])
    for name in PREFIXES:
        for file in ("model.safetensors", "config.json"):
            assert (folders[0] / name / file).read_bytes() == (folders[1] / name / file).read_bytes(), name
    capsys.readouterr()


def test_a_folder_of_hugging_face_s_comes_with_its_tokenizer_and_goes_back(tmp_path, capsys):
    folder, ours = tmp_path / "gemma", tmp_path / "ours"
    folder.mkdir()
    tensors = draw_network(TEXT, HUGGING_FACE, component=COMPONENTS["text"])
    tensors["vision_tower.patch.weight"] = np.ones(3, np.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values = COMPONENTS["text"].namings[HUGGING_FACE].table.write(TEXT) | {"mm_tokens_per_image": 256}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.model").write_text("")
    run("convert", "--from", folder, "--out", ours)
    assert "text: no prompt can be read: tokenizer.model alone is not read" in capsys.readouterr().out
    run("inspect", ours)
    assert "prompts: cannot run: no connectors, no text/tokenizer.json; --contexts" in capsys.readouterr().out
    (folder / "tokenizer.json").write_text("{}")
    run("convert", "--from", folder, "--out", ours)
    assert "no prompt can be read" not in capsys.readouterr().out
    assert (ours / "text/tokenizer.json").read_text() == "{}"
    run("export", "--from", ours, "--to", "diffusers", "--out", tmp_path / "back")
    back = tmp_path / "back/text_encoder"
    assert (back / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((back / "config.json").read_text()) == values
    assert (tmp_path / "back/tokenizer/tokenizer.json").read_text() == "{}"
    capsys.readouterr()
