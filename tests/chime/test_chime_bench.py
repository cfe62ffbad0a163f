"""The bench: all seeds pooled, each as `evaluate` judges it, a table, and bad input."""

import json

import numpy as np
import pytest
import tyro

from experiments.chime import bench, evaluate
from experiments.chime.judge.sources import truth_clips
from omniforcing_jax.chime.figures import FIGURES


def arguments(*flags):
    return tyro.cli(bench.Arguments, args=[str(flag) for flag in flags])


def test_seeds_are_pooled_and_each_is_what_evaluate_says(tmp_path, capsys):
    out, alone = tmp_path / "bench.json", tmp_path / "seed.json"
    how = ("--source", "truth", "--prompts", 2, "--seconds", 2)
    bench.main(arguments(*how, "--seeds", 3, 4, "--json", out))
    table = capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text())
    flags = [str(flag) for flag in (*how, "--seed", 4, "--json", alone)]
    evaluate.main(tyro.cli(evaluate.Arguments, args=flags))
    expected = json.loads(alone.read_text())
    assert {name: each["by_seed"][1] for name, each in found["figures"].items()} == {
        name: expected[name] for name in FIGURES
    }
    assert set(found) == {"source", "weights", "seconds", "prompts", "seeds", "figures", "drift", "rise"}
    assert found["drift"] is None
    for each in found["figures"].values():
        assert each["value"] is None or each["low"] <= each["value"] <= each["high"]
    assert [line.split(" | ")[0][2:] for line in table[2 : 2 + len(FIGURES)]] == list(FIGURES)
    assert "in a block: p = " in table[-1]


def test_of_long_clips_the_first_and_the_last_seconds_are_compared(tmp_path, capsys, monkeypatch):
    def fading(prompts, options):
        (film,) = truth_clips(prompts, options)
        share = np.linspace(1, 0.8, len(film.video))[:, None, None, None]
        yield film._replace(video=(film.video * share).astype(np.uint8))

    monkeypatch.setitem(bench.SOURCES, "truth", fading)
    how = ("--source", "truth", "--prompts", 1, "--seconds", 11, "--seeds", 3)
    bench.main(arguments(*how, "--json", tmp_path / "bench.json"))
    drift = json.loads((tmp_path / "bench.json").read_text())["drift"]
    assert set(drift) == set(FIGURES)
    assert drift["colour_purity"]["value"] < -0.05
    assert drift["sync_recall"]["value"] == drift["flashes"]["value"] == 0
    assert "| change, first to last seconds | 95 % interval |" in capsys.readouterr().out


def test_a_teacher_is_guided_as_it_is_told(monkeypatch):
    class Asked(Exception):
        pass

    def asked(weights, **told):
        raise Asked(told)

    monkeypatch.setattr("experiments.chime.judge.sources.sample_clip", asked)
    told = arguments("--source", "teacher", "--prompts", 1, "--seeds", 3, "--guidance", 3, "video.modality=2")
    with pytest.raises(Asked) as caught:
        bench.run(told)
    guidance = caught.value.args[0]["guidance"]
    assert (guidance.video.cfg, guidance.audio.cfg, guidance.video.modality, guidance.audio.modality) == (3, 3, 2, 1)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--prompts", 0], "--prompts 0: must be at least 1"),
        (["--seconds", 0], "--seconds 0: must be at least 1"),
        (["--seeds", 1, 1], "--seeds 1 1: must be distinct numbers"),
    ],
)
def test_what_is_no_bench_is_refused(flags, complaint):
    with pytest.raises(ValueError, match=complaint):
        bench.Arguments(source="truth", **{flags[0][2:]: tuple(flags[1:]) if flags[0] == "--seeds" else flags[1]})


@pytest.mark.parametrize(
    ("source", "flag"),
    [("student", ("--guidance", 3, "cfg=2")), ("codecs", ("--steps", 4)), ("truth", ("--weights", "folder"))],
)
@pytest.mark.parametrize("module", [bench, evaluate])
def test_what_a_source_does_not_take_is_refused(module, source, flag, monkeypatch, capsys):
    monkeypatch.setitem(bench.SOURCES, source, None)  # nothing is made
    flags = [str(word) for word in ("--source", source, "--prompts", 1, *flag)]
    with pytest.raises(SystemExit) as caught:
        module.main(tyro.cli(module.Arguments, args=flags))
    assert caught.value.code == 2
    told = " ".join(map(str, flag))
    assert capsys.readouterr().err.strip() == f"error: {told}: --source {source} does not take it"


def test_weights_that_are_not_there_are_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        bench.main(arguments("--source", "student", "--weights", tmp_path / "none"))
    assert caught.value.code == 2
    assert capsys.readouterr().err.strip() == f"error: --weights {tmp_path / 'none'}: no such folder"
