"""A stream beside PyTorch's: the same latents, and the ratio in the file."""

import json

import pytest

from experiments.bench import reference


@pytest.mark.long
def test_ours_and_pytorch_roll_out_the_same_clip_and_both_are_timed(tmp_path, capsys):
    path = tmp_path / "out" / "reference.json"
    sizes = {"layers": 2, "heads": 2, "video_head": 32, "audio_head": 16, "grid": (2, 2)}
    reference.main(reference.Arguments(json=path, **sizes, blocks=4, repeats=1))
    figures = json.loads(path.read_text())
    assert 0 < figures["largest_difference"] < 1e-3
    assert figures["ratio"] == pytest.approx(figures["pytorch_s"] / figures["ours_s"])
    assert "a block: ours" in capsys.readouterr().out
