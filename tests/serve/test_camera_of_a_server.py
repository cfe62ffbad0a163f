"""Cameras on a server: asked for, changed at block borders, told in receipts, kept with the stream, and refused."""

import dataclasses
import json

import numpy as np
import pytest
from fake import FakeSource, FakeStudio, body
from live_server import make_context
from random_weights import fill
from starlette.testclient import TestClient
from tiny_stream import PROMPT

from omniforcing_jax.config import CameraConfig
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.layout import PREFIX2
from omniforcing_jax.parallel.mesh import MeshConfig
from omniforcing_jax.pipeline.pipeline import abstract_pipeline
from omniforcing_jax.pipeline.presets import TINY_STREAM
from omniforcing_jax.pipeline.weights_folder import save_pipeline
from omniforcing_jax.serve import requests, viewers
from omniforcing_jax.serve.app import make_app
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.messages import CameraBody, PromptBody
from omniforcing_jax.serve.mock import MockSource, MockStudio
from omniforcing_jax.serve.network import NetworkStudio
from omniforcing_jax.serve.studio import StartMedia
from omniforcing_jax.stream.conditioning.condition import Condition
from omniforcing_jax.stream.start import open_stream

CAMERAS = dataclasses.replace(
    TINY_STREAM,
    model=dataclasses.replace(TINY_STREAM.model, camera=CameraConfig(heads=2, head_size=16)),
    sampler=dataclasses.replace(TINY_STREAM.sampler, layout=PREFIX2, needs_picture=True),
)
KEYS = "wl-24,none-24"
PICTURE = np.linspace(0, 255, 64 * 96 * 3).reshape(1, 64, 96, 3).astype(np.uint8)
IMAGE = StartMedia(kind="image", picture=PICTURE, sound=None, seconds=0.0)
SOUND = StartMedia(kind="sound", picture=None, sound=np.zeros((32_000, 2), np.float32), seconds=2.0)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Weights with cameras that must begin with a picture; nothing is loaded."""
    folder = tmp_path_factory.mktemp("weights") / "cameras"
    save_pipeline(folder, fill(abstract_pipeline(CAMERAS)))
    return NetworkStudio(str(folder), "float32", Startup("serve"), MeshConfig())


def watch(it, session, seconds):
    """Play a stream for some time."""
    viewer, end = viewers.join(it.engine, session, lambda: None, False), it.clock.now + seconds
    while it.clock.now < end:
        it.run(0.1)
        while viewers.take(it.engine, session, viewer).fragment is not None:
            pass
    viewers.leave(it.engine, session, viewer)


def turn(it, session, camera):
    return requests.change_camera(it.engine, session, CameraBody(camera=camera))


def test_a_change_of_camera_gets_two_receipts_and_waits_for_no_prompt(stage):
    it = stage()
    session = requests.create(it.engine, body(camera="w-9"), "me")
    watch(it, session, 3)
    requests.change_prompt(it.engine, session, PromptBody(prompt="later", at=60.0))
    received = turn(it, session, KEYS)
    assert (received.kind, received.camera, received.prompt, received.stage) == ("camera", KEYS, None, "received")
    watch(it, session, 2)
    applied = session.receipts[-1]
    assert (applied.id, applied.stage, applied.camera) == (received.id, "applied", KEYS)
    assert applied.second == pytest.approx((1 + 24 * (applied.block - 1)) / 24)
    assert applied.delay_s <= 2
    assert session.source.cameras == (KEYS,)
    assert [each.stage for each in session.receipts] == ["received", "applied"]
    assert requests.view(it.engine, session).camera == KEYS


def test_of_cameras_for_one_border_the_last_counts_and_only_that_waits(stage):
    it = stage()
    session = requests.create(it.engine, body(), "me")
    watch(it, session, 3)
    requests.pause(it.engine, session, True)
    requests.change_prompt(it.engine, session, PromptBody(prompt="a red ball"))
    for frames in range(1, 40):
        turn(it, session, f"w-{frames}")
    turn(it, session, None)
    assert len(session.changes) == 2
    requests.pause(it.engine, session, False)
    watch(it, session, 3)
    prompt, *cameras = session.receipts
    assert (prompt.kind, prompt.stage) == ("prompt", "applied")  # no number of moves pushes it out
    assert [each.stage for each in cameras] == ["replaced"] * 7 + ["applied"]
    assert session.source.cameras == (None,)


def test_a_camera_that_is_refused_is_told_and_the_stream_goes_on(stage):
    class Stuck(FakeSource):
        def set_camera(self, camera):
            raise ValueError("camera: it is stuck")

    class Studio(FakeStudio):
        def open(self, body, start, say):
            return Stuck(self.clock, self.cost_s)

    it = stage(studio=Studio)
    session = requests.create(it.engine, body(), "me")
    turn(it, session, "w-1")
    watch(it, session, 3)
    assert (session.receipts[-1].stage, session.receipts[-1].message) == ("refused", "camera: it is stuck")
    assert (session.state, session.camera, session.made_s > 2) == ("running", None, True)
    requests.delete(it.engine, session)
    with pytest.raises(RefusedError, match="the stream is over"):
        turn(it, session, "w-1")


def test_forks_and_saved_streams_keep_their_keys(stage, tmp_path):
    it = stage(folder=tmp_path, save_every=2)
    session = requests.create(it.engine, body(camera="w-9"), "me")
    turn(it, session, KEYS)
    watch(it, session, 5)
    done = requests.fork(it.engine, session, "me")
    it.run(0.1)
    assert done.result(0).camera == KEYS
    it.engine.drain()
    offered = stage(folder=tmp_path).engine.sessions[session.id]
    assert (offered.camera, offered.body.camera) == (KEYS, "w-9")
    about = json.loads((tmp_path / session.id / "session.json").read_text())
    assert (about["camera"], about["body"]["camera"]) == (KEYS, "w-9")


def test_a_drawn_camera_moves_the_world_and_goes_on_where_it_was_saved(tmp_path):
    still, moved = MockSource(3, PROMPT), MockSource(3, PROMPT, camera="d-4,w-3")
    for source in (still, moved):
        source.make()
    one, other = still.make().video, moved.make().video
    np.testing.assert_array_equal(np.roll(one[-1], (3, -4), (0, 1)), other[-1])
    np.testing.assert_array_equal(np.roll(one[1], -3, 1), other[1])
    moved.set_camera("l-30")
    moved.make()
    moved.save(tmp_path)
    np.testing.assert_array_equal(MockStudio(has_camera=True).reopen(tmp_path).make().video, moved.make().video)
    assert moved.across == 4 + 30


def client_of(studio):
    context = make_context(studio, requests_per_s=2.0)
    context.engine.warm()
    return TestClient(make_app(context), base_url="http://localhost"), context


def test_cameras_are_asked_for_and_refused_over_http():
    client, context = client_of(MockStudio(has_camera=True))
    assert client.get("/v1/server").json()["has_camera"]
    bad = client.post("/v1/streams", json={"prompt": "a red ball", "camera": "q-3"})
    assert bad.status_code == 422
    assert bad.json()["error"].startswith("camera='q-3': 'q-3' is no segment, must be KEYS-FRAMES")
    assert not context.engine.sessions
    stream = client.post("/v1/streams", json={"prompt": "a red ball", "camera": KEYS}).json()
    assert stream["camera"] == KEYS
    path = f"/v1/streams/{stream['id']}/camera"
    answers = [client.post(path, json=values) for values in ({}, {"camera": "w"}, {"camera": "w-1," * 600})]
    assert [each.status_code for each in answers] == [422] * 3
    assert client.post(path, json={"camera": None}).status_code == 202
    assert client.post(path, json={"camera": "a-3"}).status_code == 429  # as of all that changes something
    context.engine.stop()


def test_a_server_without_cameras_says_so_and_refuses_keys():
    client, context = client_of(MockStudio())
    assert not client.get("/v1/server").json()["has_camera"]
    answer = client.post("/v1/streams", json={"prompt": "a red ball", "camera": KEYS})
    assert (answer.status_code, "the drawn world has no camera" in answer.json()["error"]) == (422, True)
    stream = client.post("/v1/streams", json={"prompt": "a red ball"}).json()
    answer = client.post(f"/v1/streams/{stream['id']}/camera", json={"camera": KEYS})
    assert answer.status_code == 422
    assert answer.json()["error"] == f"camera={KEYS!r}: 'mock' has no camera attention"
    context.engine.stop()


def test_weights_that_make_no_picture_are_given_one_and_say_so(studio, monkeypatch):
    assert (studio.has_camera, studio.needs_picture) == (True, True)
    for start in (None, SOUND):
        with pytest.raises(ValueError, match=r"^start=None: these weights make no first picture: upload an image"):
            studio.check(body(PROMPT, camera=KEYS), start)
    assert studio.check(body(PROMPT, camera=KEYS, compress=33), IMAGE) == (64, 96)
    with pytest.raises(ValueError, match="compress=52: must be between 0 and 51"):
        studio.check(body(PROMPT, compress=52), IMAGE)
    with pytest.raises(ValueError, match=r"compress=33: .*25 frames, not one"):
        studio.check(body(PROMPT, compress=33), dataclasses.replace(IMAGE, picture=np.repeat(PICTURE, 25, 0)))
    monkeypatch.setattr(studio, "needs_picture", False)
    with pytest.raises(ValueError, match="compress=33: needs an image to begin with"):
        studio.check(body(PROMPT, compress=33), SOUND)


@pytest.mark.long
def test_a_server_starts_with_cameras_and_its_streams_are_those_of_python(studio, tmp_path):
    assert studio.warm(lambda words: None) > 0
    source = studio.open(body(PROMPT, camera=KEYS, compress=33), IMAGE, lambda words: None)
    expected = open_stream(studio._pipeline, PROMPT, camera=KEYS, start=Condition(picture=PICTURE, compress=33))
    for _ in range(2):
        np.testing.assert_array_equal(source.make().video, next(expected).video)
    source.set_prompt(PROMPT, studio.encode(PROMPT), 0, 0)
    expected.set_prompt(PROMPT, 0)
    for stream in (source, expected):
        stream.set_camera("sj-48")
    source.save(tmp_path / "state")
    again = studio.reopen(tmp_path / "state")
    for _ in range(2):
        np.testing.assert_array_equal(again.make().video, next(expected).video)
