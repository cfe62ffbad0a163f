"""Errors, signals and readers that are gone: one line, the right exit code, and what was made is kept."""

import errno
import io
import signal
import sys
import time

import av
import pytest
from refusal import refusal
from tiny_stream import PROMPT, folders, student

from omniforcing_jax.cli.main import main
from omniforcing_jax.io import progress
from omniforcing_jax.pipeline import checks
from omniforcing_jax.stream.mp4 import Mp4Writer
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import read_saved


def stream(tmp_path, *more, seconds=2):
    flags = ["--out", tmp_path / "a.mp4", "--weights", folders() / "student"]
    return [str(word) for word in ["stream", "--prompt", PROMPT, "--seconds", seconds, *flags, *more]]


def frames(path):
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def at_chunk(monkeypatch, index, act):
    """Do something when a chunk is written, and then write it."""
    write = Mp4Writer.write

    def acting(writer, chunk):
        if chunk.index == index:
            act()
        write(writer, chunk)

    monkeypatch.setattr(Mp4Writer, "write", acting)


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.mp4"), "error: a.mp4: No space left on device"),
        (ValueError("the picture\nbreaks off"), "error: the picture breaks off"),
        (RuntimeError("out of memory"), "error: RuntimeError: out of memory (--debug shows where)"),
        (KeyError("x"), "error: KeyError: 'x' (--debug shows where)"),
        (RuntimeError("x" * 10_000), f"error: RuntimeError: {'x' * 600}... (--debug shows where)"),
    ],
)
def test_an_error_while_working_is_one_line_and_the_file_plays(capsys, tmp_path, monkeypatch, error, line):
    at_chunk(monkeypatch, 2, failing(error))
    assert main(stream(tmp_path)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert frames(tmp_path / "a.mp4") % 24 == 1


def test_debug_shows_where_an_error_comes_from(tmp_path, monkeypatch):
    at_chunk(monkeypatch, 1, failing(KeyError("x")))
    with pytest.raises(KeyError):
        main([*stream(tmp_path), "--debug"])


def test_errors_of_converters_are_one_line_as_well(capsys, monkeypatch):
    monkeypatch.setattr("converters.inspect.inspect", failing(RuntimeError("boom")))
    assert refusal(capsys, ["inspect", "a"]) == "error: RuntimeError: boom (--debug shows where)"


@pytest.fixture(autouse=True)
def _signals_as_on_a_terminal():
    """Under `nohup` or in the background the tests themselves inherit ignored signals, which commands respect."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_program_saves_the_state(tmp_path, monkeypatch, number):
    state = tmp_path / "state"
    at_chunk(monkeypatch, 1, lambda: signal.raise_signal(number))
    assert main(stream(tmp_path, "--save-state", state, seconds=3600)) == 128 + number
    block = read_saved(state).header.block
    assert next(resume(state, student())).index == block
    assert frames(tmp_path / "a.mp4") == 1 + 24 * (block - 1)
    assert signal.getsignal(number) is signal.SIG_DFL


class _RaisedInDestructor:
    """Python loses what is raised in a destructor."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("in_destructor", [False, True])
def test_a_signal_while_loading_ends_the_program_at_once(capsys, tmp_path, monkeypatch, number, in_destructor):
    def load(*_):
        if in_destructor:
            _RaisedInDestructor(number)
            time.sleep(30)
        signal.raise_signal(number)

    monkeypatch.setattr(checks, "load", load)
    command, begun = stream(tmp_path), time.monotonic()
    assert main(command) == 128 + number
    assert time.monotonic() - begun < 10
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "a.mp4").exists()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        at_chunk(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGHUP))
        assert main(stream(tmp_path)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


class _Gone(io.StringIO):
    """A pipe whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def flush(self):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("stderr", [_Gone(), None])
def test_a_stream_outlives_a_stderr_that_is_closed(tmp_path, monkeypatch, stderr):
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)  # a line for every block
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main(stream(tmp_path)) == 0
    assert sys.stderr is stderr
    assert frames(tmp_path / "a.mp4") == 49


def test_a_stream_outlives_a_stderr_that_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main(stream(tmp_path)) == 0
    assert frames(tmp_path / "a.mp4") == 49


def test_a_stdout_that_is_closed_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", _Gone())
    assert main(stream(tmp_path)) == 2
    assert "roken pipe" in capsys.readouterr().err.splitlines()[-1]
    assert frames(tmp_path / "a.mp4") == 49
