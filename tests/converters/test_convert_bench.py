"""The bench measures what it says; at full width the conversion takes little memory."""

import json

import numpy as np
import pytest
from published import NEWER
from run import refused, run

from converters import bench
from omniforcing_jax.io.tensor_file import open_tensors


def test_the_synthetic_checkpoint_has_the_full_network_s_widths(tmp_path):
    config = bench.full_width(4)
    assert (config.video.width, config.audio.width, config.layers) == (4096, 2048, 4)
    size = bench.make_checkpoint(tmp_path / "small.safetensors", NEWER)
    assert open_tensors(tmp_path / "small.safetensors").shapes
    assert size == (tmp_path / "small.safetensors").stat().st_size


def test_a_conversion_is_measured_in_a_process_of_its_own(tmp_path):
    ballast = np.ones(10**8)  # 0.8 GB of this process, which are not that one's
    figures = bench.measure(tmp_path, NEWER, repeats=2)
    assert 0 < figures.before <= figures.peak < ballast.nbytes
    assert min(figures.copies_s + figures.conversions_s) > 0
    assert len(figures.copies_s) == len(figures.conversions_s) == 2
    assert "% of the copy's speed, the median of 2 pairs" in str(figures)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_the_share_is_that_of_the_pairs_and_not_of_the_fastest():
    figures = bench.ConversionFigures(size=1, copies_s=(1.0, 2.0, 9.0), conversions_s=(2.0, 2.5, 9.0), before=0, peak=0)
    assert figures.share == 0.8


def test_a_bench_that_cannot_run_is_refused(tmp_path, capsys):
    assert "layers=0" in refused(capsys, "bench", "--layers", 0)
    assert "no such folder" in refused(capsys, "bench", "--folder", tmp_path / "nothing")


@pytest.mark.long
def test_at_full_width_it_takes_less_than_a_gigabyte(tmp_path, capsys):
    run("bench", "--repeats", 1, "--folder", tmp_path, "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 < figures["peak"] - figures["before"] < 1e9
    capsys.readouterr()
