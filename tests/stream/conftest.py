"""The fixture of chunks."""

import pytest
from plain_chunks import make_chunks

from omniforcing_jax.stream.chunk import Chunk


@pytest.fixture
def chunks() -> list[Chunk]:
    return make_chunks(3)
