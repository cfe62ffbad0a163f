"""A causal stream in PyTorch: ltx-core's blocks, unchanged, against a cache that grows.

It does what a careful user would do without this package. Each attention has one buffer for keys and values; the fresh
ones are written behind the past and read in place. Contexts are projected once, text keys once, positions once per
block. This needs the development requirements (torch, ltx-core).
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from ltx_core.guidance.perturbations import BatchedPerturbationConfig, PerturbationConfig
from ltx_core.model.transformer.attention import Attention
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.transformer.rope import apply_rotary_emb

from experiments.bench.ltx_core_network import bounds_of
from omniforcing_jax.layout import Layout
from omniforcing_jax.streams import Streams

CAUSAL = ("attn1", "audio_attn1", "audio_to_video_attn", "video_to_audio_attn")
TEXT = ("attn2", "audio_attn2")


class CachedAttention(torch.nn.Module):
    """An attention of ltx-core that keeps the keys and values of what was committed.

    Args:
        inner: The attention.
        room: Keys that fit.
    """

    def __init__(self, inner: Attention, room: int) -> None:
        super().__init__()
        self.inner, self._end, self._fresh = inner, 0, 0
        width = inner.heads * inner.dim_head
        self._keys, self._values = torch.empty(1, room, width), torch.empty(1, room, width)

    def forward(self, x: Any, context: Any = None, pe: Any = None, k_pe: Any = None, **unused: Any) -> Any:
        """Attend to the past and to the tokens themselves."""
        inner, context = self.inner, x if context is None else context
        q = apply_rotary_emb(inner.q_norm(inner.to_q(x)), pe, inner.rope_type)
        k = apply_rotary_emb(inner.k_norm(inner.to_k(context)), pe if k_pe is None else k_pe, inner.rope_type)
        self._fresh = self._end + k.shape[1]
        self._keys[:, self._end : self._fresh] = k
        self._values[:, self._end : self._fresh] = inner.to_v(context)
        keys, values = self._keys[:, : self._fresh], self._values[:, : self._fresh]
        return inner.to_out(inner.attention_function(q, keys, values, inner.heads, None))

    def commit(self) -> None:
        """Make the keys and values of the last call part of the past."""
        self._end = self._fresh


class TextAttention(torch.nn.Module):
    """A text attention of ltx-core that projects its prompt once."""

    def __init__(self, inner: Attention) -> None:
        super().__init__()
        self.inner = inner
        self._keys: Any = None
        self._values: Any = None

    def forward(self, x: Any, context: Any = None, **unused: Any) -> Any:
        """Attend to the prompt; its keys and values are those of the first call."""
        inner = self.inner
        if self._keys is None:
            self._keys, self._values = inner.k_norm(inner.to_k(context)), inner.to_v(context)
        q = inner.q_norm(inner.to_q(x))
        return inner.to_out(inner.attention_function(q, self._keys, self._values, inner.heads, None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """What a stream makes: its blocks on a latent grid."""

    layout: Layout
    grid: tuple[int, int]
    blocks: int


class TorchStream:
    """Rolls out one stream, a block at a time. The network is changed: its attentions get caches.

    Args:
        network: ltx-core's network.
        contexts: Text features of both streams, [1, X, C].
        clip: The stream's blocks.
        sigmas: Noise levels from 1 to 0.
    """

    def __init__(self, network: LTXModel, contexts: Streams, clip: Clip, sigmas: tuple[float, ...]) -> None:
        self._network, self._clip, self._sigmas = network, clip, sigmas
        last, per_frame = clip.layout.block(clip.blocks - 1), clip.grid[0] * clip.grid[1]
        self._bounds = bounds_of(last.video_end, clip.grid, last.audio_end)
        self._caches = []
        for layer in network.transformer_blocks:
            for name in CAUSAL:
                reads_video = name in ("attn1", "video_to_audio_attn")
                room = last.video_end * per_frame if reads_video else last.audio_end
                cache = CachedAttention(getattr(layer, name), room)
                setattr(layer, name, cache)
                self._caches.append(cache)
            for name in TEXT:
                setattr(layer, name, TextAttention(getattr(layer, name)))
        self._contexts = self._project(contexts)
        self._tables: dict[Any, Any] = {}
        for each in self._preprocessors():
            each._prepare_positional_embeddings = self._remembering(each._prepare_positional_embeddings)

    def _preprocessors(self) -> list[Any]:
        network: Any = self._network
        return [each.simple_preprocessor for each in (network.video_args_preprocessor, network.audio_args_preprocessor)]

    def _project(self, contexts: Streams) -> Streams:
        """Project both contexts, and take the projections out of the network."""
        projected = []
        with torch.no_grad():
            for each, context in zip(self._preprocessors(), contexts, strict=True):
                projected.append(each.caption_projection(torch.from_numpy(np.array(context))))
                each.caption_projection = None
        return Streams(*projected)

    def _remembering(self, make: Any) -> Any:
        """Make each rotary table once per block."""

        def remember(positions: Any, inner_dim: int, **options: Any) -> Any:
            key = positions.data_ptr(), tuple(positions.shape), inner_dim
            if key not in self._tables:
                self._tables[key] = make(positions=positions, inner_dim=inner_dim, **options)
            return self._tables[key]

        return remember

    @torch.inference_mode()
    def make_block(self, k: int, noise: Streams) -> Streams:
        """Denoise block k and commit it.

        Args:
            k: The block; they come in order.
            noise: Noise of each step, [J - 1, 1, T, C] and [J - 1, 1, A, C].
        """
        self._tables.clear()
        places, x0 = self._places(k), Streams(None, None)
        drawn = Streams(*(torch.from_numpy(np.array(each)) for each in noise))
        for step, sigma in enumerate(self._sigmas[:-1]):
            fresh = Streams(drawn.video[step], drawn.audio[step])
            noisy = fresh if step == 0 else _both(lambda x, n, s=sigma: (1 - s) * x + s * n, x0, fresh)
            velocity = self._predict(noisy, sigma, places)
            x0 = _both(lambda x, v, s=sigma: x - s * v, noisy, velocity)
        self._predict(x0, 0.0, places)
        for cache in self._caches:
            cache.commit()
        return Streams(*(x.numpy() for x in x0))

    def _places(self, k: int) -> Streams:
        block, per_frame = self._clip.layout.block(k), self._clip.grid[0] * self._clip.grid[1]
        video, audio = self._bounds
        return Streams(
            video[:, :, block.video_start * per_frame : block.video_end * per_frame].contiguous(),
            audio[:, :, block.audio_start : block.audio_end].contiguous(),
        )

    def _predict(self, noisy: Streams, sigma: float, places: Streams) -> Streams:
        level = torch.full((1,), sigma)
        video, audio = (
            Modality(
                latent=x, sigma=level, timesteps=level[:, None], positions=where, context=context, context_mask=None
            )
            for x, where, context in zip(noisy, places, self._contexts, strict=True)
        )
        return Streams(*self._network(video, audio, BatchedPerturbationConfig([PerturbationConfig([])])))


def _both(function: Any, *pairs: Streams) -> Streams:
    return Streams(*(function(*each) for each in zip(*pairs, strict=True)))
