"""The client in Python, against a server with real sockets."""

import pytest
from live_server import make_context, serving

import omniforcing_jax as of
from omniforcing_jax.stream.remote import RemoteError


def test_a_stream_is_opened_followed_and_changed():
    with serving(make_context(token="secret123")) as url:
        server = of.connect(f"{url}/?token=secret123")
        assert server.about()["is_mock"]
        stream = server.open("a red ball", seed=1, seconds=5)
        events, stages = [], []
        for event in stream.follow(from_start=True):
            events.append(event)
            if event.kind == "fragment" and not stages:
                stages.append(stream.set_prompt("a green ball")["stage"])
            if event.kind == "receipt":
                stages.append(event.values["receipt"]["stage"])
        assert stages == ["received", "received", "applied"]
        assert events[-1].values == {"type": "end", "message": "the stream has ended"}
        fragments = [event for event in events if event.kind == "fragment"]
        assert fragments[-1].values["end_s"] == pytest.approx(121 / 24)
        assert stream.view()["state"] == "ended"
        with pytest.raises(RemoteError, match="a token is needed"):
            of.connect(url).about()
        with pytest.raises(RemoteError, match="cannot read the prompt"):
            server.open("a ball of fire")
