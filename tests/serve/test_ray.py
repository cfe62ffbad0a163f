"""Two engines under a local Ray: streams stay where they are, and a lost engine takes only its own with it."""

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import omniforcing_jax as of
from omniforcing_jax.serve.server import listen

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of Pydantic
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'"),
]
ROOT = Path(__file__).parents[2]
APP = ROOT / "launch" / "serve"


@pytest.fixture
def url(monkeypatch):
    import ray
    from ray import serve

    monkeypatch.syspath_prepend(APP)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(APP), str(ROOT)]))  # of Ray's workers
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # its sockets need a short path
    with contextlib.closing(listen("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    import ray_app

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(ray_app.build({"replicas": "2", "gpus": "0", "mock": "true"}))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()
    sys.modules.pop("ray_app")
    shutil.rmtree(folder, ignore_errors=True)


def test_streams_stay_at_their_engine_and_a_lost_one_takes_only_its_own(url):
    from ray import serve

    server = of.connect(url)
    streams = [server.open("a red ball", seed=i) for i in range(2)]
    assert {stream.id[:2] for stream in streams} == {"ab", "ac"}
    assert {each["id"] for each in server.ask("GET", "/v1/streams")["streams"]} == {each.id for each in streams}
    assert server.read_text("/").startswith("<!doctype html>")
    assert streams[1].set_prompt("a green ball")["stage"] == "received"

    told, seen = [], []

    def follow(stream, found, until):
        for event in stream.follow():
            found.append(event)
            if sum(each.kind == "fragment" for each in found) >= until:
                return

    watchers = [
        threading.Thread(target=follow, args=(streams[0], told, 1000)),
        threading.Thread(target=follow, args=(streams[1], seen, 12)),
    ]
    for each in watchers:
        each.start()
    while sum(event.kind == "fragment" for event in told) < 3:
        assert watchers[0].is_alive()
    process = serve.get_deployment_handle(f"engine-{'bc'.index(streams[0].id[1])}", "default").process.remote().result()
    os.kill(process, signal.SIGKILL)
    for each in watchers:
        each.join(60)
    assert told[-1].values == {"type": "end", "message": "the replica of this stream was lost, and the stream with it"}
    assert sum(event.kind == "fragment" for event in seen) == 12
    assert streams[1].view()["state"] in ("running", "asleep")
