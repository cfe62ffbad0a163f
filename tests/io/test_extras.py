"""Optional libraries: a missing one is one line that names its extra, wherever it is first needed."""

import subprocess
import sys

import numpy as np
import pytest
from refusal import refusal

from omniforcing_jax.io.extras import MissingExtraError, need
from omniforcing_jax.stream.mp4 import write_mp4

WITHOUT = """
import sys
for name in {missing}:
    sys.modules[name] = None  # an import of it fails from here on
{code}
"""


def last_line_without(missing, code):
    """Run code in a process in which some libraries cannot be imported; returns the last line of its errors."""
    program = WITHOUT.format(missing=missing, code=code)
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False)
    return done.stderr.splitlines()[-1] if done.stderr else ""


def test_what_is_installed_is_not_refused_and_not_imported():
    need("mailbox", extra="judge")
    assert "mailbox" not in sys.modules


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib .* pip install 'omniforcing_jax\[judge\]'") as error:
        need("numpy", "matplotlib", extra="judge")
    assert isinstance(error.value, ImportError)
    assert isinstance(error.value, ValueError)


def test_a_plot_without_matplotlib_is_refused_in_one_line(capsys, monkeypatch, tmp_path):
    video, audio = np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2000, 2), np.float32)
    write_mp4(tmp_path / "a.mp4", video, audio, frame_rate=24, sample_rate=24_000)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["judge", tmp_path / "a.mp4", "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png"]
    assert "omniforcing_jax[judge]" in refusal(capsys, arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("missing", ["optax", "orbax", "grain", "array_record"])
def test_training_without_its_libraries_names_their_extra(missing):
    line = last_line_without([missing], "import omniforcing_jax.train.loop")
    assert f"{missing} is not installed: pip install 'omniforcing_jax[train]'" in line
