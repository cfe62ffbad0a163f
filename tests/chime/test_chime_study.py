"""The study's cells: which there are, that none is made twice, what is refused at once, and the table."""

import json

import pytest
import tyro

from experiments.chime import study

FIGURES = {"sync_recall": 0.7512345, "clips": 4, "drift": None, "loss": [1.0, 2.0]}


@pytest.fixture
def asked(monkeypatch):
    """Let a cell be made at once; returns what was asked for."""
    calls = []

    def make(*arguments):
        calls.append(arguments)
        return FIGURES

    monkeypatch.setattr(study, "stream_and_judge", make)
    monkeypatch.setattr(study, "switch", make)
    return calls


@pytest.fixture
def every(tmp_path):
    """All parts, with two stages."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    stages = (f"one={tmp_path / 'one'}", f"two={tmp_path / 'two'}")
    parts = ("sinks", "stages", "windows", "pinned", "steps")
    return study.Arguments(parts=parts, stages=stages, student=tmp_path / "one", folder=tmp_path / "cells", prompts=8)


def test_there_is_a_cell_for_every_setting_and_seed(every):
    names = [name for name, _ in study.cells(every)]
    assert len(names) == len(set(names)) == 2 * 4 * 3 + 2 * 3 * 3 + 4 + 4 * 3 + 4
    assert {"sinks-fused-16-seed2", "stages-two-60s-seed0", "windows-horizon", "windows-1", "steps-4"} <= set(names)


def test_cells_ask_for_what_their_names_say(every, asked, tmp_path):
    made = dict(study.cells(every))
    names = ("stages-two-60s-seed2", "stages-one-20s-seed1", "windows-4", "windows-horizon", "pinned-2-recent-4")
    for name in (*names, "sinks-fused-4-seed1"):
        made[name]()
    assert asked == [
        (tmp_path / "two", {}, 2, 60, 2),
        (tmp_path / "one", {}, 8, 20, 1),
        (tmp_path / "one", {"window": 4}, 8, 20, 0),
        (tmp_path / "one", {"window": 0}, 8, 20, 0),
        (tmp_path / "one", {"pinned": 2, "window": 5}, 8, 20, 0),
        (every, study.FUSED, 4, 1),
    ]


def test_a_list_of_steps_goes_from_noise_to_the_clip_in_so_many(every, asked):
    made = dict(study.cells(every))
    for count in (1, 2, 3, 4):
        made[f"steps-{count}"]()
        sigmas = asked[-1][1]["sigmas"]
        assert len(sigmas) == count + 1
        assert list(sigmas) == sorted(sigmas, reverse=True)
        assert (round(sigmas[0], 6), sigmas[-1]) == (1, 0)


def test_a_cell_that_is_there_is_not_made_again(every, asked, capsys):
    every.folder.mkdir()
    (every.folder / "steps-1.json").write_text(json.dumps({"sync_recall": 0.1}))
    for _ in range(2):
        study.main(study.Arguments(folder=every.folder, student=every.student, parts=("steps",)))
    assert len(asked) == 3
    assert capsys.readouterr().out.count("made") == 3
    assert json.loads((every.folder / "steps-1.json").read_text()) == {"sync_recall": 0.1}
    assert json.loads((every.folder / "steps-2.json").read_text()) == FIGURES


def test_the_table_has_the_numbers_of_every_cell_in_the_order_of_names(every, asked, capsys):
    study.main(study.Arguments(folder=every.folder, student=every.student, parts=("windows",), table=True))
    lines = capsys.readouterr().out.splitlines()[-4:]
    numbers = "sync_recall 0.7512 | clips 4 |"
    assert lines == [f"| windows-{name} | {numbers}" for name in ("1", "2", "4", "horizon")]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"parts": ("stages",)}, "--parts stages: needs --stages"),
        ({"parts": ("stages",), "stages": ("nofolder",)}, "--stages nofolder: must be NAME=FOLDER"),
        ({"parts": ("stages",), "stages": ("=x",)}, "--stages =x: must be NAME=FOLDER"),
        ({"parts": ("stages",), "stages": ("a=no/such",)}, "--stages a=no/such: no such folder"),
        ({"parts": ("stages",), "stages": ("a=tests", "a=docs")}, "--stages a=tests: there is another a"),
        ({"student": "no/such"}, "--student no/such: no such folder"),
        ({"prompts": 0}, "--prompts 0"),
    ],
)
def test_what_cannot_be_made_is_refused_before_the_first_cell(asked, capsys, tmp_path, options, named):
    folder = tmp_path / "cells"
    student = study.Path(options.pop("student", tmp_path))
    with pytest.raises(SystemExit) as caught:
        study.main(study.Arguments(folder=folder, student=student, **options))
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert message.startswith(f"error: {named}")
    assert message.count("\n") == 1
    assert not asked
    assert not folder.exists()


def test_an_unknown_part_is_refused_by_the_command():
    with pytest.raises(SystemExit) as caught:
        tyro.cli(study.Arguments, args=["--parts", "windos"])
    assert caught.value.code == 2
