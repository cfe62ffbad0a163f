"""What FFmpeg's own ffprobe makes of the files that the server sends, while they grow and once they have ended."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from live_server import make_context, serving

import omniforcing_jax as of

FFPROBE = shutil.which("ffprobe")
pytestmark = pytest.mark.skipif(FFPROBE is None, reason="ffprobe is not installed: it comes with FFmpeg")
SECONDS = 3


@pytest.fixture(scope="module")
def url():
    with serving(make_context()) as found:
        yield found


def probe(address, *flags):
    """Return what ffprobe says of an address. It is told to report errors, and must have none."""
    command = [FFPROBE, "-v", "error", "-show_streams", "-show_packets", "-of", "json", *flags, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def check_streams(found):
    picture, sound = sorted(found["streams"], key=lambda each: each["codec_type"], reverse=True)
    assert (picture["codec_name"], picture["width"], picture["height"]) == ("h264", 64, 64)
    assert (sound["codec_name"], sound["sample_rate"], sound["channels"]) == ("aac", "24000", 2)


def times(found, kind):
    return np.array([float(each["pts_time"]) for each in found["packets"] if each["codec_type"] == kind])


@pytest.mark.parametrize("name", ["media.mp4", "index.m3u8"])
def test_it_reads_a_file_that_grows(url, name):
    stream = of.connect(url).open("a red ball")
    found = probe(f"{url}/v1/streams/{stream.id}/{name}", "-read_intervals", "%+4")  # three seconds are made at once
    assert stream.view()["state"] in ("running", "asleep")  # not ended
    check_streams(found)
    for kind in ("video", "audio"):
        assert times(found, kind).max() > 2.5  # a fragment has its picture before its sound
    stream.delete()


def test_it_reads_a_file_that_has_ended_to_its_last_frame(url):
    stream = of.connect(url).open("a red ball", seconds=SECONDS)
    for _ in stream.follow():
        pass
    found = probe(f"{url}/v1/streams/{stream.id}/media.mp4?from=start")
    check_streams(found)
    np.testing.assert_allclose(times(found, "video"), np.arange(1 + 24 * SECONDS) / 24, atol=1e-4)
    sound = times(found, "audio")
    np.testing.assert_allclose(np.diff(sound), 1024 / 24_000, atol=1e-4)
    assert abs(sound[-1] + 1024 / 24_000 - SECONDS - 1 / 24) < 0.1
