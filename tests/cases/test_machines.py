"""Machines that people have: caches elsewhere or nowhere, backends that are absent, too little memory, odd sizes."""

import logging
import os
import subprocess
import sys

import jax
import pytest
from refusal import refusal
from tiny_stream import PROMPT, folders
from work_began import WorkBeganError

from omniforcing_jax.cli import bench_stream
from omniforcing_jax.io import machine
from omniforcing_jax.pipeline.presets import TINY_STREAM

SETTINGS = ("jax_compilation_cache_dir", *machine.KEEP_ALL)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Leave JAX's own settings as they were, and start each test without the variables."""
    machine._warn_once.cache_clear()
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name in SETTINGS:
        monkeypatch.delenv(name.upper(), raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_that_jax_is_set_to_is_used(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "scratch"))  # as JAX reads its variable
    assert machine.use_compilation_cache() == str(tmp_path / "scratch")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "scratch")


def test_an_address_is_used_as_it_is():
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    assert machine.use_compilation_cache() == "gs://bucket/cache"


def test_limits_of_jax_own_variables_stay(tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    machine.use_compilation_cache()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1


def test_a_cache_that_jax_was_told_to_leave_is_left():
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert machine.use_compilation_cache() is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_a_cache_that_cannot_be_written_is_one_line_and_the_start_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file" / "cache"))
    for _ in range(3):
        machine.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    (line,) = caplog.messages
    assert "is not a directory" in line
    assert "JAX_COMPILATION_CACHE_DIR" in line


def in_new_process(program, **variables):
    """Run a program whose environment lacks a home."""
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, *program], env=keep | {"PYTHONPATH": os.getcwd()} | variables, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_home_and_passwd_entry_starts_without_a_cache():
    program = (
        "from omniforcing_jax.io import machine; import os; os.setuid(54321); print(machine.use_compilation_cache())"
    )
    code, out, err = in_new_process(["-c", program], JAX_PLATFORMS="cpu")
    assert (code, out) == (0, "None\n")
    (line,) = err.splitlines()
    assert "JAX_COMPILATION_CACHE_DIR" in line


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_backend_that_is_not_there_is_refused_in_one_line(platform, tmp_path):
    if os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/accel0"):
        pytest.skip("the backend may be there")
    flags = ["--seconds", "1", "--prompt", "a red ball", "--out", str(tmp_path / "a.mp4")]
    command = ["-m", "omniforcing_jax", "stream", *flags]
    code, out, err = in_new_process(command, JAX_PLATFORMS=platform, HOME=str(tmp_path))
    (line,) = err.splitlines()
    assert (code, out) == (2, "")
    assert line.startswith(f"error: JAX_PLATFORMS={platform}: ")
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("error", [RuntimeError("no device\nmore"), AssertionError()])
def test_whatever_jax_raises_for_a_missing_backend_is_one_line(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(ValueError, match=r"JAX_PLATFORMS=.*leave it unset or set it to cpu") as caught:
        machine.check_backend()
    assert len(str(caught.value).splitlines()) == 1


def test_a_benchmark_that_does_not_fit_is_refused_before_anything_is_drawn(capsys, tmp_path, monkeypatch):
    def draw(*arguments):
        raise AssertionError("weights were drawn")

    monkeypatch.setattr(bench_stream, "random_pipeline", draw)
    monkeypatch.setattr(bench_stream, "measure_cold_start", draw)
    monkeypatch.setattr(machine, "is_shared_by_processes", lambda: True)
    monkeypatch.setattr(machine, "free_bytes", lambda: 10**9)
    command = [
        "bench",
        "stream",
        "--blocks",
        3,
        "--preset",
        "ltx2-19b",
        "--random-weights",
        "--json",
        tmp_path / "a.json",
    ]
    assert "of memory are needed (weights 75.3 GiB" in refusal(capsys, command)
    assert list(tmp_path.iterdir()) == []


def test_a_benchmark_whose_first_process_fails_says_why(monkeypatch):
    from omniforcing_jax.cli.options import BenchOptions

    monkeypatch.setattr(bench_stream, "COLD", "raise SystemExit('error: no room')")
    with pytest.raises(ValueError, match="a new process could not start the stream: error: no room"):
        bench_stream.measure_cold_start(BenchOptions(what="stream", json=folders() / "a.json"))


def test_the_front_door_has_the_cache_of_compiled_programs(tmp_path):
    import omniforcing_jax as of

    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert of.use_compilation_cache() == str(tmp_path)


@pytest.mark.parametrize(
    ("size", "is_far"), [((64, 96), False), ((96, 96), False), ((128, 192), True), ((32, 32), True), ((32, 192), True)]
)
def test_a_size_far_off_the_trained_one_is_said_with_both(caplog, size, is_far):
    from omniforcing_jax.pipeline.checks import check_side

    with caplog.at_level(logging.WARNING):
        check_side(TINY_STREAM, *size)
    assert [f"{size[1]}x{size[0]} pixels: 'tiny' was trained at 96x64" in line for line in caplog.messages] == [
        True
    ] * is_far


def test_a_stream_of_the_trained_size_says_nothing(caplog, capsys, tmp_path, no_work):
    command = ["stream", "--prompt", PROMPT, "--seconds", 1, "--out", tmp_path / "a.mp4"]
    with pytest.raises(WorkBeganError):
        refusal(capsys, [*command, "--weights", folders() / "student"])
    assert not caplog.messages
