"""The benchmark: its figures are there, and mean what they say."""

import json
import re

import pytest
from tiny_stream import PROMPT, folders, student

from experiments.bench import gpu
from omniforcing_jax.cli import bench_stream
from omniforcing_jax.cli.options import BenchOptions
from omniforcing_jax.stream.plan import plan_stream
from omniforcing_jax.stream.request import StreamRequest

# As issue 2 fixes them.
KEYS = re.findall(
    r"\w+",
    """device, preset, blocks, compiles, compiles_after_block2, first_frame_s, ttfc_s, ttfc_cold_s, fps,
    realtime_factor, block_ms, first100_p50_ms, last100_p50_ms, rss_mb_block10, rss_mb_end, device_bytes_block10,
    device_bytes_end, underruns, parts""",
)
PARTS = {"text", "denoise", "clean_pass", "video_decode", "audio_decode", "copy", "mux"}


def figures_subject(blocks=13):
    plan = plan_stream(student(), StreamRequest(prompt=PROMPT))
    return bench_stream.BenchSubject(pipeline=student(), plan=plan, blocks=blocks)


def figures(blocks=13, mux=True):
    return bench_stream.measure(figures_subject(blocks), mux=mux, cold_s=None)


def test_the_figures_of_a_run_are_those_that_others_rely_on():
    found = figures()
    assert list(found) == KEYS
    assert found["preset"] == "tiny"
    assert found["blocks"] == 13
    assert found["compiles_after_block2"] == 0
    assert found["device_bytes_end"] == found["device_bytes_block10"]
    assert set(found["block_ms"]) == {"p50", "p95", "max"}
    assert set(found["parts"]) == PARTS
    assert all(milliseconds > 0 for milliseconds in found["parts"].values())
    assert found["fps"] == pytest.approx(24 * found["realtime_factor"], rel=0.01)


def test_without_a_file_nothing_is_muxed():
    assert figures(blocks=4, mux=False)["parts"]["mux"] is None


def test_a_run_counts_late_chunks_and_speed_from_the_second_block_on():
    run = bench_stream.StreamTimings(
        times=[10.0, 10.5, 11.0, 12.9], frames=[1, 24, 24, 24], starts=[0.0, 1 / 24, 25 / 24, 49 / 24]
    )
    assert run.block_ms == pytest.approx([500, 1900])
    assert run.frames_per_second == pytest.approx(48 / 2.4)
    assert run.underruns == 2  # at 0.5 s for 0.04 s, and at 2.9 s for 2.04 s


def test_a_cold_start_says_when_a_second_could_be_played_and_what_it_compiled(capsys, tmp_path):
    command = BenchOptions(what="stream", blocks=3, json=tmp_path / "a.json", weights=str(folders() / "student"))
    bench_stream.start_cold(command)
    answer = json.loads(capsys.readouterr().out)
    assert answer["seconds"] > 0
    assert answer["compiled"] >= 0


def test_the_table_of_the_full_size_runs_at_a_tiny_size(tmp_path):
    path = tmp_path / "a.json"
    arguments = gpu.Arguments(json=path, preset="tiny", steps=(4, 2), windows=(0,), blocks=4, dtype="float32")
    found = gpu.run(arguments)
    assert [(row["steps"], row["window"], row["dtype"]) for row in found["rows"]] == [(2, 0, "float32")]
    assert gpu.format_row(found["rows"][0]).count("|") == 1 + len(gpu.HEAD)
    assert json.loads(path.read_text()) == found


def test_a_run_that_fails_is_a_row_too(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "measure", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(gpu, "_load", lambda *_: figures_subject())
    found = gpu.run(gpu.Arguments(json=tmp_path / "a.json", preset="tiny", windows=(0, 2)))
    assert [row["error"] for row in found["rows"]] == ["ZeroDivisionError: division by zero"] * 2
    assert "division by zero" in gpu.table(found)
