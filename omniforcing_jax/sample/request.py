"""The request for clips: one checked value that the command line and Python build and read."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import DTypeLike

from omniforcing_jax.guidance import GuidanceConfig, Pass, StreamGuidance
from omniforcing_jax.pipeline.checks import check_dtype, check_seed
from omniforcing_jax.pipeline.loras import GivenLoras, check_loras
from omniforcing_jax.pipeline.text_source import TextSource
from omniforcing_jax.sample.keyframes import Keyframe, Reference
from omniforcing_jax.schedule import ancestral_shares, fresh_shares, ltx2_schedule
from omniforcing_jax.stream.camera.motion import parse_camera
from omniforcing_jax.strict_json import require

SECONDS = 5  # the clips that the teachers were trained on
STEPS = 40
MOST_STEPS = 10_000
GUIDANCE = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """A request for clips.

    Everything that needs no weights is checked here; `clip.plan_clip` checks the rest.

    Attributes:
        prompts: What to show, one clip each. Clip i starts from noise that depends only on the seed and on i.
        seconds: Length in whole seconds; a clip has one frame more.
        steps: Denoising steps.
        guidance: Guidance strengths; a number is classifier-free guidance of both streams.
        seed: Random seed.
        height: Frame height in pixels; None is the training resolution.
        width: Frame width in pixels; None is the training resolution.
        dtype: Type to compute in.
        contexts: Text contexts, or a file of them, instead of the weights' own text encoder.
        negative_prompt: What guidance pushes away from, the same for all clips.
        negative_contexts: Text contexts of the negative prompt, instead of those that the weights' own encoder or
            contexts by prompt have for it.
        renewal: Amount of fresh noise in a step, see `schedule.fresh_shares`. 0 takes Euler steps. 1 takes the steps of
            a reversed diffusion: they correct more of the network's errors, but more of them are needed.
        ancestral: Amount of fresh noise in an ancestral Euler step, see `schedule.ancestral_shares`: 1 for LTX-2.5's
            distilled weights, 0 for Euler steps.
        camera: Keys that move the camera, see `StreamRequest.camera`; the same for all clips.
        sigmas: Noise levels from 1 to 0, such as `schedule.DISTILLED` for LTX-2's distilled weights. None is LTX-2's
            schedule with `steps` steps.
        loras: LoRA files and their strengths, which change the network while it runs.
        keyframes: Pictures and clips that all clips are given, at places of theirs.
        references: Clips beside those that are made, for an IC-LoRA among `loras`.

    Raises:
        ValueError: In one line that names the field, if a value fits no weights at all.
    """

    prompts: Sequence[str]
    seconds: int | float
    steps: int = STEPS
    guidance: GuidanceConfig | int | float = GUIDANCE
    seed: int = 0
    height: int | None = None
    width: int | None = None
    dtype: DTypeLike = jnp.float32
    contexts: TextSource = None
    negative_prompt: str = ""
    negative_contexts: TextSource = None
    renewal: int | float = 0.0
    ancestral: int | float = 0.0
    sigmas: Sequence[float] | None = None
    camera: str | None = None
    loras: GivenLoras = ()
    keyframes: Sequence[Keyframe] = ()
    references: Sequence[Reference] = ()

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise ValueError(f"prompts={self.prompts!r}: must be a sequence of prompts, one per clip")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        require(len(self.prompts) > 0, "prompts", self.prompts, "must be at least one prompt")
        require(math.isfinite(self.seconds), "seconds", self.seconds, "must be a finite number")
        check_seed(self.seed)
        check_dtype(self.dtype)
        object.__setattr__(self, "loras", check_loras(self.loras))
        object.__setattr__(self, "keyframes", tuple(self.keyframes))
        object.__setattr__(self, "references", tuple(self.references))
        if self.camera is not None:
            parse_camera(self.camera)
        rule = "must be finite and not negative"
        require(0 <= self.renewal < math.inf, "renewal", self.renewal, rule)
        require(0 <= self.ancestral <= 1, "ancestral", self.ancestral, "must be in [0, 1]")
        rule = "must be 0 with an ancestral step, which renews noise in its own way"
        require(not (self.renewal and self.ancestral), "renewal", self.renewal, rule)
        require(1 <= self.steps <= MOST_STEPS, "steps", self.steps, f"must be between 1 and {MOST_STEPS}")
        rule = "needs guidance: cfg is 1 for both streams"  # also refuses a number that is not finite
        has_guidance = Pass.NEGATIVE in self.strengths.passes
        require(has_guidance or not self.negative_prompt, "negative-prompt", self.negative_prompt, rule)
        falls = all(a > b for a, b in itertools.pairwise(self.levels))
        ends = self.levels[0] <= 1 and self.levels[-1] == 0
        require(falls and ends, "sigmas", self.levels, "must fall from at most 1 to 0")

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels, from 1 to 0."""
        return tuple(ltx2_schedule(self.steps).tolist() if self.sigmas is None else self.sigmas)

    @property
    def shares(self) -> tuple[float, ...] | None:
        """The share of fresh noise at each level but the closing 0; None without any."""
        if self.renewal:
            return tuple(fresh_shares(self.levels, self.renewal).tolist())
        return tuple(ancestral_shares(self.levels, self.ancestral).tolist()) if self.ancestral else None

    @property
    def strengths(self) -> GuidanceConfig:
        """The guidance of both streams."""
        if isinstance(self.guidance, GuidanceConfig):
            return self.guidance
        both = StreamGuidance(cfg=float(self.guidance))
        return GuidanceConfig(video=both, audio=both)
