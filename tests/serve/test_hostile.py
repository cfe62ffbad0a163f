"""Hostile requests: each is refused in words, nothing breaks, and streams go on meanwhile."""

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import make_context
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from omniforcing_jax.io import machine
from omniforcing_jax.serve.app import make_app

EXAMPLES = 250  # of each of two kinds
PATHS = ["", "/{id}", "/{id}/prompt", "/{id}/pause", "/{id}/resume", "/{id}/fork", "/{id}/save", "/{id}/media.mp4"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = ["prompt", "seed", "seconds", "height", "width", "window", "steps", "start", "recompute", "fade", "at"]
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
