"""The whole run: its parts' flags, what it needs to be imported, and in the long suite all of it at a tiny size."""

import ast
import importlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import tyro

from experiments.bench import on_gpu
from experiments.gpu.boxes import INNER
from omniforcing_jax.pipeline.presets import PRESETS

ROOT = Path(__file__).parent.parent.parent
ABSENT = ("av", "librosa", "torch", "ltx_core", "lmdb", "tensorboardX", "diffusers", "transformers")
IMPORT_ALL = """\
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import {modules}
print("ok")
"""


@pytest.mark.parametrize("tiny", [False, True])
def test_every_part_takes_its_flags(tiny, tmp_path):
    parts = on_gpu.chosen_parts(on_gpu.Arguments(out=tmp_path, tiny=tiny), tmp_path)
    assert [part.name for part in parts] == ["kernels", "stream", "overlap", "train", "start"]
    for part in parts:
        arguments = tyro.cli(importlib.import_module(part.module).Arguments, args=part.command(tmp_path, 60.0)[3:])
        assert arguments.json == tmp_path / f"{part.name}.json"
        assert arguments.minutes == pytest.approx(INNER)
        assert getattr(arguments, "preset", "tiny") in PRESETS


def test_parts_run_in_their_order_and_share_a_cache(tmp_path):
    parts = on_gpu.chosen_parts(on_gpu.Arguments(out=tmp_path, parts=("start", "kernels")), tmp_path)
    assert [part.name for part in parts] == ["kernels", "start"]
    made = on_gpu.environment(tmp_path, tiny=False)
    assert Path(made["XDG_CACHE_HOME"]).is_dir()
    assert made.items() >= {(name, value) for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    assert "XLA_FLAGS" not in made.keys() - os.environ.keys()


def test_all_of_it_imports_on_a_bare_machine():
    modules = ", ".join([on_gpu.__name__, *(part.module for part in on_gpu.PARTS)])
    code = IMPORT_ALL.format(absent=set(ABSENT), modules=modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr


def test_all_of_it_is_python_3_12():
    for path in [*ROOT.glob("experiments/gpu/*.py"), *ROOT.glob("experiments/bench/*.py")]:
        ast.parse(path.read_text(), feature_version=(3, 12))


def test_what_is_run_there_fits_into_one_command():
    lines = [line.strip() for line in on_gpu.__doc__.splitlines() if line.startswith("    python3 -m")]
    install, *runs = [line for line in lines if "pip download" not in line]
    assert all(len(f"{install}; {run}") < 2000 for run in runs)


def test_tables_are_written_of_whatever_there_is(tmp_path):
    (tmp_path / "kernels.json").write_text(json.dumps({"rows": [{"site": "a2v", "form": "plain", "error": "lost"}]}))
    for name in ("stream", "overlap", "train", "start"):
        (tmp_path / f"{name}.json").write_text("{}")
    text = on_gpu.summary({"machine": {}, "parts": []}, tmp_path, on_gpu.PARTS)
    assert "| a2v |" in text
    (tmp_path / "kernels.json").unlink()
    assert "no figures" in on_gpu.summary({"machine": {}, "parts": []}, tmp_path, on_gpu.PARTS)


@pytest.mark.long
def test_all_of_it_runs_at_a_tiny_size(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.bench.on_gpu", "--tiny", "--minutes", "15", "--out", str(out)]
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # no eight fake devices
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    log = (out / "on_gpu.log").read_text()[-3000:]
    assert done.returncode == 0, done.stderr + log
    files = {path.name: path for path in out.iterdir()}
    assert set(files) == {
        *("kernels.json", "stream.json", "overlap.json", "train.json", "start.json"),
        *("on_gpu.json", "on_gpu.log", "teacher.tar", "student.tar"),
    }
    found = {name[:-5]: json.loads(path.read_text()) for name, path in files.items() if name.endswith(".json")}
    assert [(part["part"], part["how"]) for part in found["on_gpu"]["parts"]] == [
        (part.name, "done") for part in on_gpu.PARTS
    ], log
    assert all(figures["complete"] for figures in found.values())
    check_kernels(found["kernels"])
    check_stream(found["stream"])
    assert found["overlap"]["rows"][0]["fps"] > 0
    check_train(found["train"])
    check_start(found["start"])
    for name in ("teacher", "student"):
        with tarfile.open(files[f"{name}.tar"]) as tar:
            assert f"{name}/transformer/model.safetensors" in tar.getnames()
    for part in on_gpu.PARTS:
        assert f"### {part.name}" in done.stdout


def check_kernels(figures):
    forms = {(row["site"], row["form"]) for row in figures["rows"]}
    assert forms >= {("video_self", "merged"), ("a2v", "merged"), ("audio_text", "plain")}
    assert all(row["error"] < 1e-2 and row["ms"] > 0 for row in figures["rows"])


def check_stream(figures):
    assert [row["weights"] for row in figures["rows"]] == ["wide", "float8"]
    for row, profile, start in zip(figures["rows"], figures["profile"], figures["start"], strict=True):
        assert (row["dtype"], row["steps"], row["window"]) == ("bfloat16", 2, 0)
        assert row["fps"] > 0
        assert row["compiles_after_block2"] == 0
        assert profile["weights"] == start["weights"] == row["weights"]
        assert 0 < profile["busy_ms"] <= profile["kernel_ms"]
        assert profile["busy_ms"] < profile["wall_ms"]
        assert len(profile["top"]) == 20
        assert {each["program"] for each in profile["top"]} >= {"_render", "decode_audio", "denoise_block"}
        assert start["first_chunk_s"] > start["weights_s"]
    assert "jit(denoise_block)" in {row["program"] for row in figures["compiled"]}


def check_train(figures):
    for name in ("teacher", "student"):
        assert figures[name]["steps"] >= 2
        assert figures[name]["clips_per_s"] > 0
        assert figures[name]["curve"][-1]["step"] == figures[name]["steps"]


def check_start(figures):
    assert figures["starts"][-1]["compiled"] == 0
    assert figures["starts"][-1]["playable_s"] > figures["starts"][-1]["imports_s"]
    assert [row["decoder"] for row in figures["decode"]] == ["video", "audio"]
    assert all(row["ms"] > 0 for row in figures["decode"])
