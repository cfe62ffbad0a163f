"""The server as a process, with chime's weights: watched in a browser, told to stop, killed, and started again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from browser import CHROMIUM, FLAGS, MISSING, Person

import omniforcing_jax as of
from omniforcing_jax.chime.prompts import COLOURS
from omniforcing_jax.chime.track import watch
from omniforcing_jax.serve.fragments import digest
from omniforcing_jax.serve.server import listen
from omniforcing_jax.stream.remote import RemoteError

pytestmark = pytest.mark.long
SEED, PROMPT = 11, "a red ball"


class Process:
    """A server in a process of its own."""

    def __init__(self, *flags, cache):
        flags = flags if "--port" in flags else ("--port", "0", *flags)
        command = [sys.executable, "-m", "omniforcing_jax", "serve", *flags]
        # A program that another kind of machine compiled would not be bit-equal; both servers have one cache.
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        line = next(each for each in self.process.stderr if each.startswith("watch at"))
        self.url = line.split()[-1]
        self.server = of.connect(self.url)
        for _ in range(3000):
            try:
                self.server.ask("GET", "/readyz")
                return
            except RemoteError:
                time.sleep(0.1)
        raise AssertionError("the server is not ready after five minutes")

    def end(self, number):
        """Send a signal; returns the exit code."""
        self.process.send_signal(number)
        self.process.stderr.read()
        return self.process.wait(60)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


def digests(stream, until, found, from_start=True):
    """Follow a stream up to a block; notes each block's digest."""
    for event in stream.follow(from_start=from_start):
        if event.kind == "fragment":
            found |= {mark["index"]: mark["digest"] for mark in event.values["blocks"]}
            if max(found) >= until:
                return


def test_after_kill_9_a_stream_goes_on_bit_by_bit(cache, tmp_path):
    first = Process("--state", str(tmp_path), "--save-every", "3", cache=cache)
    stream, before, after = first.server.open(PROMPT, seed=SEED), {}, {}
    digests(stream, 7, before)
    first.end(signal.SIGKILL)
    again = Process("--state", str(tmp_path), "--save-every", "3", cache=cache)
    (offered,) = again.server.ask("GET", "/v1/streams")["streams"]
    assert (offered["id"], offered["state"], offered["prompt"]) == (stream.id, "saved", PROMPT)
    cut = offered["block"]
    assert 3 <= cut <= 8
    digests(again.server.stream(stream.id), 10, after)
    assert min(after) == cut
    whole = of.open_stream("chime", PROMPT, 10, SEED)
    expected = {chunk.index: digest(chunk) for chunk in whole if len(chunk.video)}
    assert before == {index: expected[index] for index in before}
    assert {index: after[index] for index in after if index <= 10} == {i: expected[i] for i in range(cut, 11)}

    seen = []
    for event in again.server.stream(stream.id).follow():
        seen.append(event)
        if len(seen) == 4:
            again.process.send_signal(signal.SIGTERM)
    assert (seen[-1].kind, seen[-1].values["message"]) == ("end", "the server is going down; the stream is saved")
    assert again.process.wait(60) == 128 + signal.SIGTERM
    saved = json.loads((tmp_path / stream.id / "session.json").read_text())
    assert saved["block"] > cut


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_the_page_plays_chime_for_half_a_minute_and_shows_a_new_colour(cache):
    from playwright.sync_api import sync_playwright

    served = Process("--ahead", "20", cache=cache)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        it = Person(browser.new_page())
        it.page.goto(served.url)
        it.wait(lambda: it.page.query_selector("#suggestions button"))
        it.say("a red ball")
        it.wait_until_it_plays()
        it.wait_for_buffer(16.0)  # more than is watched at a time: what other jobs leave of the device does not matter
        before, stalls = it.figures(), it.page.inner_text("#f-underruns")
        moved, took = it.watch_for(15.0)
        it.say("a green ball")
        it.wait_for_change(120.0)
        it.wait_for_buffer(16.0)
        rest, took_too = it.watch_for(15.0)
        after = it.figures()
        assert abs(moved - took) < 0.5
        assert abs(rest - took_too) < 0.5
        assert after["sound"] > before["sound"]
        assert after["picture"] > before["picture"]
        assert it.page.inner_text("#f-underruns") == stalls
        times, pictures, receipts = it.was_sent()
        second = receipts[-1]["second"]
        seen = watch(pictures[times > second + 3]).visible.mean(0)
        assert seen[COLOURS.index("green")] > 0.5
        assert not it.errors
        assert it.hosts == {served.url.removeprefix("http://")}
        browser.close()
    assert served.end(signal.SIGTERM) == 128 + signal.SIGTERM


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_the_page_goes_on_after_kill_9_and_says_that_the_server_goes_down(cache, tmp_path):
    from playwright.sync_api import sync_playwright

    with contextlib.closing(listen("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    flags = ("--mock", "--port", port, "--state", str(tmp_path), "--save-every", "2")
    served = Process(*flags, cache=cache)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        it = Person(browser.new_page())
        it.page.goto(served.url)
        it.wait(lambda: it.page.query_selector("#suggestions button"))
        it.say("a red ball")
        it.wait(lambda: it.figures()["time"] > 4)
        served.end(signal.SIGKILL)
        it.wait(lambda: it.page.inner_text("#state") == "connecting")
        served, before = Process(*flags, cache=cache), it.figures()["time"]
        it.wait(lambda: it.page.inner_text("#state") == "running" and it.figures()["time"] > before + 3, 30.0)
        assert not it.page.is_visible("#error")
        assert served.end(signal.SIGTERM) == 128 + signal.SIGTERM
        it.wait(lambda: "the stream is saved" in it.page.inner_text("#error"))
        browser.close()
