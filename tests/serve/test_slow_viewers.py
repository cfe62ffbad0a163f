"""Viewers that read slowly: nothing hangs up on them because an answer of theirs waits behind media."""

import asyncio
import contextlib
import functools
import selectors
import socket
import time

import pytest
import uvicorn
import websockets.sync.client as client
from live_server import make_context, serving

import omniforcing_jax as of
from omniforcing_jax.io.tcp import GONE_S, UNSENT_BYTES
from omniforcing_jax.serve.app import make_app
from omniforcing_jax.serve.server import configure, listen
from omniforcing_jax.serve.simulated_viewer import SimulatedViewer

HURRY = 200.0  # seconds of a hurried loop in one of ours
WATCHED_S = 400.0  # the server pinged after 20 s and waited for 60, a client for 20
SLOW = 100.0  # bytes per second: a fragment takes two minutes, longer than any ping waited for its answer


class HurriedSelector(selectors.DefaultSelector):
    def select(self, timeout=None):
        return super().select(timeout and timeout / HURRY)


class HurriedLoop(asyncio.SelectorEventLoop):
    """A loop whose clock runs fast, so that minutes of pings and waits are seconds."""

    def __init__(self):
        super().__init__(HurriedSelector())

    def time(self):
        return HURRY * super().time()


@contextlib.asynccontextmanager
async def serving_here(context):
    """Serve in this loop; yields the address."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(configure(make_app(context)))
        task = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


def test_a_viewer_that_reads_slowly_is_not_hung_up_on():
    context = make_context()

    async def run():
        async with serving_here(context) as url:
            context.engine.start()
            stream = await asyncio.to_thread(of.connect(url).open, "a red ball")
            viewers = [
                SimulatedViewer(stream.server.socket_url(f"/v1/streams/{stream.id}/live"), rate)
                for rate in (SLOW, None)
            ]
            await asyncio.gather(*(each.watch(WATCHED_S) for each in viewers))
            return viewers

    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        slow, quick = runner.run(run())
    context.engine.stop()
    assert (slow.lost, quick.lost) == ("", "")
    assert quick.arrivals
    assert len(slow.arrivals) < 4


def test_viewers_are_served_under_uvloop_as_ray_runs_servers():
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed: it comes with Ray")
    context = make_context()

    async def run():
        async with serving_here(context) as url:
            context.engine.start()
            stream = await asyncio.to_thread(of.connect(url).open, "a red ball")
            viewer = SimulatedViewer(stream.server.socket_url(f"/v1/streams/{stream.id}/live"))
            await viewer.watch(20.0, 1.0)
            return viewer

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        viewer = runner.run(run())
    context.engine.stop()
    assert viewer.arrivals


def test_a_program_that_takes_its_time_between_events_is_not_hung_up_on(monkeypatch):
    """The client's own ping was answered behind events that the program had not read yet."""
    hurried = functools.partial(client.connect, ping_interval=0.05, ping_timeout=0.1)
    monkeypatch.setattr(client, "connect", hurried)
    with serving(make_context(ahead_s=20.0)) as url:
        stream = of.connect(url).open("a red ball", seconds=20)
        while stream.view()["made_s"] < 15:
            time.sleep(0.05)
        fragments = 0
        for event in stream.follow(from_start=True):
            if event.kind == "header":
                time.sleep(0.5)
            fragments += event.kind == "fragment"
            if fragments == 15:
                break
    assert fragments == 15


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no TCP_USER_TIMEOUT")
def test_the_kernel_notices_who_is_gone_and_holds_little_for_who_is_slow():
    with (
        contextlib.closing(listen("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        contextlib.closing(listener.accept()[0]) as line,
    ):
        options = [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE_S),
            (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES),
        ]
        assert [line.getsockopt(level, name) for level, name, _ in options] == [value for _, _, value in options]
