"""`serve --mesh`: streams of a network that is cut over several devices, asked for from several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake import body
from refusal import refusal
from tiny_stream import PROMPT, folders, student

from omniforcing_jax import open_stream
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.parallel.mesh import MeshConfig
from omniforcing_jax.serve import requests, viewers
from omniforcing_jax.serve.engine import Engine
from omniforcing_jax.serve.fragments import digest
from omniforcing_jax.serve.limits import Limits
from omniforcing_jax.serve.network import NetworkStudio
from omniforcing_jax.serve.stored import Store

BLOCKS = 3


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ("1,1", "--mesh 1,1: must be three numbers"),
        ("1,1,2", "--mesh 1,1,2: needs 2 devices, there are 8"),
        ("1,1,8", "tensor=8 does not divide video's heads, 4"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_served(mesh, words, capsys):
    assert words in refusal(capsys, ["serve", "--port", 0, "--weights", folders() / "student", "--mesh", mesh])


def test_the_mock_server_takes_no_mesh(capsys):
    assert "mesh='1,1,8'" in refusal(capsys, ["serve", "--port", 0, "--mock", "--mesh", "1,1,8"])


def chunks_of(studio):
    source = studio.open(body(PROMPT), None, lambda text: None)
    return [source.make() for _ in range(BLOCKS)], source


@pytest.mark.long
def test_streams_on_a_mesh_are_those_of_one_device_and_go_on_bit_by_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(NetworkStudio, "_rehearse", lambda *_: 1.0)  # programs are compiled as they are needed
    studio = NetworkStudio(str(folders() / "student"), "float32", Startup("serve"), MeshConfig.parse("1,2,4"))
    engine = Engine(studio, Limits(), Store(None))
    engine.warm()
    with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(1) as saving:  # as an engine's threads
        chunks, source = device.submit(chunks_of, studio).result()
        fork = device.submit(source.fork).result()
        saving.submit(fork.save, tmp_path / "state").result()
        expected = device.submit(source.make).result()
        assert digest(saving.submit(studio.reopen, tmp_path / "state").result().make()) == digest(expected)
        contexts = saving.submit(studio.encode, PROMPT).result()
        device.submit(fork.set_prompt, PROMPT, contexts, 0, 0).result()
        assert device.submit(fork.make).result().index == expected.index
    for chunk, alone in zip(chunks, open_stream(student(), PROMPT, BLOCKS), strict=False):
        assert chunk.index == alone.index
        assert np.abs(chunk.video.astype(int) - alone.video).max(initial=0) <= 1  # on the edge of two bytes
        np.testing.assert_allclose(chunk.audio, alone.audio, atol=1e-4)

    engine.start()
    session = requests.create(engine, body(PROMPT), "me")
    viewers.join(engine, session, lambda: None, False)
    with engine.lock:
        engine.lock.wait_for(lambda: session.block >= 2 or session.state == "failed", 120)
    engine.stop()
    assert (session.state, session.message) == ("running", "")
