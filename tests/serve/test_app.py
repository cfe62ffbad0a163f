"""The API over HTTP and WebSockets: what it answers, and whom it refuses."""

import io
import json
import re
import time

import av
import numpy as np
import pytest
from live_server import make_context
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from omniforcing_jax.serve.app import make_app
from omniforcing_jax.serve.endpoints import ENDPOINTS

HOME = "http://localhost"


@pytest.fixture
def server():
    """Open clients of servers with given limits; each server is stopped after the test."""
    opened = []

    def start(**values):
        context = make_context(**values)
        client = TestClient(make_app(context), base_url=HOME)
        context.engine.start()
        client.__enter__()
        opened.append((client, context))
        while context.engine.stage == "loading":
            time.sleep(0.01)
        return client

    yield start
    for client, context in opened:
        client.__exit__(None, None, None)
        context.engine.stop()


def new_stream(client, **values):
    answer = client.post("/v1/streams", json={"prompt": "a red ball", **values})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def wait_for(client, name, holds):
    for _ in range(300):
        view = client.get(f"/v1/streams/{name}").json()
        if holds(view):
            return view
        time.sleep(0.02)
    raise AssertionError(view)


def receive(socket):
    values = json.loads(socket.receive_text())
    return values, socket.receive_bytes() if "bytes" in values else None


def receive_until(socket, holds):
    found = []
    while not found or not holds(found[-1][0]):
        found.append(receive(socket))
    return found


def test_a_stream_is_watched_changed_and_deleted(server):
    client = server()
    name = new_stream(client, seed=3)
    with client.websocket_connect(f"ws://localhost/v1/streams/{name}/live") as socket:
        seen = receive_until(socket, lambda values: values["type"] == "fragment" and values["number"] == 1)
        answer = client.post(f"/v1/streams/{name}/prompt", json={"prompt": "a green ball"})
        assert (answer.status_code, answer.json()["stage"]) == (202, "received")
        seen += receive_until(socket, lambda v: v["type"] == "receipt" and v["receipt"]["stage"] == "applied")
        assert client.delete(f"/v1/streams/{name}").status_code == 204
        end = receive_until(socket, lambda values: values["type"] == "end")[-1][0]
    assert end["message"] == "the stream was deleted"
    kinds = [values["type"] for values, _ in seen]
    assert kinds.index("header") < kinds.index("fragment")
    pieces = [data for values, data in seen if values["type"] in ("header", "fragment")]
    with av.open(io.BytesIO(b"".join(pieces))) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == sum(round(24 * (v["end_s"] - v["start_s"])) for v, _ in seen if v["type"] == "fragment")
    assert client.get(f"/v1/streams/{name}").status_code == 404


def test_what_is_asked_for_wrongly_is_said_in_one_line(server):
    client = server()
    name = new_stream(client)
    for path, body, status, words in [
        ("/v1/streams", {"prompt": "a ball of fire"}, 422, "cannot read the prompt"),
        ("/v1/streams", {"prompt": ""}, 422, "prompt=''"),
        ("/v1/streams", {"prompt": "a red ball", "seed": "x"}, 422, "seed='x'"),
        ("/v1/streams", {"prompt": "a red ball", "sed": 1}, 422, "unknown keys ['sed']"),
        ("/v1/streams", {"prompt": "a red ball", "height": 31}, 422, "height=31"),
        ("/v1/streams", {"prompt": "a red ball", "start": "../../etc/passwd"}, 404, "no such upload"),
        (f"/v1/streams/{name}/prompt", {"prompt": "a red ball", "fade": -1}, 422, "fade=-1"),
        (f"/v1/streams/{name}/save", None, 409, "--state"),
        ("/v1/streams/nothing/pause", None, 404, "no such stream"),
        ("/v1/nothing", None, 404, "nothing at this address"),
    ]:
        answer = client.post(path, json=body)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), path
        assert words in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    assert client.post("/v1/streams", content=b"{" * 100_000).status_code == 413
    assert "not JSON" in client.post("/v1/streams", content=b"\xff").json()["error"]


def test_pause_resume_and_fork(server):
    client = server()
    name = new_stream(client)
    wait_for(client, name, lambda view: view["made_s"] > 1)
    assert client.post(f"/v1/streams/{name}/pause").json()["state"] == "paused"
    assert client.post(f"/v1/streams/{name}/resume").json()["state"] in ("running", "asleep")
    fork = client.post(f"/v1/streams/{name}/fork")
    assert fork.status_code == 201
    listed = client.get("/v1/streams").json()["streams"]
    assert [each["id"] for each in listed] == [name, fork.json()["id"]]


def test_a_file_grows_and_a_download_ends(server):
    client = server()
    name = new_stream(client, seconds=2)
    data = client.get(f"/v1/streams/{name}/media.mp4").content
    with av.open(io.BytesIO(data)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 49
    answer = client.get(f"/v1/streams/{name}/media.mp4?from=start&until=now&download=1")
    assert answer.content == data
    assert "attachment" in answer.headers["content-disposition"]


def test_a_playlist_names_segments_that_play(server):
    client = server()
    name = new_stream(client)
    path = f"/v1/streams/{name}"
    segments = []
    while len(segments) < 2:
        text = client.get(f"{path}/index.m3u8").text
        segments = re.findall(r"^segments/.*$", text, re.MULTILINE)
    data = b"".join(client.get(f"{path}/{each}").content for each in ["header.mp4", *segments])
    with av.open(io.BytesIO(data)) as file:
        assert sum(1 for _ in file.decode(video=0)) >= 49
    assert client.get(f"{path}/segments/999.m4s").status_code == 404
    assert client.get(f"{path}").json()["viewers"] == 1


def test_the_poster_is_the_newest_frame(server):
    client = server()
    name = new_stream(client)
    wait_for(client, name, lambda view: view["made_s"] > 1)
    with av.open(io.BytesIO(client.get(f"/v1/streams/{name}/poster.png").content)) as file:
        (frame,) = file.decode(video=0)
    assert frame.to_ndarray(format="rgb24").shape == (64, 64, 3)
    assert np.ptp(frame.to_ndarray(format="rgb24")) > 50


def test_only_this_servers_names_and_pages_are_let_in(server):
    client = server()
    assert client.get("/v1/server", headers={"host": "evil.example:80"}).status_code == 421
    evil = {"origin": "http://evil.example"}
    assert client.post("/v1/streams", json={"prompt": "a red ball"}, headers=evil).status_code == 403
    name = new_stream(client)
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(f"ws://localhost/v1/streams/{name}/live", headers=evil),
    ):
        pass
    assert client.post("/v1/streams", json={"prompt": "a red ball"}, headers={"origin": HOME}).status_code == 201


def test_a_token_is_asked_for_everywhere_but_at_the_page_and_the_probes(server):
    client = server(token="secret123")
    for path in ("/", "/page/app.js", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200, path
    for path in ("/v1/server", "/v1/streams", "/metrics", "/v1/openapi.json", "/v1/streams/x/media.mp4"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert client.get(path + "?token=wrong").status_code == 401
        assert client.get(path + "?token=secret123").status_code in (200, 404)
        assert client.get(path, headers={"authorization": "Bearer secret123"}).status_code in (200, 404)


def test_a_client_that_asks_too_often_is_told(server):
    client = server(requests_per_s=1.0)
    answers = [client.post("/v1/streams", json={}) for _ in range(5)]
    assert answers[-1].status_code == 429
    assert client.get("/v1/server").status_code == 200


def test_a_viewer_that_talks_nonsense_is_told_and_let_go(server):
    client = server()
    name = new_stream(client)
    for text in ("{", "[]", '{"second": "x", "playing": true}', '{"second": 1}', "x" * 5000):
        with client.websocket_connect(f"ws://localhost/v1/streams/{name}/live") as socket:
            socket.send_text(text)
            error = receive_until(socket, lambda values: values["type"] == "error")[-1][0]
            assert "message" in error["message"] or "PlayedMessage" in error["message"]
    assert client.get(f"/v1/streams/{name}").json()["viewers"] == 0


def test_the_page_needs_no_other_host_and_no_inline_script(server):
    client = server()
    answer = client.get("/")
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", answer.text)
    for name in ["/", *re.findall(r'(?:src|href)="(/page/[^"]+)"', answer.text)]:
        text = client.get(name).text
        assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w-]+\.\w+", text), name
    assert client.get("/page/../app.py").status_code == 404


def test_probes_and_figures(server):
    client = server()
    name = new_stream(client)
    wait_for(client, name, lambda view: view["made_s"] > 1)
    assert client.get("/readyz").json()["stage"] == "ready"
    text = client.get("/metrics").text
    assert 'omniforcing_streams{state="running"} 1.0' in text
    assert re.search(r"^omniforcing_blocks_total [1-9]", text, re.MULTILINE)


def test_the_document_has_every_endpoint_and_message(server):
    document = server().get("/v1/openapi.json").json()
    for endpoint in ENDPOINTS:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", endpoint.path)
        assert endpoint.method.lower() in document["paths"][path]
    schemas = document["components"]["schemas"]
    assert schemas["StreamRequestBody"]["required"] == ["prompt"]
    for schema in schemas.values():
        assert all(each["description"] for each in schema["properties"].values())
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named == set(schemas)
