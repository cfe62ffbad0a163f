"""Steering from the command line: what is refused before any work, and what a file then shows."""

import av
import pytest
from tiny_stream import PROMPT, folders

from omniforcing_jax import machine
from omniforcing_jax.cli import main


@pytest.fixture(autouse=True)
def _leave_the_users_cache_alone(monkeypatch):
    monkeypatch.setattr(machine, "use_compilation_cache", lambda: None)


@pytest.fixture
def no_work(monkeypatch):
    """Loading weights is work: a bad request must not get there."""

    def load(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("omniforcing_jax.commands.load", load)


def command(tmp_path, *more, seconds=3):
    flags = ["--prompt", PROMPT, "--seconds", seconds, "--out", tmp_path / "a.mp4", "--weights", folders() / "student"]
    return [str(argument) for argument in ["stream", *flags, *more]]


def refusal(capsys, arguments) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--prompt-at", 3, "a ball"], ["prompt-at=3.0", "before the end of the stream at 3 s"]),
        (["--prompt-at", 0, "a ball"], ["prompt-at=0.0", "above 0 s"]),
        (["--prompt-at", 2, "a ball", "--prompt-at", 1, "a ball"], ["prompt-at=1.0", "after the prompt at 2 s"]),
        (["--prompt-at", 2, "a bell"], ["'bell'", "did you mean"]),
        (["--prompt-at", "soon", "a ball"], ["--prompt-at", "soon"]),
        (["--prompt-at", 2, "a ball", "--recompute", -1], ["recompute=-1"]),
        (["--prompt-at", 2, "a ball", "--fade", -1], ["fade=-1"]),
    ],
)
def test_prompts_that_cannot_be_are_refused(capsys, tmp_path, no_work, more, named):
    line = refusal(capsys, command(tmp_path, *more))
    assert all(name in line for name in named), line


def test_prompts_change_at_their_seconds_and_what_it_cost_is_said(capsys, caplog, tmp_path):
    more = ["--prompt-at", 0.5, "a green ball", "--prompt-at", 2, "a blue ball", "--recompute", 2]
    assert main(command(tmp_path, *more)) == 0
    assert "73 frames" in capsys.readouterr().out
    rounded, first, second = caplog.messages
    assert "0.5 s is no block border; the prompt changes at 1 s" in rounded
    assert "block 2: another prompt; 2 past blocks made again in" in first
    assert "block 3: another prompt; 2 past blocks made again in" in second
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 73
