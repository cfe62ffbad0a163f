"""What the engine needs of weights, or of whatever stands in for them: a studio that opens sources of chunks.

`network.py` streams a student, `mock.py` draws the small world. The engine calls a source from one thread at a time.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from omniforcing_jax.serve.messages import StreamRequestBody
from omniforcing_jax.stream.chunk import Chunk

Say = Callable[[str], None]
"""Takes a few words on what is going on."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StartMedia:
    """An upload that a stream begins with.

    Attributes:
        kind: An image, a clip or a sound.
        picture: Frames uint8 [F, H, W, 3] at 24 per second, or None.
        sound: Samples float32 [samples, 2] at 16 kHz, or None.
        seconds: Its length in seconds.
    """

    kind: str
    picture: np.ndarray | None
    sound: np.ndarray | None
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(each.nbytes for each in (self.picture, self.sound) if each is not None)


@runtime_checkable
class Source(Protocol):
    """A stream that makes chunks on demand."""

    @property
    def block(self) -> int:
        """Blocks made so far."""
        ...

    @property
    def sample_rate(self) -> int:
        """Samples of sound per second."""
        ...

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        ...

    def make(self) -> Chunk | None:
        """Make the next block; None after the last one."""
        ...

    def set_prompt(self, prompt: str, contexts: Any, recompute: int | None, fade: int) -> None:
        """Change the prompt from the next block on. `contexts` are what `Studio.encode` returned."""
        ...

    def set_camera(self, camera: str | None) -> None:
        """Change the camera's keys from the next block on; None lets it stand."""
        ...

    def fork(self) -> "Source":
        """Return an independent source that goes on from here."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that the next blocks depend on to a folder."""
        ...


@runtime_checkable
class Studio(Protocol):
    """Opens sources, and knows what can be asked for.

    Attributes:
        name: Name of the weights.
        is_mock: Whether there are none.
        has_camera: Whether its sources have a camera that keys move.
        needs_picture: Whether a stream must begin with an image or a clip.
        size: Default height and width of the picture in pixels.
        block_s: Length of a later block in seconds.
        suggestions: Prompts to try.
        words: All words that are known; empty if any are.
    """

    name: str
    is_mock: bool
    has_camera: bool
    needs_picture: bool
    size: tuple[int, int]
    block_s: float
    suggestions: tuple[str, ...]
    words: tuple[str, ...]

    def warm(self, say: Say) -> float | None:
        """Load and compile. Returns the seconds of work per second of a stream of the default size, if known."""
        ...

    def check(self, body: StreamRequestBody, start: StartMedia | None) -> tuple[int, int]:
        """Refuse a request that cannot be met, without work for the device; returns height and width.

        Raises:
            ValueError: In one line, whatever is wrong with it.
        """
        ...

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that cannot be read; raises as `check`."""
        ...

    def encode(self, prompt: str) -> Any:
        """Return the text contexts of a prompt, for `Source.set_prompt`."""
        ...

    def open(self, body: StreamRequestBody, start: StartMedia | None, say: Say) -> Source:
        """Open a checked request. What it needs is compiled before this returns."""
        ...

    def reopen(self, folder: Path) -> Source:
        """Open what `Source.save` wrote. Its next chunks are bit-equal to those without the cut."""
        ...
