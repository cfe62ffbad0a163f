"""Several prompts on one clock: one batch of the same programs, whose rows know nothing of each other.

A row's noise has a key of its own, its keys and values, carries and sound are rows of the same buffers. What one gains
is the batch: an accelerator that one stream leaves half idle makes several in the same time.
"""

from collections.abc import Iterator

from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.chunk_stream import ChunkStream, StreamState


class BatchStream(Iterator[tuple[Chunk, ...]]):
    """Blocks of all rows made on demand: every step hands out a tuple, the chunk of row i at place i.

    The chunks of a row, its tail included, are what a `ChunkStream` of this row alone would hand out.

    Args:
        stream: The stream whose state has all rows; it belongs to this batch from here on.
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
        """What the rows are, besides their weights."""
        return self.stream.state

    @property
    def static(self) -> StaticConfig:
        """What is static."""
        return self.stream.static

    @property
    def blocks(self) -> int | None:
        """Blocks after which the stream ends by itself; None never ends."""
        return self.stream.blocks

    @property
    def sample_rate(self) -> int:
        """Samples per second of the sound."""
        return self.stream.sample_rate

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.stream.picture_size

    def __next__(self) -> tuple[Chunk, ...]:
        """Make one block of every row, or after the last one the tails of their sound."""
        return self.stream.next_rows()

    def close(self) -> tuple[Chunk, ...] | None:
        """End the stream and return the tails of all rows; None if it had ended before, or never began."""
        return self.stream.close_rows()

    def fork(self) -> "BatchStream":
        """Return an independent batch that goes on from here."""
        return BatchStream(self.stream.fork())
