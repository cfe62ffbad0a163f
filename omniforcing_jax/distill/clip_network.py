"""A network that sees clips of one length whole: what its predictions need beside parameters, clip and text.

Teacher and critic are such networks in every stage. So is the generator of stage 1, and the student of stage 2 and of
causal DMD, which sees a clip block-causally: each block at a noise level of its own, in one masked forward.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax import guidance
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.guidance import GuidanceConfig
from omniforcing_jax.layout import Block, block_of_frames
from omniforcing_jax.model.dual_stream import Perturbation, Text
from omniforcing_jax.model.positions import Positions, Rotaries, rotaries
from omniforcing_jax.model.transformer import NO_PERTURBATION, Transformer, text_kv
from omniforcing_jax.model.view import Sigmas, View, hold_scalars, masked, on_context
from omniforcing_jax.model.whole_clip import predict_velocity, predict_x0
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts


@struct.dataclass
class ClipNetwork:
    """What is fixed when a network predicts clips of one length.

    Attributes:
        rotaries: Rotations of the whole clip.
        model: What network it is.
        dtype: Type to compute in.
        remat: Wraps the scan over layers of what is differentiated.
        student: What makes the network a causal student: its window, its pinned blocks, and what modulates text and
            crossings. None lets every block of a masked clip see all earlier ones.
    """

    rotaries: Rotaries
    model: ModelConfig = struct.field(pytree_node=False)
    dtype: DTypeLike = struct.field(pytree_node=False, default=jnp.dtype(jnp.float32))
    remat: Callable | None = struct.field(pytree_node=False, default=None)
    student: SamplerConfig | None = struct.field(pytree_node=False, default=None)

    def masked(self, sigmas: Sigmas, blocks: tuple[Block, ...]) -> View:
        """Build the view of a whole clip, block-causal, as the student will stream it."""
        return masked(self.model, self.rotaries, self._held(sigmas), blocks, **self._sight)

    def on_context(self, sigmas: Sigmas, blocks: tuple[Block, ...]) -> View:
        """Build the same view on the past of another forward, usually of clean latents."""
        return on_context(self.model, self.rotaries, self._held(sigmas), blocks, **self._sight)

    def masked_text(self, params: Transformer, contexts: TextContexts) -> Text:
        """Make the text keys and values of a masked clip, the same for all of its noise levels.

        Raises:
            ValueError: The text keys depend on a noise level, and no `scalar_sigma` holds it.
        """
        held = None if self.student is None else self.student.scalar_sigma
        if self.model.text_needs_sigma and held is None:
            raise ValueError(
                "text_adaln=True: a masked clip has several noise levels, but text AdaLN needs one: hold it with the "
                "sampler's scalar_sigma"
            )
        sigma = None if held is None else jnp.full(contexts.video.shape[:1], held, jnp.float32)
        return text_kv(params, *contexts, sigma=sigma, dtype=self.dtype)

    def _held(self, sigmas: Sigmas) -> Sigmas:
        return sigmas if self.student is None else hold_scalars(sigmas, self.student.scalar_sigma)

    @property
    def _sight(self) -> dict[str, Any]:
        if self.student is None:
            return {}
        return {"window": self.student.past_blocks + 1, "pinned": self.student.pinned}

    def x0(
        self,
        params: Transformer,
        noisy: Streams,
        sigma: Float[Array, " B"],
        contexts: TextContexts,
        perturbation: Perturbation = NO_PERTURBATION,
    ) -> Streams:
        """Predict the clean clip, bidirectional, from one noise level per sample; `keep` as in `predict_velocity`."""
        options = {"dtype": self.dtype, "remat": self.remat}
        return Streams(*predict_x0(params, self.model, noisy, sigma, contexts, self.rotaries, perturbation, **options))

    def velocity(
        self, params: Transformer, noisy: Streams, sigma: Float[Array, " B"], contexts: TextContexts
    ) -> Streams:
        """Predict the velocity of both streams, bidirectional, at one noise level per sample."""
        options = {"dtype": self.dtype, "remat": self.remat}
        return predict_velocity(params, self.model, noisy, sigma, contexts, self.rotaries, **options)

    def guided_x0(
        self,
        params: Transformer,
        prompt: TextContexts,
        negative: TextContexts,
        config: GuidanceConfig,
        share: Float[Array, " B"] | None = None,
    ) -> Callable[[Streams, Array], Streams]:
        """Return the guided prediction of a clean clip, as a function of (noisy clip, noise level).

        Args:
            params: The network's.
            prompt: What clips show.
            negative: What guidance pushes away from, as many rows.
            config: Strengths of guidance.
            share: How much of it each sample has; None is all.
        """

        def ask(noisy: Streams, sigma: Array, contexts: TextContexts, perturbation: Perturbation) -> Streams:
            return self.x0(params, noisy, sigma, contexts, perturbation)

        def predict(noisy: Streams, sigma: Array) -> Streams:
            return guidance.guided_x0(ask, noisy, sigma, prompt, negative, config, self.model.layers, share)

        return predict


def spread_levels(levels: Float[Array, "B k"], blocks: tuple[Block, ...], per_frame: int) -> tuple[Sigmas, Streams]:
    """Give every latent frame and every token of both streams the noise level of its block.

    Args:
        levels: Of each block.
        blocks: Block table of the clip.
        per_frame: Video tokens of a latent frame.

    Returns:
        Levels per latent frame, [B, F] and [B, A], and per token, [B, T] and [B, A].
    """
    frames_v, frames_a = block_of_frames(blocks)
    sigmas = Sigmas(video=levels[:, frames_v], audio=levels[:, frames_a])
    return sigmas, Streams(jnp.repeat(sigmas.video, per_frame, axis=1), sigmas.audio)


def clip_network(
    model: ModelConfig,
    positions: Positions,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: Callable | None = None,
    student: SamplerConfig | None = None,
) -> ClipNetwork:
    """Describe a network on clips whose tokens are at `positions`; call it where its rotations may be traced."""
    rotations = rotaries(model, positions)
    return ClipNetwork(rotaries=rotations, model=model, dtype=jnp.dtype(dtype), remat=remat, student=student)
