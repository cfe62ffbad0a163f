"""A profile's summary: time without what lies inside, time in which anything ran, and names of scopes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from experiments.gpu import trace
from experiments.gpu.trace import Op

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0.2: f32[8,8]) -> f32[8,8] {
  %param_0.2 = f32[8,8]{1,0} parameter(0)
  ROOT %tanh.1 = f32[8,8]{1,0} tanh(%param_0.2), metadata={op_name="jit(step)/while/body/layers/mlp/tanh" id=3}
}

ENTRY %main.4 (x.1: f32[8,8]) -> f32[8,8] {
  %x.1 = f32[8,8]{1,0} parameter(0), metadata={op_name="x"}
  %custom-call.2 = f32[8,8]{1,0} custom-call(%x.1), metadata={op_name="jit(step)/layers/video_self/dot_general"}
  ROOT %loop_fusion = f32[8,8]{1,0} fusion(%custom-call.2), kind=kLoop, calls=%fused_computation.1
}
"""
PATHS = {"jit_step": [{"custom-call.9": "jit(step)/other/add"}, trace.paths_of(PROGRAM)]}


def op(name, start, stop, line="Stream #1", module="jit_step"):
    return Op(line, module, name, "", 1e6 * start, 1e6 * stop)


def test_a_program_is_read_with_the_paths_of_its_fusions():
    assert PATHS["jit_step"][1]["loop_fusion"] == "jit(step)/while/body/layers/mlp/tanh"
    assert trace.scope_of(PATHS["jit_step"][1]["loop_fusion"]) == "layers/mlp"
    assert trace.scope_of("jit(step)/add") == trace.UNNAMED


def test_time_is_summed_by_scope_and_compared_with_the_wall():
    ops = [
        op("while", 0, 10, line="thread"),
        op("loop_fusion", 1, 4, line="thread"),
        op("custom-call.2", 8, 12),
        op("MemcpyD2H", 20, 21, module=""),
    ]
    found = trace.summarise(ops, PATHS, wall_s=0.026)
    assert found["kernel_ms"] == 15  # the loop's own 7, and 3, 4, 1
    assert found["busy_ms"] == 13
    assert found["busy_share"] == 0.5
    assert found["host_to_device"] == 2
    rows = {(row["program"], row["scope"]): (row["ms"], row["most"]) for row in found["top"]}
    assert rows == {
        ("step", trace.UNNAMED): (7, "while"),
        ("step", "layers/video_self"): (4, "custom-call"),
        ("step", "layers/mlp"): (3, "loop_fusion"),
        ("copies", trace.UNNAMED): (1, "MemcpyD2H"),
    }


def event(name, **stats):
    return SimpleNamespace(name=name, start_ns=5.0, duration_ns=2.0, stats=list(stats.items()))


def test_kernels_of_a_cuda_graph_have_the_scopes_of_their_fusions_or_their_own_names(tmp_path, monkeypatch):
    graph = {"hlo_op": "command_buffer_3", "hlo_module": "jit_step"}
    events = [event("loop_fusion_1", **graph), event("nvjet_128x256", **graph)]
    gpu = SimpleNamespace(name="/device:GPU:0", lines=[SimpleNamespace(name="Stream #7(Compute)", events=events)])
    (tmp_path / "a.xplane.pb").touch()
    monkeypatch.setattr(jax.profiler.ProfileData, "from_file", lambda _: SimpleNamespace(planes=[gpu]))
    paths = {"jit_step": [trace.paths_of(PROGRAM.replace("loop_fusion", "loop_fusion.1"))]}
    found = trace.by_scope(trace.read_trace(tmp_path), paths)
    assert {scope: list(each.instructions) for (_, scope), each in found.items()} == {
        "layers/mlp": ["loop_fusion"],
        "nvjet_128x256": ["nvjet_128x256"],
    }


def test_of_a_gpu_only_streams_are_read(tmp_path, monkeypatch):
    kernel = event("cudnn_fmha", hlo_op="custom-call.2", hlo_module="jit_step", tf_op="jit(step)/layers/a2v/dot:")
    gpu = SimpleNamespace(
        name="/device:GPU:0",
        lines=[
            SimpleNamespace(name="Stream #7(Compute)", events=[kernel, event("MemcpyD2H")]),
            SimpleNamespace(name="XLA Modules", events=[event("jit_step")]),
        ],
    )
    host = SimpleNamespace(name="/host:CPU", lines=[SimpleNamespace(name="tf", events=[event("x", hlo_op="x")])])
    (tmp_path / "a.xplane.pb").touch()
    monkeypatch.setattr(jax.profiler.ProfileData, "from_file", lambda _: SimpleNamespace(planes=[host, gpu]))
    ops = trace.read_trace(tmp_path)
    assert [(each.name, each.module) for each in ops] == [("custom-call.2", "jit_step"), ("MemcpyD2H", "")]
    assert {scope for _, scope in trace.by_scope(ops, {})} == {"layers/a2v", trace.UNNAMED}


def test_a_folder_without_a_profile_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no profile"):
        trace.read_trace(tmp_path)


def test_a_real_profile_names_its_scopes(tmp_path):
    @jax.jit
    def traced_step(x):
        with jax.named_scope("outer"):
            return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x)

    x = jnp.ones((128, 128))
    traced_step(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        traced_step(x).block_until_ready()
    found = trace.summarise(trace.read_trace(tmp_path), trace.live_paths(), 1.0)
    assert ("traced_step", "outer") in {(row["program"], row["scope"]) for row in found["top"]}
