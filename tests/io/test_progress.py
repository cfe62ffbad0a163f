"""What a command says while it works: plain lines on stderr now and then, a live line on a terminal; startup times."""

import contextlib
import gc
import io
import time

import jax
import jax.numpy as jnp
import pytest

from omniforcing_jax.io import machine, progress, startup
from omniforcing_jax.io.progress import Bar, Ticker, words_for
from omniforcing_jax.io.startup import StartTimes, Startup


@pytest.fixture
def quick_lines(monkeypatch):
    """Plain lines at once instead of every five seconds."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache folder of its own."""
    monkeypatch.setattr(machine, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (12.4, "12 s"), (100, "2 min"), (3000, "50 min"), (7000, "1.9 h")]
)
def test_durations_are_spelled_roughly(seconds, words):
    assert words_for(seconds) == words


def test_a_bar_is_a_line_now_and_then_where_there_is_no_terminal(capsys, quick_lines):
    with Bar("streaming", 4, "blocks") as show:
        show(1, "8.0x real time")
        show(4)
    captured = capsys.readouterr()
    assert captured.out == ""
    first, last = captured.err.splitlines()
    assert first.startswith("streaming: 1/4 blocks, 8.0x real time, about ")
    assert first.endswith(" left")
    assert last == "streaming: 4/4 blocks"


def test_a_short_job_says_nothing(capsys):
    with Bar("streaming", 4, "blocks") as show:
        assert list(show.over("abcd")) == list("abcd")
    assert capsys.readouterr().err == ""


def test_a_bar_without_a_total_counts(capsys, quick_lines):
    with Bar("streaming", None, "blocks") as show:
        show(7)
    assert capsys.readouterr().err == "streaming: 7 blocks\n"


def test_a_terminal_has_a_live_line(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert progress.is_terminal()
    with Bar("streaming", 2, "blocks") as show:
        show(1, "fast")
        ticker = Ticker(lambda: "compiling: 3 programs")
    ticker.start()
    ticker.stop()
    import sys

    assert "1/2 blocks, fast" in sys.stderr.getvalue()
    assert "compiling: 3 programs" in sys.stderr.getvalue()


@pytest.mark.parametrize("ends", ["ready", "refused"])
def test_the_collector_waits_for_the_end_of_a_start(cache, ends):
    gc.disable()  # as a program does that is about to start
    try:
        with pytest.raises(KeyError) if ends == "refused" else contextlib.nullcontext(), Startup("stream") as start:
            start.loading("weights", 10)
            assert not gc.isenabled()
            if ends == "refused":
                raise KeyError
            start.ready()
            assert gc.isenabled()
            assert gc.get_freeze_count()
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_start_says_what_it_loads_and_how_much_is_left(cache):
    with Startup("stream") as start:
        start.identify("tiny", "float32")
        start.loading("weights", 4_000_000)
        jax.monitoring.record_scalar(machine.LOADED, 1_000_000)
        text = start._loading_text()
    assert text.startswith("loading weights: 1 of 4 MB, about ")


def compile_something(start, scale):
    start.loading("weights", 10)
    start.compiling()
    jax.jit(lambda x: x * scale + 3)(jnp.arange(7)).block_until_ready()
    start.ready()


def test_the_next_start_knows_how_long_the_last_one_took(cache):
    with Startup("stream") as start:
        start.identify("tiny", (2, 3), "float32")
        assert "the next start will be shorter" in start._compiling_text()
        compile_something(start, 11)
    ((name, times),) = startup.read_times().items()
    assert name.startswith("stream tiny (2, 3) float32 ")
    assert times.programs >= 1
    with Startup("stream") as again:
        again.identify("tiny", (2, 3), "float32")
        assert again._last == {startup.COMPILED: times}
        again.compiling()
        assert f"0 of {times.programs}, " in again._compiling_text()
        assert "(as last time)" in again._compiling_text()
    with Startup("stream") as other:
        other.identify("tiny", (4, 3), "float32")
        assert other._last == {}


def test_times_of_programs_from_the_disk_are_kept_apart(cache):
    startup.keep_times("stream tiny cpu, compiled", StartTimes(1.0, 60.0, 30))
    startup.keep_times("stream tiny cpu, from disk", StartTimes(1.0, 2.0, 30))
    with Startup("stream") as start:
        start._key = "stream tiny cpu"
        start._last = {kind: startup.read_times()[start._name(kind)] for kind in (startup.COMPILED, startup.FROM_DISK)}
        start.compiling()
        assert start._kind == startup.FROM_DISK
        assert start._compiling_text().startswith("loading compiled programs: 0 of 30, about 2 s left")
        start._counter.ready = 4  # none of them from the disk
        assert start._compiling_text().startswith("compiling programs: 4 of 30, about 60 s left")


def test_only_the_newest_starts_are_kept(cache, monkeypatch):
    monkeypatch.setattr(startup, "KEPT", 2)
    for name in "abca":
        startup.keep_times(name, StartTimes(1.0, 2.0, 3))
    assert list(startup.read_times()) == ["c", "a"]


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": [1, 2]}', '{"a": ["x", 2, 3]}'])
def test_a_damaged_file_of_times_is_no_reason_to_fail(cache, content):
    cache.mkdir()
    (cache / startup.FILE).write_text(content)
    assert startup.read_times() == {}
    startup.keep_times("a", StartTimes(1.0, 2.0, 3))
    assert startup.read_times() == {"a": StartTimes(1.0, 2.0, 3)}


def test_without_a_cache_folder_nothing_is_kept(monkeypatch):
    startup.keep_times("a", StartTimes(1.0, 2.0, 3))  # tests have no cache folder
    assert startup.read_times() == {}


def test_a_long_wait_says_a_line_after_a_second(capsys):
    ticker = Ticker(lambda: "compiling")
    ticker.start()
    time.sleep(1.3)
    ticker.stop()
    assert capsys.readouterr().err == "compiling\n"
