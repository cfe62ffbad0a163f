"""Stand-ins for weights, devices and clocks: what the engine is tested with, without any of them."""

import dataclasses
from pathlib import Path

import numpy as np

from omniforcing_jax.serve.engine import Engine
from omniforcing_jax.serve.limits import Limits
from omniforcing_jax.serve.messages import StreamRequestBody
from omniforcing_jax.serve.stored import Store
from omniforcing_jax.stream.chunk import Chunk

SIDE, RATE, FRAMES = 16, 8000, 24


class Clock:
    """A clock that is moved by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@dataclasses.dataclass
class FakeSource:
    """Grey frames and silence. Each block takes `cost_s` of the clock."""

    clock: Clock
    cost_s: float = 0.1
    blocks: int | None = None
    block: int = 0
    sample_rate: int = RATE
    picture_size: tuple[int, int] = (SIDE, SIDE)
    prompts: tuple[str, ...] = ()
    cameras: tuple[str | None, ...] = ()

    def make(self):
        if self.block == self.blocks:
            return None
        self.clock.now += self.cost_s
        first, count = (0, 1) if not self.block else (1 + (self.block - 1) * FRAMES, FRAMES)
        self.block += 1
        return Chunk(
            index=self.block - 1,
            video=np.full((count, SIDE, SIDE, 3), self.block % 256, np.uint8),
            video_start_s=first / FRAMES,
            audio=np.zeros((count * RATE // FRAMES, 2), np.float32),
            audio_start_s=first / FRAMES,
            sample_rate=RATE,
        )

    def set_prompt(self, prompt, contexts, recompute, fade):
        if "refused" in prompt:
            raise ValueError("prompt: not this one")
        self.prompts = (*self.prompts, prompt)

    def set_camera(self, camera):
        self.cameras = (*self.cameras, camera)

    def fork(self):
        return dataclasses.replace(self)

    def save(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fake.txt").write_text(str(self.block))


class FakeStudio:
    name, is_mock, size, block_s = "fake", True, (SIDE, SIDE), 1.0
    suggestions, words = ("anything",), ()
    has_camera, needs_picture = True, False

    def __init__(self, clock, cost_s=0.1):
        self.clock, self.cost_s = clock, cost_s

    def warm(self, say):
        return self.cost_s

    def check(self, body, start):
        self.check_prompt(body.prompt)
        return self.size

    def check_prompt(self, prompt):
        if "unknown" in prompt:
            raise ValueError(f"unknown word in the prompt {prompt!r}")

    def encode(self, prompt):
        return prompt

    def open(self, body, start, say):
        if "fails" in body.prompt:
            raise ValueError("this one fails")
        blocks = None if body.seconds is None else 1 + body.seconds
        return FakeSource(self.clock, self.cost_s, blocks)

    def reopen(self, folder):
        return FakeSource(self.clock, self.cost_s, block=int((folder / "fake.txt").read_text()))


def body(prompt="a red ball", **values):
    return StreamRequestBody(prompt=prompt, **values)


class Stage:
    """An engine whose device thread is the test itself, and whose clock is moved by hand."""

    def __init__(self, cost_s=0.1, folder=None, studio=FakeStudio, **limits):
        self.clock = Clock()
        self.studio = studio(self.clock, cost_s)
        self.engine = Engine(self.studio, Limits(**limits), Store(folder), self.clock)
        self.engine.warm()

    def settle(self):
        """Wait for the thread that prepares, and for all encoders."""
        self.engine.preparing.submit(lambda: None).result()
        for session in list(self.engine.sessions.values()):
            if session.pipe is not None:
                session.pipe.wait()

    def run(self, seconds: float):
        """Let the device work for some time; where it has nothing to do, the clock goes on."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            wait_s = self.engine.step()
            self.settle()
            if wait_s > 0:
                self.clock.now = min(end, self.clock.now + max(0.001, min(wait_s, 0.1)))

    def close(self):
        self.engine.stop()
