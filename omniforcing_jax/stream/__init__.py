"""Chunks of picture and sound: streamed from a causal student, or sampled whole from a teacher."""

from omniforcing_jax.stream.chunk import Chunk, join_chunks
from omniforcing_jax.stream.clip import sample_clip
from omniforcing_jax.stream.condition import Condition
from omniforcing_jax.stream.open import open_stream
from omniforcing_jax.stream.sampler import ChunkStream

__all__ = ["Chunk", "ChunkStream", "Condition", "join_chunks", "open_stream", "sample_clip"]
