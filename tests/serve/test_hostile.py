"""Hostile requests: each is refused in words, nothing breaks, and streams go on meanwhile."""

import json
import string

import pytest
from fake import FakeStudio, Stage, body
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live_server import make_context
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from omniforcing_jax.chime import prompts
from omniforcing_jax.io import machine
from omniforcing_jax.serve import requests, viewers
from omniforcing_jax.serve.app import make_app
from omniforcing_jax.serve.context import ServerContext
from omniforcing_jax.serve.door import Door
from omniforcing_jax.serve.uploads import Uploads

# The type checker of the tests looks at an element of a list that it picks at random.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
EXAMPLES = 250  # of each of two kinds
PATHS = [
    "",
    "/{id}",
    "/{id}/prompt",
    "/{id}/camera",
    "/{id}/pause",
    "/{id}/resume",
    "/{id}/fork",
    "/{id}/save",
    "/{id}/media.mp4",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = [
    "prompt",
    "seed",
    "seconds",
    "height",
    "width",
    "window",
    "steps",
    "start",
    "compress",
    "camera",
    "recompute",
    "fade",
    "at",
]
BODIES = (
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6).map(json.dumps).map(str.encode)
    | JSON.map(json.dumps).map(str.encode)
    | st.binary(max_size=200)
    | st.integers(1, 60_000).map(lambda depth: b"[" * depth)
)
NAMES = st.text(string.printable, max_size=40) | st.sampled_from(["../../etc/passwd", "%2e%2e", "\x00", "a" * 5000])


@pytest.fixture(scope="module")
def client():
    context = make_context(requests_per_s=1e6, max_sessions=4, per_client=4)
    context.engine.start()
    with TestClient(make_app(context), base_url="http://localhost", raise_server_exceptions=True) as found:
        while found.get("/readyz").status_code != 200:
            pass
        found.stream_id = found.post("/v1/streams", json={"prompt": "a red ball"}).json()["id"]
        yield found
    context.engine.stop()


def check(answer):
    """A refusal has a status of its kind and one line."""
    assert answer.status_code < 500 or answer.status_code == 503, answer.text
    if answer.status_code >= 400:
        (words,) = answer.json().values()
        assert words
        assert "\n" not in words
        assert len(words) < 1000


@pytest.mark.long
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(method=st.sampled_from(["POST", "DELETE", "PUT"]), path=st.sampled_from(PATHS), name=NAMES, data=BODIES)
def test_hostile_requests_are_refused_in_words(client, method, path, name, data):
    is_ours = len(data) % 2 and method != "DELETE"
    safe = client.stream_id if is_ours else "".join(f"%{byte:02x}" for byte in name.encode())
    check(client.request(method, "/v1/streams" + path.replace("{id}", safe), content=data))
    for view in client.get("/v1/streams").json()["streams"]:
        if view["id"] != client.stream_id:
            client.delete(f"/v1/streams/{view['id']}")


@pytest.mark.long
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(message=BODIES | st.text(max_size=100).map(str.encode), is_text=st.booleans())
def test_hostile_viewers_are_told_and_let_go(client, message, is_text):
    url = f"ws://localhost/v1/streams/{client.stream_id}/live"
    with client.websocket_connect(url) as socket:
        if is_text:
            socket.send_text(message.decode(errors="replace"))
        else:
            socket.send_bytes(message)
        while (values := json.loads(socket.receive_text()))["type"] != "error":
            if "bytes" in values:
                socket.receive_bytes()
        assert "\n" not in values["message"]
        with pytest.raises(WebSocketDisconnect):
            socket.receive_text()


@pytest.mark.long
def test_the_stream_and_the_memory_are_unharmed_after_that(client):
    view = client.post(f"/v1/streams/{client.stream_id}/resume").json()  # to pause it was no hostile request
    assert view["state"] in ("running", "asleep")
    assert (view["viewers"], view["underruns"]) == (0, 0)
    assert machine.resident_bytes() < 3e9
    answer = client.post(f"/v1/streams/{client.stream_id}/prompt", json={"prompt": "a green ball"})
    assert answer.status_code == 202


MOMENT_S, MESSAGES = 0.1, 50
CALLS = st.tuples(st.sampled_from(["", "/{id}", "/{id}/prompt", "/{id}/fork"]), NAMES, BODIES)


class ChimesWords(FakeStudio):
    """Refuses what chime cannot read. A block takes a sixth of a second of a clock that is moved by hand."""

    def check_prompt(self, prompt):
        prompts.parse(prompt)


def run_two_streams(disturb):
    """Let two streams be watched while something else happens; returns all that their pace shows."""
    stage = Stage(cost_s=1 / 6, studio=ChimesWords)
    context = ServerContext(stage.engine, stage.engine.limits, Uploads(), Door(requests_per_s=1e6))
    sessions = [requests.create(stage.engine, body(seed=i), f"client {i}") for i in range(2)]
    pairs = [(each, viewers.join(stage.engine, each, lambda: None, False)) for each in sessions]
    with TestClient(make_app(context), base_url="http://localhost") as client:
        for turn in range(MESSAGES):
            disturb(client, sessions[0].id, turn)
            stage.run(MOMENT_S)
            for session, viewer in pairs:
                while viewers.take(stage.engine, session, viewer).fragment is not None:
                    pass
    stage.close()
    return [(each.block, each.made_s, viewer.clock.stalls, each.underruns) for each, viewer in pairs], stage.clock.now


def talk(client, name, message):
    """Be a viewer for a message that is none."""
    with client.websocket_connect(f"ws://localhost/v1/streams/{name}/live") as socket:
        socket.send_text(message.decode(errors="replace"))
        while socket.receive()["type"] != "websocket.close":
            pass


@pytest.mark.long
@settings(max_examples=500 // MESSAGES, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(calls=st.lists(CALLS, min_size=MESSAGES, max_size=MESSAGES))
def test_hostile_messages_do_not_change_the_pace_of_streams(calls):
    def disturb(client, ours, turn):
        path, name, data = calls[turn]
        if turn % 10 == 0:
            talk(client, ours, data)
            return
        is_ours = path.endswith("prompt") and turn % 2
        safe = ours if is_ours else "".join(f"%{byte:02x}" for byte in name.encode())
        answer = client.post("/v1/streams" + path.replace("{id}", safe), content=data)
        check(answer)
        assert answer.status_code >= 400

    assert run_two_streams(disturb) == run_two_streams(lambda *_: None)
