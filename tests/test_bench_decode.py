"""`bench decode`: what it says of decoders that are exact, and of one that would have to wait."""

import dataclasses

import jax.numpy as jnp
import pytest
from refusal import refusal
from tiny_stream import GRID, folders, student

from omniforcing_jax.cli import bench_decode
from omniforcing_jax.cli.options import BenchOptions
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.layout import PREFIX

BLOCKS = 5


def test_a_causal_decoder_is_exact_without_a_look_ahead():
    found = bench_decode.measure_picture(student().codecs, GRID, PREFIX, BLOCKS, 0, jnp.float32)
    assert (found["causal"], found["reach"]) == (True, 0)
    (row,) = found["rows"]
    assert (row["lookahead"], row["lag_s"]) == (0, 0)
    assert row["max"] < 1e-4


def test_the_error_falls_to_nothing_at_the_decoder_s_reach():
    codecs = student().codecs
    config = dataclasses.replace(codecs.video_config, causal_decoder=False)
    codecs = dataclasses.replace(codecs, video_config=config)
    lookaheads = (0, config.decoder_reach, 99)
    found = bench_decode.measure_picture(codecs, GRID, PREFIX, BLOCKS, 0, jnp.float32, lookaheads)
    none, enough = found["rows"]
    assert none["relative_rms"] > 1e-2
    assert enough["max"] < 1e-4
    assert enough["lag_s"] == pytest.approx(config.decoder_reach / 3, abs=1e-3)


def test_sound_is_exact_and_would_not_be_with_fewer_rows():
    codecs = student().codecs
    enough = codecs.vocoder_config.lookahead_rows
    found = bench_decode.measure_sound(codecs, PREFIX, 3, 0, rows=(0, enough))
    assert found["max"] < 1e-4
    assert found["delay_rows"] <= enough
    assert found["rows"][0]["relative_rms"] > 1e-2
    assert found["rows"][1]["relative_rms"] < 1e-6


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--blocks", "2"], ["blocks=2", "at least 3"]),
        (["--preset", "tiny"], ["preset", "--weights"]),
    ],
)
def test_a_request_that_cannot_be_is_refused(capsys, tmp_path, no_work, more, named):
    line = refusal(capsys, ["bench", "decode", "--json", tmp_path / "a.json", *more])
    assert all(name in line for name in named), line


def test_the_length_of_a_measured_stream_has_to_be_given(capsys, tmp_path, no_work):
    assert "give --blocks" in refusal(capsys, ["bench", "stream", "--json", tmp_path / "a.json"])


@pytest.mark.long
def test_the_command_writes_and_prints_its_figures(capsys, tmp_path):
    file = tmp_path / "a.json"
    command = BenchOptions(what="decode", json=file, blocks=3, weights=str(folders() / "student"))
    with Startup("bench") as startup:
        bench_decode.prepare_bench(command, startup)()
    assert '"lookahead": 0' in file.read_text()
    assert "picture (causal)" in capsys.readouterr().out
