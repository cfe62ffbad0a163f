"""Chunks of picture and sound: streamed from a causal student, or sampled whole from a teacher."""

from omniforcing_jax.stream.batch import BatchStream
from omniforcing_jax.stream.chunk import Chunk, join_chunks
from omniforcing_jax.stream.clip import sample_clip
from omniforcing_jax.stream.condition import Condition
from omniforcing_jax.stream.open import open_stream
from omniforcing_jax.stream.sampler import ChunkStream
from omniforcing_jax.stream.saved import resume, save

__all__ = [
    "BatchStream",
    "Chunk",
    "ChunkStream",
    "Condition",
    "join_chunks",
    "open_stream",
    "resume",
    "sample_clip",
    "save",
]
