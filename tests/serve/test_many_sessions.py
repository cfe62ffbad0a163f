"""Long runs: memory stays flat, clocks do not drift apart."""

import ctypes
import gc
import io
import threading
import time
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor

import av
import numpy as np
import pytest
from fake import body
from live_server import make_context, serving

import omniforcing_jax as of
from omniforcing_jax.io import machine
from omniforcing_jax.serve import engine, history, requests, seats, viewers
from omniforcing_jax.serve.fragments import Fragment
from omniforcing_jax.serve.messages import PromptBody
from omniforcing_jax.serve.mock import MockSource

SESSIONS, SAMPLE = 10_000, 1000
MINUTES, RATE = 10, 24_000


class NoEncoder:
    """Fragments without encoding: 10,000 sessions would spend minutes on that."""

    init, mime = b"init", "video/mp4"

    def __init__(self, **values):
        self.number = values["first"]

    def push(self, chunk):
        self.number += 1
        end_s = chunk.video_start_s + len(chunk.video) / 24
        data = bytes(1000)
        return Fragment(number=self.number - 1, start_s=chunk.video_start_s, end_s=end_s, blocks=(), data=data)

    def close(self):
        return None


class Inline(ThreadPoolExecutor):
    """A pool that works at once, in the caller's thread."""

    def submit(self, work, /, *values):
        done = Future()
        done.set_result(work(*values))
        return done


class NoThread:
    """An encoder's thread that is the caller's own."""

    def __init__(self, consume):
        self.consume = consume

    def __call__(self, chunk):
        self.consume(chunk)

    def wait(self):
        pass

    def __exit__(self, *error):
        pass


def come_and_go(stage, count):
    """Let sessions come, be watched and changed for a few blocks, and go."""
    for i in range(count):
        session = requests.create(stage.engine, body(seed=i), f"client {i % 7}")
        viewer = viewers.join(stage.engine, session, lambda: None, False)
        stage.settle()
        for step in range(4):
            stage.engine.step()
            stage.settle()
            viewers.take(stage.engine, session, viewer)
            if step == 1:
                requests.change_prompt(stage.engine, session, PromptBody(prompt="another"))
        viewers.leave(stage.engine, session, viewer)
        requests.delete(stage.engine, session)


def tidy_bytes():
    """Resident bytes, without what the allocator keeps of other tests in this process."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return machine.resident_bytes()


@pytest.mark.long
def test_memory_is_flat_over_ten_thousand_sessions(stage, monkeypatch):
    monkeypatch.setattr(seats, "Fragmenter", NoEncoder)
    monkeypatch.setattr(seats, "Overlapped", NoThread)
    it = stage()
    it.engine.preparing = it.engine.saving = Inline()
    come_and_go(it, SAMPLE)
    before, objects = tidy_bytes(), len(gc.get_objects())
    come_and_go(it, SESSIONS - SAMPLE)
    after = tidy_bytes()
    assert not it.engine.sessions
    assert it.engine.totals["streams_created"] == SESSIONS
    assert len(gc.get_objects()) < objects + 2000
    assert after < before + 20e6


def read_file(address, found):
    with urllib.request.urlopen(address) as answer:
        while piece := answer.read(1 << 16):
            found += piece


def lag(heard, truth, rate):
    """Return the seconds by which the beginning of a sound lies within a longer one."""
    return np.argmax(np.correlate(truth, heard, "valid")) / rate


def test_lag_finds_a_shift():
    noise = np.random.default_rng(0).normal(size=5000)
    assert lag(noise[100:2100], noise[:2200], 1000) == pytest.approx(0.1)


@pytest.mark.long
def test_sound_and_picture_stay_together_over_ten_minutes_as_received(monkeypatch):
    """What two viewers receive over sockets, in much less than ten minutes: the engine's clock runs fast."""
    monkeypatch.setattr(engine, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(history, "PATIENCE_S", 60.0 * MINUTES)  # viewers, too, share a busy machine
    by_socket, by_file = bytearray(), bytearray()
    with serving(make_context(clock=lambda: 1000 * time.monotonic())) as url:
        stream = of.connect(url).open("a red ball", seconds=60 * MINUTES)
        while not stream.view()["made_s"]:
            time.sleep(0.01)
        address = f"{url}/v1/streams/{stream.id}/media.mp4?from=start"
        reader = threading.Thread(target=read_file, args=(address, by_file))
        reader.start()
        for event in stream.follow(from_start=True):
            assert event.kind != "skipped"
            by_socket += event.data or b""
        reader.join(60)
    assert by_file == by_socket

    with av.open(io.BytesIO(by_socket)) as file:
        frames = np.sort([float(packet.pts * packet.time_base) for packet in file.demux(video=0) if packet.size])
    assert len(frames) == 1 + 24 * 60 * MINUTES
    np.testing.assert_allclose(frames, np.arange(len(frames)) / 24, atol=1e-3)
    with av.open(io.BytesIO(by_socket)) as file:
        heard = [(frame.time, frame.to_ndarray()[0]) for frame in file.decode(audio=0)]
    starts = np.array([time for time, _ in heard])
    counted = np.concatenate([[0], np.cumsum([len(samples) for _, samples in heard])[:-1]]) / RATE
    np.testing.assert_allclose(starts, counted, atol=0.02)
    assert abs(frames[-1] - starts[-1]) < 0.2

    # The last seconds themselves: what is seen and heard at a time is what was made for that time.
    source = MockSource(0, "a red ball", block=60 * MINUTES - 4)
    chunks = [source.make() for _ in range(5)]
    sound = np.concatenate([samples for _, samples in heard])
    first = round(chunks[1].audio_start_s * RATE)
    truth = np.concatenate([chunk.audio[:, 0] for chunk in chunks])
    assert abs(lag(sound[first : first + 2 * RATE], truth[: 4 * RATE], RATE) - 1) < 0.02
    last = chunks[-1].video[-1].astype(float)
    with av.open(io.BytesIO(by_socket)) as file:
        file.seek(int(1e6 * (60 * MINUTES - 1)))
        picture = list(file.decode(video=0))[-1].to_ndarray(format="rgb24").astype(float)
    errors = [np.abs(picture - each).mean() for each in chunks[-1].video]
    assert np.argmin(errors) == len(errors) - 1
    assert np.abs(picture - last).mean() < 3
