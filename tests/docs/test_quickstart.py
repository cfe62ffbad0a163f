"""docs/quickstart.ipynb runs from top to bottom, without any notebook software."""

import json

import matplotlib
import pytest
from prose import ROOT

FILE = ROOT / "docs" / "quickstart.ipynb"
CELLS = json.loads(FILE.read_text(encoding="utf-8"))["cells"]


def sources(kind):
    return ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == kind]


@pytest.fixture
def no_window():
    """Draw to nowhere: figures are closed at the end."""
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"backend": "Agg"}):
        plt.switch_backend("Agg")
        yield
    plt.close("all")


@pytest.mark.long
def test_all_cells_run_in_one_namespace(tmp_path, monkeypatch, capsys, no_window):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for i, source in enumerate(sources("code")):
        exec(compile(source, f"{FILE.name}, code cell {i}", "exec"), namespace)
    assert (tmp_path / "quickstart.mp4").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "block 4: 24 frames" in said
    assert "s, " in said


def test_nothing_of_a_run_is_kept_in_the_file():
    for cell in CELLS:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_its_first_cell_streams_in_ten_lines():
    assert len(sources("code")[0].splitlines()) <= 10
