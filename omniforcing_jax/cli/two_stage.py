"""The flag `sample --two-stage`: a small clip, upsampled and refined."""

from collections.abc import Callable

from omniforcing_jax.cli.options import SampleOptions
from omniforcing_jax.cli.shown_steps import shown_steps
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.pipeline.loading import announce_text, load_shown
from omniforcing_jax.sample.clip import decode_clips, sample_latents
from omniforcing_jax.sample.request import ClipRequest
from omniforcing_jax.sample.two_stage import encode_two_stage_on_disk, plan_two_stage, refine, second_pipeline
from omniforcing_jax.stream.chunk import Chunk


def prepare_two_stage(command: SampleOptions, request: ClipRequest, startup: Startup) -> Callable[[], Chunk]:
    """Check a request for two stages and load the weights of the first. What comes back makes the clip.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    plan = plan_two_stage(command.weights, request, command.second_weights)
    announce_text(startup, command.weights, request.contexts, request.dtype)
    plan = encode_two_stage_on_disk(command.weights, plan)
    shapes = plan.low.grid, plan.high.grid, plan.low.frames, plan.low.static.guidance.passes
    pipeline = load_shown(command.weights, plan.low.config, request.dtype, startup, *shapes)

    def make() -> Chunk:
        with shown_steps(plan.steps, startup) as on_step:
            low = sample_latents(pipeline, plan.low, on_step)
            second = second_pipeline(pipeline, plan, is_own=True)
            (clip,) = decode_clips(second, plan.high, refine(second, plan, low, on_step))
        return clip

    return make
