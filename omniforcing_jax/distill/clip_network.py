"""A network that sees clips of one length whole: what its predictions need beside parameters, clip and text.

Teacher and critic are such networks in every stage. So is the generator of stage 1, and causal DMD's student.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax import guidance
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.guidance import GuidanceConfig
from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.model.positions import Positions, Rotaries, rotaries
from omniforcing_jax.model.transformer import NO_PERTURBATION, Transformer
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
    """

    rotaries: Rotaries
    model: ModelConfig = struct.field(pytree_node=False)
    dtype: DTypeLike = struct.field(pytree_node=False, default=jnp.dtype(jnp.float32))
    remat: Callable | None = struct.field(pytree_node=False, default=None)

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
        self, params: Transformer, prompt: TextContexts, negative: TextContexts, config: GuidanceConfig
    ) -> Callable[[Streams, Array], Streams]:
        """Return the guided prediction of a clean clip, as a function of (noisy clip, noise level).

        Args:
            params: The network's.
            prompt: What clips show.
            negative: What guidance pushes away from, as many rows.
            config: Strengths of guidance.
        """

        def ask(noisy: Streams, sigma: Array, contexts: TextContexts, perturbation: Perturbation) -> Streams:
            return self.x0(params, noisy, sigma, contexts, perturbation)

        def predict(noisy: Streams, sigma: Array) -> Streams:
            return guidance.guided_x0(ask, noisy, sigma, prompt, negative, config, self.model.layers)

        return predict


def clip_network(
    model: ModelConfig, positions: Positions, *, dtype: DTypeLike = jnp.float32, remat: Callable | None = None
) -> ClipNetwork:
    """Describe a network on clips whose tokens are at `positions`; call it where its rotations may be traced."""
    return ClipNetwork(rotaries=rotaries(model, positions), model=model, dtype=jnp.dtype(dtype), remat=remat)
