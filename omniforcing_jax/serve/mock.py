"""A studio without weights: it draws chime's small world as it truly is. For work on the page, and for its tests.

It starts at once, compiles nothing and needs no JAX. All else is as with weights: prompts, changes, forks, saves.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from omniforcing_jax.chime import physics, prompts, render
from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.serve.messages import StreamRequestBody
from omniforcing_jax.serve.studio import Say, Source, StartMedia
from omniforcing_jax.serve.suggestions import suggest
from omniforcing_jax.stream.camera.motion import Segment, parse_camera
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.strict_json import read_object, require

SIZE = 64  # pixels of a side; the world is square
FIRST_FRAMES = 1  # of block 0
STATE = "mock.json"


@dataclasses.dataclass
class MockSource:
    """A stream of the drawn world.

    Attributes:
        seed: Decides where the balls begin.
        prompt: The balls that are shown.
        side: Height and width of the picture in pixels.
        blocks: Blocks after which it ends; None never ends.
        block: Blocks made so far.
        block_s: Seconds that a block takes to make.
        camera: Keys of the camera; None stands.
        walked: Frames of these keys that are over.
        across: Pixels by which the camera is to the right of the world.
        down: Pixels by which it is below.
    """

    seed: int
    prompt: str
    side: int = SIZE
    blocks: int | None = None
    block: int = 0
    block_s: float = 0.0
    camera: str | None = None
    walked: int = 0
    across: int = 0
    down: int = 0

    @property
    def sample_rate(self) -> int:
        """Samples of sound per second."""
        return render.SAMPLE_RATE

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return self.side, self.side

    def make(self) -> Chunk | None:
        """Draw the next block and let it sound; None after the last one."""
        if self.block == self.blocks:
            return None
        time.sleep(self.block_s)
        colours = prompts.parse(self.prompt).colours
        world = physics.sample_world(self.seed, colours=colours)
        first, count = (0, FIRST_FRAMES) if not self.block else (_first_frame(self.block), FRAME_RATE)
        per_frame = self.sample_rate // FRAME_RATE
        audio = render.render_audio(world, count * per_frame, self.sample_rate, first * per_frame)
        chunk = Chunk(
            index=self.block,
            video=self._look(render.render_video(world, count, self.side, first)),
            video_start_s=first / FRAME_RATE,
            audio=audio,
            audio_start_s=first / FRAME_RATE,
            sample_rate=self.sample_rate,
        )
        self.block += 1
        return chunk

    def set_prompt(self, prompt: str, contexts: Any, recompute: int | None, fade: int) -> None:
        """Show other balls from the next block on. There is no past to compute again."""
        self.prompt = prompt

    def set_camera(self, camera: str | None) -> None:
        """Take other keys from the next block on."""
        self.camera, self.walked = camera, 0

    def _look(self, frames: UInt8[np.ndarray, "F H W 3"]) -> UInt8[np.ndarray, "F H W 3"]:
        """Move the camera by a pixel per frame and key; beyond its edge the world begins again."""
        seen, segments = np.empty_like(frames), () if self.camera is None else parse_camera(self.camera)
        for frame, out in zip(frames, seen, strict=True):
            keys = set(_keys_at(segments, self.walked))
            self.walked += 1
            self.across += bool(keys & set("dl")) - bool(keys & set("aj"))
            self.down += bool(keys & set("sk")) - bool(keys & set("wi"))
            out[:] = np.roll(frame, (-self.down, -self.across), (0, 1))
        return seen

    def fork(self) -> "MockSource":
        """Return an independent source that goes on from here."""
        return dataclasses.replace(self)

    def save(self, folder: Path) -> None:
        """Write the few numbers that the next blocks depend on."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STATE, dataclasses.asdict(self))


def _keys_at(segments: tuple[Segment, ...], frame: int) -> str:
    """Return the keys that are held at a frame of a path; after its end there are none."""
    for segment in segments:
        if frame < segment.frames:
            return segment.keys
        frame -= segment.frames
    return ""


def _first_frame(block: int) -> int:
    return FIRST_FRAMES + (block - 1) * FRAME_RATE


class MockStudio:
    """Opens mock sources.

    Args:
        block_s: Seconds that a block takes to make, so that a slow device can be tried.
        has_camera: Whether its world is seen through a camera that keys move.
    """

    needs_picture = False

    def __init__(self, block_s: float = 0.0, has_camera: bool = False) -> None:
        self.name, self.is_mock, self.size, self.block_s = "mock", True, (SIZE, SIZE), 1.0
        self.suggestions, self.words = suggest(), ()
        self._make_s, self.has_camera = block_s, has_camera

    def warm(self, say: Say) -> float | None:
        """Do nothing: there is nothing to load."""
        return self._make_s

    def check(self, body: StreamRequestBody, start: StartMedia | None) -> tuple[int, int]:
        """Refuse what cannot be drawn.

        Raises:
            ValueError: In one line, whatever is wrong with the request.
        """
        self.check_prompt(body.prompt)
        require(0 <= body.seed < 2**32, "seed", body.seed, f"must be a whole number from 0 to {2**32 - 1}")
        for name in ("height", "width"):
            side = getattr(body, name) or SIZE
            require(side in (32, 64, 128), name, side, "the drawn world has 32, 64 or 128 pixels")
        height, width = body.height or SIZE, body.width or SIZE
        require(height == width, "width", width, f"must be the height, {height}: the drawn world is square")
        for name in ("window", "steps", "start", "compress"):
            require(getattr(body, name) is None, name, getattr(body, name), "the mock server has no network")
        require(self.has_camera or body.camera is None, "camera", body.camera, "the drawn world has no camera")
        return height, width

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that names no balls.

        Raises:
            ValueError: In one line.
        """
        prompts.parse(prompt)

    def encode(self, prompt: str) -> None:
        """Return nothing: the prompt is parsed when it is drawn."""

    def open(self, body: StreamRequestBody, start: StartMedia | None, say: Say) -> Source:
        """Open a checked request."""
        blocks = None if body.seconds is None else 1 + body.seconds
        side = body.height or SIZE
        return MockSource(body.seed, body.prompt, side, blocks, block_s=self._make_s, camera=body.camera)

    def reopen(self, folder: Path) -> Source:
        """Open what a mock source saved.

        Raises:
            ValueError: The folder has no such state.
        """
        values = read_object(folder / STATE)
        if set(values) != {field.name for field in dataclasses.fields(MockSource)}:
            raise ValueError(f"{folder / STATE}: is no saved mock stream: {json.dumps(values)[:200]}")
        return dataclasses.replace(MockSource(**values), block_s=self._make_s)
