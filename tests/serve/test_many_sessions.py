"""Long runs: memory stays flat, clocks do not drift apart."""

import gc
import io
from concurrent.futures import Future, ThreadPoolExecutor

import av
import numpy as np
import pytest
from fake import body

from omniforcing_jax.io import machine
from omniforcing_jax.serve import requests, seats, viewers
from omniforcing_jax.serve.fragments import Fragment, Fragmenter
from omniforcing_jax.serve.messages import PromptBody
from omniforcing_jax.serve.mock import MockSource

SESSIONS, SAMPLE = 10_000, 1000
MINUTES = 10


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


@pytest.mark.long
def test_memory_is_flat_over_ten_thousand_sessions(stage, monkeypatch):
    monkeypatch.setattr(seats, "Fragmenter", NoEncoder)
    monkeypatch.setattr(seats, "Overlapped", NoThread)
    it = stage()
    it.engine.preparing = it.engine.saving = Inline()
    come_and_go(it, SAMPLE)
    gc.collect()
    before, objects = machine.resident_bytes(), len(gc.get_objects())
    come_and_go(it, SESSIONS - SAMPLE)
    gc.collect()
    assert not it.engine.sessions
    assert it.engine.totals["streams_created"] == SESSIONS
    assert len(gc.get_objects()) < objects + 2000
    assert machine.resident_bytes() < before + 20e6


@pytest.mark.long
def test_sound_and_picture_stay_together_over_ten_minutes():
    fragmenter, source = Fragmenter(height=64, width=64, sample_rate=24_000), MockSource(0, "a red ball")
    pieces = [fragmenter.init]
    for _ in range(60 * MINUTES + 1):
        fragment = fragmenter.push(source.make())
        pieces += [] if fragment is None else [fragment.data]
    data = b"".join(pieces)
    with av.open(io.BytesIO(data)) as file:
        frames = np.array([float(packet.pts * packet.time_base) for packet in file.demux(video=0) if packet.size])
    np.testing.assert_allclose(np.sort(frames), np.arange(len(frames)) / 24, atol=1e-3)
    with av.open(io.BytesIO(data)) as file:
        heard = [(frame.time, frame.samples) for frame in file.decode(audio=0)]
    starts = np.array([time for time, _ in heard])
    counted = np.concatenate([[0], np.cumsum([samples for _, samples in heard])[:-1]]) / 24_000
    np.testing.assert_allclose(starts, counted, atol=0.02)
    assert frames.max() >= 60 * MINUTES
    assert abs(frames.max() - starts[-1]) < 0.2
