"""The command as a process: what a file is worth when the process is killed or interrupted while it streams."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from tiny_stream import PROMPT, folders

pytestmark = pytest.mark.long  # new processes: minutes where programs must be compiled first

HOURS = 2 * 3600


@pytest.fixture
def streaming(tmp_path):
    """A process that streams for hours, its file grown by some blocks."""
    flags = ["--prompt", PROMPT, "--seconds", str(HOURS), "--out", "a.mp4", "--weights", str(folders() / "student")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    process = subprocess.Popen(
        [sys.executable, "-m", "omniforcing_jax", "stream", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    file = tmp_path / "a.mp4"
    while process.poll() is None and (not file.exists() or file.stat().st_size < 100_000):
        time.sleep(0.1)
    yield process, file
    process.kill()
    process.wait()


def frames(file: Path) -> int:
    with av.open(str(file)) as opened:
        return sum(1 for _ in opened.decode(video=0))


def test_a_killed_process_leaves_a_file_that_plays_whole_blocks(streaming):
    process, file = streaming
    process.kill()
    process.wait()
    assert frames(file) > 24
    assert frames(file) % 24 == 1


def test_an_interrupted_process_closes_its_file_and_leaves_no_traceback(streaming):
    process, file = streaming
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert frames(file) % 24 == 1
    with av.open(str(file)) as opened:
        video, audio = (float(stream.duration * stream.time_base) for stream in opened.streams)
    assert abs(video - audio) < 0.2  # the vocoder's look-ahead is missing at an interrupted end
