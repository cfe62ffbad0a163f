"""What is said about the study's cells: groups over seeds, changes within clips, ratios of speed."""

import json

import pytest

from experiments.chime import study_report

WINDOW = {"sync_recall": 0.8, "count_accuracy": 1.0, "colour_error": 30.0, "loudness_db": -26.0}


def _cell(recall, speed=100.0, drift=True):
    last = {**WINDOW, "sync_recall": 0.7, "colour_error": 36.0}
    return {
        **dict.fromkeys(study_report.JUDGED, 0.5),
        "sync_recall": recall,
        "sync_ms_p50": 11.0,
        "frames_per_processor_second": speed,
        "drift": {"window_s": 5.0, "first": WINDOW, "last": last} if drift else None,
    }


def _switch(norm):
    return {**dict.fromkeys(study_report.SWITCHED, norm), "grad_norm": [norm] * 40, "loss": [1.0] * 40}


@pytest.fixture
def folder(tmp_path):
    cells = {
        "stages-a-60s-seed0": _cell(0.6),
        "stages-a-5s-seed1": _cell(0.9, drift=False),
        "stages-a-5s-seed0": _cell(0.7, drift=False),
        "stages-a-20s-seed0": _cell(0.65),
        "steps-1": _cell(0.3, speed=200.0, drift=False),
        "steps-4": _cell(0.7, speed=80.0, drift=False),
        **{f"sinks-prefix-{n}-seed{seed}": _switch(n + seed) for n in (16, 4) for seed in (0, 1)},
    }
    for name, cell in cells.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(cell))
    return tmp_path


def test_seeds_are_one_group_and_numbers_come_in_their_order(folder):
    groups = study_report.read(folder, "sync_recall")
    assert list(groups) == ["stages-a-5s", "stages-a-20s", "stages-a-60s", "steps-1", "steps-4"]
    assert [cell["sync_recall"] for cell in groups["stages-a-5s"]] == [0.7, 0.9]


def test_a_mean_comes_with_its_spread_and_what_is_missing_is_said():
    assert study_report.spread([0.5]) == "0.50"
    assert study_report.spread([0.7, 0.9]) == "0.80 (0.70 to 0.90)"
    assert study_report.spread([0.7, None]) == study_report.spread([]) == "none"


def test_the_table_says_figures_changes_and_ratios(folder, capsys):
    study_report.main(study_report.Arguments(folder=folder))
    said = capsys.readouterr().out
    head, _, *rows = said[: said.index("| cell | first_grad_norm")].splitlines()
    columns = head.strip("| ").split(" | ")
    by_name = {
        row.split(" | ")[0].strip("| "): dict(zip(columns, row.strip("| ").split(" | "), strict=True)) for row in rows
    }
    assert by_name["stages-a-5s"]["sync_recall"] == "0.80 (0.70 to 0.90)"
    assert by_name["stages-a-5s"]["colour_error, last - first"] == "none"
    assert by_name["stages-a-60s"]["colour_error, last - first"] == "6.00"
    assert by_name["stages-a-60s"]["sync_recall, last - first"] == "-0.10"
    assert (by_name["steps-1"]["speed"], by_name["steps-4"]["speed"]) == ("1.00", "0.40")


def test_the_switch_has_a_row_per_number_of_sinks(folder, capsys):
    study_report.main(study_report.Arguments(folder=folder))
    _, _, four, sixteen = capsys.readouterr().out.splitlines()[-4:]
    assert four == "| sinks-prefix-4 | " + " | ".join(["4.500 (4.000 to 5.000)"] * 4) + " |"
    assert sixteen.startswith("| sinks-prefix-16 | 16.500")


def test_the_plots_are_small_pictures(folder, tmp_path):
    paths = tmp_path / "study.png", tmp_path / "sinks.png"
    study_report.main(study_report.Arguments(folder=folder, plot=paths[0], switch_plot=paths[1]))
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 100_000


def test_a_plot_without_cells_is_refused(folder, tmp_path, capsys):
    for cell in folder.glob("sinks-*"):
        cell.unlink()
    with pytest.raises(SystemExit):
        study_report.main(study_report.Arguments(folder=folder, switch_plot=tmp_path / "sinks.png"))
    assert "--switch-plot" in capsys.readouterr().err


def test_a_folder_without_cells_or_with_a_broken_one_is_refused(folder, tmp_path, capsys):
    (folder / "steps-2.json").write_text("{")
    for where, named in ((folder, "steps-2.json: is not JSON"), (tmp_path / "none", "no cells")):
        with pytest.raises(SystemExit) as caught:
            study_report.main(study_report.Arguments(folder=where))
        assert caught.value.code == 2
        assert named in capsys.readouterr().err
