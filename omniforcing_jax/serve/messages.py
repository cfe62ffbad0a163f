"""What goes over the wire, as frozen dataclasses: requests, answers, events. The API's document is made from them."""

import dataclasses

from omniforcing_jax.stream.camera.motion import parse_camera
from omniforcing_jax.strict_json import Config, require

LONGEST_PROMPT = LONGEST_CAMERA = 2000  # characters
PROMPT, CAMERA = "prompt", "camera"  # kinds of changes
LONGEST_STREAM_S = 24 * 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamRequestBody(Config):
    """What a new stream should be.

    Attributes:
        prompt: What to show.
        seed: Random seed; the same seed gives the same stream.
        seconds: Length in whole seconds; null never ends.
        height: Height of the picture in pixels; null is the trained height.
        width: Width of the picture in pixels; null is the trained width.
        window: Blocks that a block can see; null is the weights' own number.
        steps: Denoise steps per block; null is the trained number.
        start: Id of an upload that the stream begins with: an image, a clip or a sound.
        compress: Quality (CRF, 0 to 51) of H.264 by which an image to begin with is compressed first; null leaves it.
        camera: Keys that move the camera, as w-24,wd-48,none-24; null stands still.
    """

    prompt: str
    seed: int = 0
    seconds: int | None = None
    height: int | None = None
    width: int | None = None
    window: int | None = None
    steps: int | None = None
    start: str | None = None
    compress: int | None = None
    camera: str | None = None

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        check_camera(self.camera)
        fits = self.seconds is None or 1 <= self.seconds <= LONGEST_STREAM_S
        require(fits, "seconds", self.seconds, f"must be from 1 to {LONGEST_STREAM_S}, or null for no end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBody(Config):
    """Another prompt for a running stream.

    Attributes:
        prompt: What to show from now on.
        recompute: Past blocks that are computed again under the new prompt; null is all that a block sees.
        fade: Blocks over which the old prompt goes over into the new one.
        at: Stream second from which it applies; null is the next block.
    """

    prompt: str
    recompute: int | None = 0
    fade: int = 0
    at: float | None = None

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        require(self.recompute is None or self.recompute >= 0, "recompute", self.recompute, "must not be negative")
        require(0 <= self.fade <= 100, "fade", self.fade, "must be from 0 to 100 blocks")
        fits = self.at is None or 0 <= self.at <= LONGEST_STREAM_S
        require(fits, "at", self.at, f"must be a stream second from 0 to {LONGEST_STREAM_S}, or null")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraBody(Config):
    """Other camera keys for a running stream, from the next block on.

    Attributes:
        camera: Keys as w-24,wd-48,none-24, which replace those that are left; null lets the camera stand.
    """

    camera: str | None

    def __post_init__(self) -> None:
        check_camera(self.camera)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayedMessage(Config):
    """What a viewer says of itself, over the WebSocket.

    Attributes:
        second: Stream second that it is playing.
        playing: Whether it is playing, not paused.
    """

    second: float
    playing: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a change of prompt or camera.

    Attributes:
        id: The change.
        kind: "prompt" or "camera".
        stage: "received", "applied", "replaced" by a later change before it was applied, or "refused".
        prompt: The new prompt; null for a change of camera.
        camera: The new camera keys; null for a camera that stands, and for a change of prompt.
        block: First block under the change, once it is applied.
        second: Stream second at which this block begins.
        received_s: Stream second that the fastest viewer was at when the request came.
        delay_s: Seconds from the request until the block was there.
        message: Why it was refused.
    """

    id: str
    kind: str
    stage: str
    prompt: str | None = None
    camera: str | None = None
    block: int | None = None
    second: float | None = None
    received_s: float = 0.0
    delay_s: float | None = None
    message: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamView:
    """A stream as viewers see it.

    Attributes:
        id: Its name in addresses.
        state: One of queued, preparing, running, paused, asleep, ended, failed and saved.
        place: Place in the queue, from 1; null if it is not waiting.
        message: What is going on, in words.
        prompt: What it shows, or will show with its next block.
        camera: Keys of its camera, as they were given last; null stands still.
        seed: Random seed.
        seconds: Length in seconds; null has no end.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        mime: Media type with codecs, once it is known.
        block: Blocks made so far.
        made_s: Seconds of stream made so far.
        played_s: Where its fastest viewer is.
        kept_s: Stream second of the oldest fragment that is kept.
        viewers: How many watch.
        real_time_factor: Seconds of stream per second of work, if nothing else ran.
        first_chunk_s: Seconds from the request to the first fragment.
        underruns: How often a viewer had to wait for a block.
        receipts: Changes of prompt and camera, the newest last.
    """

    id: str
    state: str
    place: int | None
    message: str
    prompt: str
    camera: str | None
    seed: int
    seconds: int | None
    height: int
    width: int
    mime: str | None
    block: int
    made_s: float
    played_s: float
    kept_s: float
    viewers: int
    real_time_factor: float | None
    first_chunk_s: float | None
    underruns: int
    receipts: tuple[Receipt, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerView:
    """The server as viewers see it.

    Attributes:
        version: Version of the package.
        weights: Name of the weights.
        is_mock: Whether it draws the small world itself, without weights.
        has_camera: Whether streams have a camera that keys move.
        needs_picture: Whether a stream must begin with an image or a clip.
        stage: One of loading, ready, draining and failed.
        message: What is going on, in words.
        height: Default height of the picture in pixels.
        width: Default width of the picture in pixels.
        block_s: Length of a block in seconds.
        ahead_s: Seconds that a stream is made ahead of its viewers.
        suggestions: Prompts to try.
        words: All words that the text encoder knows; empty if it knows any.
        running: Streams that are made at present.
        waiting: Streams in the queue.
        load: Share of the device's time that running streams take.
    """

    version: str
    weights: str
    is_mock: bool
    has_camera: bool
    needs_picture: bool
    stage: str
    message: str
    height: int
    width: int
    block_s: float
    ahead_s: float
    suggestions: tuple[str, ...]
    words: tuple[str, ...]
    running: int
    waiting: int
    load: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedView:
    """Where a stream was saved.

    Attributes:
        id: The stream.
        block: Blocks made so far. The next one follows when the stream goes on.
    """

    id: str
    block: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class UploadView:
    """A file that was taken.

    Attributes:
        id: Its name, for `start` of a new stream.
        kind: An image, a clip or a sound.
        seconds: Length that a stream begins with.
    """

    id: str
    kind: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamList:
    """All streams that this client may see.

    Attributes:
        streams: The streams, the oldest first.
    """

    streams: tuple[StreamView, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorView:
    """A refusal.

    Attributes:
        error: What is wrong, in one line.
    """

    error: str


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that is none.

    Raises:
        ValueError: It is empty, too long, or has characters that are no text.
    """
    require(0 < len(prompt) <= LONGEST_PROMPT, "prompt", prompt, f"must have 1 to {LONGEST_PROMPT} characters")
    require(bool(prompt.strip()) and prompt.isprintable(), "prompt", prompt, "must be one line of text")


def check_camera(camera: str | None) -> None:
    """Refuse camera keys that cannot be read.

    Raises:
        ValueError: In one line with what is wrong.
    """
    if camera is not None:
        require(len(camera) <= LONGEST_CAMERA, "camera", camera, f"must have at most {LONGEST_CAMERA} characters")
        parse_camera(camera)
