"""Cases take the tiny checkpoints and the commands of the converters' tests."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "converters"))


@pytest.fixture
def quiet(capsys):
    """Drop what a command said."""
    yield
    capsys.readouterr()
