"""Loading weights for a command: shown while it lasts, and followed by the compilation of the command's programs."""

import jax.numpy as jnp
from jaxtyping import DTypeLike

from omniforcing_jax.io.startup import Startup
from omniforcing_jax.pipeline import checks, text_source
from omniforcing_jax.pipeline.budget import count_bytes
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig, abstract_pipeline
from omniforcing_jax.pipeline.weights_folder import find_text_encoder
from omniforcing_jax.text.encoder import Encoder


def load_shown(
    weights: checks.Weights, config: PipelineConfig, dtype: DTypeLike, startup: Startup, *shapes: object
) -> Pipeline:
    """Load a weights folder and say how far that is. From then on the command counts as compiling.

    Args:
        weights: The weights folder.
        config: Its configs, already checked.
        dtype: Type to load in.
        startup: The command's startup; the command calls its `ready`.
        shapes: Sizes that decide which programs are compiled.

    Raises:
        ValueError: As `load_pipeline`.
    """
    announce(startup, config, dtype, *shapes)
    pipeline = checks.load(weights, config, dtype)
    startup.compiling()
    return pipeline


def announce_text(startup: Startup, weights: checks.Weights, source: text_source.TextSource, dtype: DTypeLike) -> None:
    """Say that the text encoder is being loaded from now on, if the weights folder has one that this request needs."""
    text = None if source is not None or isinstance(weights, Pipeline) else find_text_encoder(weights)
    if isinstance(text, Encoder):
        startup.loading("the text encoder", text.weight_bytes(dtype))


def announce(startup: Startup, config: PipelineConfig, dtype: DTypeLike, *shapes: object) -> None:
    """Say that weights are being loaded from now on; arguments as `load_shown`."""
    kind = [] if config.model.eight_bits is None else [config.model.eight_bits.kind.value]
    startup.identify(config.name, jnp.dtype(dtype).name, *kind, *shapes)
    startup.loading("weights", count_bytes(abstract_pipeline(config, dtype)))
