"""Several prompts on one clock: one batch of the same programs. The rows have no influence on each other.

Every row draws its noise with a PRNG key of its own; its keys and values, carries and sound are rows of shared buffers.
An accelerator that one stream leaves half idle makes several streams in the same time.
"""

from collections.abc import Iterator

from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.stream.state import StreamState


class BatchStream(Iterator[tuple[Chunk, ...]]):
    """Blocks of all rows, made on demand. Every step returns a tuple with the chunk of each row.

    The chunks of a row, with its tail, are those of a `ChunkStream` of this row alone.

    Args:
        stream: A stream whose state has all rows. Nothing else may use it afterwards.
    """

    def __init__(self, stream: ChunkStream) -> None:
        self.stream = stream

    def __repr__(self) -> str:
        return f"BatchStream({self.rows} rows: {self.stream.describe()})"

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.stream.state.keys)

    @property
    def state(self) -> StreamState:
        """State of all rows."""
        return self.stream.state

    @property
    def static(self) -> StaticConfig:
        """Static config of the stream's programs."""
        return self.stream.static

    @property
    def blocks(self) -> int | None:
        """Blocks after which the stream ends; None never ends."""
        return self.stream.blocks

    @property
    def sample_rate(self) -> int:
        """Samples of sound per second."""
        return self.stream.sample_rate

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return self.stream.picture_size

    def __next__(self) -> tuple[Chunk, ...]:
        """Make one block of every row, or after the last one the tails."""
        return self.stream.next_rows()

    def close(self) -> tuple[Chunk, ...] | None:
        """End the stream and return the tails of all rows; None if it has ended already, or never began."""
        return self.stream.close_rows()

    def fork(self) -> "BatchStream":
        """Return an independent batch that continues from here."""
        return BatchStream(self.stream.fork())
