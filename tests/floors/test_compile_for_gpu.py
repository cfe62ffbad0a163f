"""The command that compiles for a GPU; the compilation itself only where `make cuda` was run."""

import dataclasses
import json
import typing

import jax
import jax.numpy as jnp
import pytest

from experiments import compile_for_gpu
from experiments.compile_for_gpu import PYTHON, Arguments
from experiments.floors import programs
from experiments.floors.compiling import Request
from experiments.floors.targets import TARGETS
from experiments.pod.plan import Program, program_flops
from experiments.pod.programs import Subject, shortened
from omniforcing_jax.pipeline.presets import CHIME_STREAM, LTX2_19B_STREAM
from omniforcing_jax.rollout import make_cache

KEYS = {"argument_bytes", "temp_bytes", "peak_bytes", "kernels", "tflop", "floor_ms", "categories"}
ROW = {"runs", "tflop", "read_gb", "written_gb", "floor_ms"}
MADE = {
    "argument_bytes": 40e9,
    "temp_bytes": 2e9,
    "peak_bytes": 42.5e9,
    "kernels": 12345.0,
    "tflop": 182.7,
    "floor_ms": 12.25,
    "categories": {"weights_copied": dict.fromkeys(ROW, 0.0) | {"runs": 12345.0, "floor_ms": 12.25}},
}
KERNEL = {"floor_ms": 1.5, "runs": 48.0, "category": "moved", "read_mb": 9.44, "written_mb": 0.0, "path": "jit(f)/mul"}


def refused(capsys, **wrong):
    with pytest.raises(SystemExit) as end:
        compile_for_gpu.main(Arguments(**{"target": "h100", "program": "denoise", **wrong}))
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    return error


def test_flags_name_all_targets_and_all_programs_and_all_that_the_compiler_is_told():
    assert {field.name for field in dataclasses.fields(Request)} < {
        field.name for field in dataclasses.fields(Arguments)
    }
    kinds = typing.get_type_hints(Arguments)
    assert set(typing.get_args(kinds["target"])) == set(TARGETS)
    assert set(typing.get_args(kinds["program"])) == set(programs.LOWERED)


def test_without_the_environment_one_line_says_how_to_make_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(compile_for_gpu, "PYTHON", tmp_path / ".venv-cuda" / "bin" / "python")
    wanted = "error: .venv-cuda, the environment with CUDA's compilers, is missing: run `make cuda`\n"
    assert refused(capsys) == wanted


@pytest.mark.parametrize(
    ("preset", "said"), [("ltx9", "ltx9: must be one of"), ("tiny-teacher", "bidirectional teacher")]
)
def test_a_preset_that_is_no_student_is_refused_before_any_process(capsys, monkeypatch, preset, said):
    monkeypatch.setattr(compile_for_gpu, "PYTHON", None)
    assert said in refused(capsys, preset=preset)


@pytest.mark.parametrize(
    ("code", "said", "error"),
    [
        (2, "error: custom call x: not known\n", "error: custom call x: not known\n"),
        (1, "Traceback\n  line\njax.errors.JaxRuntimeError: no room\n----\nFor simplicity, JAX\n", "no room"),
    ],
)
def test_what_the_other_environment_says_is_said_in_one_line(capsys, monkeypatch, tmp_path, code, said, error):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '%s' '{said}' >&2\nexit {code}\n")
    python.chmod(0o755)
    monkeypatch.setattr(compile_for_gpu, "PYTHON", python)
    assert error in refused(capsys)


def test_the_figures_are_printed_as_a_table_and_written(capsys, monkeypatch, tmp_path):
    python, file = tmp_path / "python", tmp_path / "figures.json"
    python.write_text(
        f"#!/bin/sh\necho $XLA_FLAGS > {tmp_path}/flags\necho '{json.dumps(MADE | {'dearest': [KERNEL]})}'\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(compile_for_gpu, "PYTHON", python)
    compile_for_gpu.main(Arguments(target="h100", program="denoise", json=file, xla_flags="--more=1"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("arguments 40.00 GB, temporaries 2.00, at its peak 42.50 of 84.9 (50%)")
    assert lines[1] == "12,345 kernels, 182.7 TFLOP, floor 12.2 ms"
    assert lines[4] == "| weights_copied | 12,345 | 0.00 | 0.00 | 0.00 | 12.25 |"
    assert lines[-1] == "| 1.500 | 48 | moved | 9.4 | 0.0 | jit(f)/mul |"
    assert json.loads(file.read_text()) == MADE
    assert (tmp_path / "flags").read_text().split()[-1] == "--more=1"


@pytest.mark.skipif(not PYTHON.exists(), reason="needs CUDA's compilers: run `make cuda`")
def test_a_small_denoise_is_compiled_and_its_sums_are_those_of_the_closed_formula():
    """One layer of the small world. Its rows are padded to a multiple of eight, which the formula does not know."""
    found = compile_for_gpu.run(Arguments(target="h100", program="denoise", preset="chime", layers=1, text=8, top=2))
    assert set(found) == KEYS | {"dearest"}
    assert found["dearest"][0]["floor_ms"] >= found["dearest"][1]["floor_ms"] > 0
    assert all(set(row) == ROW for row in found["categories"].values())
    assert {"weights_copied", "cache_copied"} <= set(found["categories"])
    subject = Subject(preset=shortened(CHIME_STREAM, 1), batch=1, text=8)
    per_frame = subject.static.grid[0] * subject.static.grid[1]
    model, sampler = subject.preset.model, subject.sampler
    wanted = program_flops(Program.STREAM, model, sampler, per_frame, 8) * sampler.steps / (sampler.steps + 1) / 1e12
    assert wanted < found["tflop"] < 1.5 * wanted
    past = jax.tree.leaves(make_cache.eval_shape(subject.static, 1, True).past)
    past_bytes = sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in past)
    assert found["argument_bytes"] > past_bytes
    weights_gb = 1e-9 * (found["argument_bytes"] - past_bytes) * sampler.steps
    assert found["categories"]["weights_copied"]["written_gb"] < 0.1 * weights_gb  # biases and tables, no matrix
    assert found["categories"]["cache_copied"]["written_gb"] == 0
    assert found["peak_bytes"] > found["argument_bytes"]
    assert found["kernels"] == sum(row["runs"] for row in found["categories"].values())


def test_an_argument_of_each_role_is_known():
    assert {"params", "codecs", "cache", "prompt"} <= set(programs.ROLES)
    assert LTX2_19B_STREAM.name == Arguments(target="h100", program="block").preset
