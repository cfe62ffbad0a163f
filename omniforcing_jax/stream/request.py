"""The request for a stream: one checked value that the command line, Python and a saved state build and read."""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import DTypeLike

from omniforcing_jax.model.eight_bits import eight_bit_cache
from omniforcing_jax.pipeline.checks import check_dtype, check_seed
from omniforcing_jax.pipeline.loras import GivenLoras, LoraFiles, check_loras
from omniforcing_jax.pipeline.text_source import TextSource
from omniforcing_jax.stream.camera.motion import parse_camera
from omniforcing_jax.stream.conditioning.condition import NO_CONDITION, Condition
from omniforcing_jax.strict_json import parse, require

NOT_SAVED = ("contexts", "start", "drive")
"""Fields that a saved state leaves out: it holds the text and the latents that were made of them."""

LONGEST_HISTORY = 1_000_000  # blocks
LONGEST_LOOKAHEAD = 300  # latent frames: a hundred seconds

EXACT: Literal["exact"] = "exact"
"""The `history` with which a change of prompt is exact."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamRequest:
    """A request for a stream.

    Everything that needs no weights is checked here; `plan.plan_stream` checks the rest.

    Attributes:
        prompt: What to show. A tuple of prompts makes a batch on one clock. Row i is the stream of prompt i and seed i;
            the other rows have no influence on it (to rounding: 1e-5 of a latent).
        seconds: Length in whole seconds (the stream has one frame more); None never ends.
        seed: Random seed. In a batch, one per row, or a number to which row i adds i.
        height: Frame height in pixels; None is the training resolution.
        width: Frame width in pixels; None is the training resolution.
        window: Blocks that a block attends to, itself included; 0 fills the trained horizon; None is the weights' own.
        steps: Denoise steps per block, at most the trained ones; None is all of them.
        dtype: Type to compute in. Sound is always decoded in float32.
        weights_dtype: "int8" or "float8" for the network's large matrices; None leaves them as they are.
        cache_dtype: "int8" or "float8" for cached keys and values of video; None has them in `dtype`.
        contexts: Text contexts, or a file of them, instead of the weights' own text encoder.
        history: Later blocks whose latents are kept, so that a change of prompt can recompute them. At least, and with
            None, those of the window. "exact" keeps all blocks on which the window depends, and `set_prompt` then
            replays all of them by default. The result is the cache of a stream that had the new prompt from its
            beginning. There are `exact_depth` of them: 2 x layers x past blocks of the window. Each one costs its
            latents in memory, and one clean pass at every change.
        start: Picture, sound or both that the stream begins with: one frame and whole seconds. `seconds` counts them.
        drive: Picture or sound that the whole stream is made to.
        lookahead: Latent frames (a third of a second each) by which the picture is delayed, so that a decoder that is
            not causal, or an upsampler, can see them. None is `plan.LOOKAHEAD` where there is either, else 0.
        camera: Keys that move the camera, as `w-24,wd-48,none-24` (stream/camera/motion.py), for weights with camera
            attention. After the last one, and with None from the beginning, the camera stands.
        loras: LoRA files and their strengths, which change the network while it runs (`ChunkStream.set_loras`).
        upscale: Upsample the latents of each block before they are decoded, by the upsampler of the weights. Height and
            width are those of the network; the picture is larger. The look-ahead holds for the upsampler too.

    Raises:
        ValueError: In one line that names the field, if a value fits no weights at all.
    """

    prompt: str | tuple[str, ...]
    seconds: int | float | None = None
    seed: int | tuple[int, ...] = 0
    height: int | None = None
    width: int | None = None
    window: int | None = None
    steps: int | None = None
    dtype: DTypeLike = jnp.float32
    weights_dtype: str | None = None
    cache_dtype: str | None = None
    contexts: TextSource = None
    history: int | Literal["exact"] | None = None
    start: Condition = NO_CONDITION
    drive: Condition = NO_CONDITION
    lookahead: int | None = None
    camera: str | None = None
    loras: GivenLoras = ()
    upscale: bool = False

    def __post_init__(self) -> None:
        for name in ("prompt", "seed"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if isinstance(value, str | int) else tuple(value))
        require(len(self.prompts) > 0, "prompt", self.prompt, "must be one prompt or a sequence of at least one")
        rule = f"must be one number or one for each of {len(self.prompts)} prompts"
        require(len(self.seeds) == len(self.prompts), "seed", self.seed, rule)
        finite = self.seconds is None or math.isfinite(self.seconds)
        require(finite, "seconds", self.seconds, "must be a finite number; leave it out for an endless stream")
        check_seed(*self.seeds)
        check_dtype(self.dtype)
        object.__setattr__(self, "loras", check_loras(self.loras))
        eight_bit_cache(self.cache_dtype)
        _check_history(self.history)
        if self.camera is not None:
            parse_camera(self.camera)
        fits = self.lookahead is None or 0 <= self.lookahead <= LONGEST_LOOKAHEAD
        require(fits, "lookahead", self.lookahead, f"must be between 0 and {LONGEST_LOOKAHEAD}")

    @property
    def is_batch(self) -> bool:
        """Whether the prompt is a sequence, of one row or more."""
        return not isinstance(self.prompt, str)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of every row."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of every row."""
        return self.seed if isinstance(self.seed, tuple) else tuple(range(self.seed, self.seed + len(self.prompts)))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that a saved state keeps, as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in NOT_SAVED}
        return {**values, "dtype": jnp.dtype(self.dtype).name}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StreamRequest":
        """Build the request from `to_dict`'s form.

        Raises:
            ValueError: If a field is missing, unknown or of the wrong kind; names it.
        """
        kinds = {f.name: f.type for f in dataclasses.fields(cls) if f.name not in NOT_SAVED}
        kinds |= {"dtype": str, "history": int | str | None, "loras": LoraFiles}
        if set(values) != set(kinds):
            raise ValueError(f"request: has the keys {sorted(values)}, expected {sorted(kinds)}")
        fields = {name: parse(kind, values[name], f"request.{name}") for name, kind in kinds.items()}
        _check_history(fields["history"])
        return cls(**fields)


def _check_history(history: int | str | None) -> None:
    """Check the field `history`; the type checker sees no further than the constructor."""
    if isinstance(history, str):
        require(history == EXACT, "history", history, f"must be a number of blocks, {EXACT!r} or None")
    else:
        fits = history is None or 0 <= history <= LONGEST_HISTORY
        require(fits, "history", history, f"must be between 0 and {LONGEST_HISTORY}")
