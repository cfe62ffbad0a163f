import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import compile_for_pod
from experiments.compile_for_pod import Arguments
from experiments.pod import plan, programs
from experiments.pod.plan import CHIPS, Program, Slice, rank
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.pipeline.presets import LTX2_19B_STREAM, TINY_STREAM

ROOT = Path(__file__).parents[2]
LIBTPU = Path(sys.prefix) / "libtpu"
FIELDS = {"argument_bytes", "temp_bytes", "peak_bytes", "hbm_bytes", "flops", "collectives", "mesh", "remat"}
FIELDS |= {"seconds_bound"}
PER_FRAME, TEXT = 384, 1024


def ranked(program, topology):
    model, sampler = LTX2_19B_STREAM.model, LTX2_19B_STREAM.sampler
    return rank(program, model, sampler, PER_FRAME, TEXT, Slice.parse(topology))


@pytest.mark.parametrize("program", Program)
def test_every_mesh_that_is_ranked_uses_all_chips_and_cuts_the_network(program):
    estimates = ranked(program, "v6e:8x16")
    assert len({str(one.mesh) for one in estimates}) == len(estimates) > 3
    for one in estimates:
        assert one.mesh.devices == 128
        one.mesh.check_network(LTX2_19B_STREAM.model)


def test_meshes_that_should_fit_come_first():
    fits = [one.bytes <= 0.85 * CHIPS["v6e"].hbm_bytes for one in ranked(Program.CRITIC, "v6e:8x16")]
    assert fits == sorted(fits, reverse=True)
    assert 0 < sum(fits) < len(fits)


def test_less_memory_wants_more_tensor_parallelism():
    assert ranked(Program.STAGE2, "v5p:4x4x4")[0].mesh.tensor == 1
    assert ranked(Program.STAGE2, "v6e:8x16")[0].mesh.tensor > 1
    assert ranked(Program.STREAM, "v6e:8x16")[0].mesh.tensor > 1


def test_gathering_over_all_chips_of_a_deep_slice_is_slower():
    assert [Slice.parse(f"v5p:{sides}").is_deep for sides in ("4x4x4", "8x16", "2x4x4")] == [True, False, False]
    cube, flat = (
        {str(one.mesh): one.seconds for one in ranked(Program.STAGE2, f"v5p:{sides}")} for sides in ("4x4x4", "8x8")
    )
    assert {mesh for mesh, seconds in cube.items() if seconds > flat[mesh]} == {"1,64,1"}


def test_a_block_of_a_stream_is_five_forwards():
    model, sampler = LTX2_19B_STREAM.model, LTX2_19B_STREAM.sampler
    flops = plan.program_flops(Program.STREAM, model, sampler, PER_FRAME, TEXT)
    assert flops == pytest.approx(182e12, rel=5e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"topology": "v3:4x4"}, "--topology v3:4x4"),
        ({"topology": "v5p:4x"}, "--topology v5p:4x: must be"),
        ({"preset": "ltx9"}, "--preset ltx9: must be one of"),
        ({"mesh": "1,3,1"}, "--mesh 1,3,1"),
        ({"mesh": "1,2,1"}, "has 2 places"),
        ({"preset": "tiny-teacher"}, "is not a causal student"),
    ],
)
def test_bad_input_is_one_line(wrong, said, monkeypatch, capsys):
    monkeypatch.setattr(compile_for_pod, "topology_devices", lambda name: jax.devices()[:4])
    config = Arguments(**{"topology": "v5e:2x2", "program": "stream", "preset": "tiny", **wrong})
    with pytest.raises(SystemExit) as end:
        compile_for_pod.main(config)
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert said in error


def test_a_stream_of_a_mesh_is_measured(tmp_path, monkeypatch):
    """The whole command, its devices those of this machine."""
    monkeypatch.setattr(compile_for_pod, "topology_devices", lambda name: jax.devices()[:4])
    file = tmp_path / "stream.json"
    told = {"topology": "v5e:2x2", "program": "stream", "preset": "tiny", "kernel": "plain"}
    compile_for_pod.main(Arguments(**told, mesh="2,1,2", layers=2, text=8, json=file))
    figures = json.loads(file.read_text())
    assert set(figures) >= FIELDS
    assert figures["batch"] == 2
    subject = programs.Subject(preset=programs.shortened(TINY_STREAM, 2), batch=1, text=8)
    per_frame = subject.static.grid[0] * subject.static.grid[1]
    wanted = plan.program_flops(Program.STREAM, subject.preset.model, subject.sampler, per_frame, 8) / 2
    assert figures["flops"] == pytest.approx(wanted, rel=0.03)
    sums = [one for one in figures["collectives"] if one["kind"] == "all-reduce"]
    assert sum(one["times"] for one in sums) >= 3 * 4
    assert all(one["group"] == 2 for one in figures["collectives"])


@pytest.fixture(scope="module")
def lowered_stage2():
    """The text of a small stage 2 for four devices, before XLA cuts it."""
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    subject = programs.Subject(preset=programs.shortened(TINY_STREAM, 1), batch=2, text=8)
    with jax.set_mesh(mesh):
        return programs.lower(Program.STAGE2, subject, mesh).as_text()


def test_a_step_is_lowered_with_its_state_donated_and_cut(lowered_stage2):
    head = next(line for line in lowered_stage2.splitlines() if "func.func public @main" in line)
    matrices = [piece for piece in head.partition(") -> (")[0].split("%arg") if "tensor<1x256x64xf32>" in piece]
    assert len(matrices) == 3  # the way into the video's mlp: weights and both moments
    assert all('{"tensor", "fsdp"}, {}' in piece and "tf.aliasing_output" in piece for piece in matrices)


def test_modulation_rows_of_a_level_per_block_are_cut_over_the_batch(lowered_stage2):
    """Otherwise their gradients are summed over all chips in every layer: 94 of 203 GB on 64 chips."""
    cut = r'sdy.sharding_constraint \S+ <@mesh, \[\{"replica", "fsdp"\}, \{\}, \{\}, \{\}\]> : tensor<2x(\S+)xf32>'
    rows = collections.Counter(re.findall(cut, lowered_stage2))
    # Sound of 78 tokens, sinks among them: main, cross and gate; forward, forward again, backward.
    assert {shape: times for shape, times in rows.items() if shape.startswith("78x")} == {
        "78x6x32": 3,
        "78x4x32": 3,
        "78x1x32": 3,
    }
    assert {shape.partition("x")[0] for shape in rows} == {"10", "78"}


@pytest.mark.skipif(not (LIBTPU / "libtpu").is_dir(), reason=f"no {LIBTPU}: `make libtpu` could not install it")
@pytest.mark.parametrize("program", ["stream", pytest.param("stage2", marks=pytest.mark.long)])
def test_a_small_network_is_compiled_for_tpus(program, tmp_path):
    file = tmp_path / "figures.json"
    command = f"-m experiments.compile_for_pod --topology v5e:2x2 --program {program} --preset tiny --layers 1 --text 8"
    made = subprocess.run(
        [sys.executable, *command.split(), "--json", str(file)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(LIBTPU)},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    figures = json.loads(file.read_text())
    assert set(figures) >= FIELDS
    assert 0 < figures["argument_bytes"] < figures["peak_bytes"] < figures["hbm_bytes"]
    assert figures["flops"] > 0
