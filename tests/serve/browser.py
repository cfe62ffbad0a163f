"""Debian's Chromium, driven by Playwright: what a person would see, hear and be told."""

import importlib.util
import io
import json
import shutil
import time

import av
import numpy as np

CHROMIUM = shutil.which("chromium")
MISSING = (
    "playwright is not installed"
    if importlib.util.find_spec("playwright") is None
    else "Debian's chromium is not installed: make browser"
    if CHROMIUM is None
    else ""
)
FLAGS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage"]
FIGURES = """() => {
  const video = document.getElementById("video");
  return {
    time: video.currentTime, paused: video.paused, muted: video.muted,
    sound: video.webkitAudioDecodedByteCount, picture: video.webkitVideoDecodedByteCount,
    frames: video.webkitDecodedFrameCount,
  };
}"""

BUFFERED = """() => {
  const video = document.getElementById("video"), ranges = video.buffered;
  return ranges.length ? ranges.end(ranges.length - 1) - video.currentTime : 0;
}"""


class Person:
    """Somebody at a page. What the page logs, asks for and is sent is kept."""

    def __init__(self, page):
        self.page, self.errors, self.hosts, self.frames = page, [], set(), []
        page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.hosts.add(request.url.partition("//")[2].partition("/")[0]))
        page.on("websocket", self._listen)

    def _listen(self, socket):
        self.hosts.add(socket.url.partition("//")[2].partition("/")[0])
        socket.on("framereceived", lambda frame: self.frames.append(frame))

    def figures(self):
        return self.page.evaluate(FIGURES)

    def wait(self, holds, seconds=20.0):
        """Wait until something holds; returns what it returned."""
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, (self.page.inner_text("body"), self.errors, self.figures())
            self.page.wait_for_timeout(50)
        return found

    def wait_until_it_plays(self, seconds=20.0):
        self.wait(lambda: self.figures()["time"] > 0.3 and self.figures()["sound"] > 0, seconds)

    def wait_for_buffer(self, seconds, at_most=120.0):
        """Wait until so many seconds are ahead of the picture."""
        self.wait(lambda: self.page.evaluate(BUFFERED) > seconds, at_most)

    def watch_for(self, seconds):
        """Watch for some time: returns how far the picture moved meanwhile, and how long that took."""
        before, began = self.figures()["time"], time.monotonic()
        self.page.wait_for_timeout(1000 * seconds)
        return self.figures()["time"] - before, time.monotonic() - began

    def say(self, prompt):
        self.page.fill("#prompt", prompt)
        self.page.press("#prompt", "Enter")

    def wait_for_change(self, seconds=20.0):
        self.wait(lambda: self.page.query_selector("#changes li[data-stage=applied]"), seconds)

    def was_sent(self):
        """Decode what the page was sent: frames by their times, and the receipts."""
        messages = [json.loads(each) for each in self.frames if isinstance(each, str)]
        pieces = [each for each in self.frames if isinstance(each, bytes)]
        with av.open(io.BytesIO(b"".join(pieces))) as file:
            frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
        receipts = [each["receipt"] for each in messages if each["type"] == "receipt"]
        times, pictures = zip(*frames, strict=True)
        return np.array(times), np.stack(pictures), receipts
