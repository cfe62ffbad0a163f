"""Training's two programs beside ltx-core's: the same function, and both ratios in the file."""

import json

import pytest

from experiments.bench import train


@pytest.mark.long
def test_ours_and_ltx_core_compute_the_same_and_both_are_timed(tmp_path, capsys):
    path = tmp_path / "out" / "train.json"
    train.main(
        train.Arguments(json=path, layers=1, heads=2, video_head=32, audio_head=16, grid=(2, 2), seconds=1, repeats=1)
    )
    figures = json.loads(path.read_text())
    assert 0 < figures["largest_difference"] < 1e-3
    said = capsys.readouterr().out
    for name in ("teacher_forward", "student_gradient"):
        row = figures[name]
        assert row["ratio"] == pytest.approx(row["ours_s"] / row["ltx_core_s"])
        assert f"{name}: ours" in said
