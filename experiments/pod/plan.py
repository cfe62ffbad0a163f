"""Which mesh suits a program on a slice of TPUs, by formula: bytes and seconds before anything is compiled.

The formulas (docs/distil.md) only rank meshes; what a mesh really takes, the compiler says (compile_for_pod.py). Sizes
of chips are those of docs.cloud.google.com/tpu/docs for v5e, v5p and v6e.
"""

import dataclasses
import enum
import math

from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.layout import Block, latent_frames
from omniforcing_jax.parallel.mesh import MeshConfig

EFFICIENCY = 0.4  # of the peak, for ranking only
KEPT_WIDTHS = (5, 8, 3)  # per video token and layer: D whole, D cut over tensor, d cut over tensor (keep_projections)
TENSOR_SUMS = 4  # sums of [tokens, D] per layer and forward where heads are cut
# Times the bytes: over all chips of a slice with three sides of more than two chips, libtpu 0.0.42.1 gathers by summing
# what is zero elsewhere (experiments/bench/gathers.py).
SUMMED = 2
GIB = 2**30


class Program(enum.StrEnum):
    """What is compiled: a step of stage 2, of stage 3's generator, of its critic; a block of a stream."""

    STAGE2 = "stage2"
    STAGE3 = "stage3"
    CRITIC = "critic"
    STREAM = "stream"


# Bytes that are there for every parameter (docs/distil.md), and whether a whole clip is differentiated.
STATE_BYTES = {Program.STAGE2: 16, Program.STAGE3: 34, Program.CRITIC: 34, Program.STREAM: 2}
# Forwards whose weights are gathered: stage 3 rolls out 5 blocks of 2.5 steps and a commit, scores with 4, and walks
# the blocks again with a vjp (3) and a commit each.
GATHERS = {Program.STAGE2: 3, Program.STAGE3: 42, Program.CRITIC: 21, Program.STREAM: 5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What one chip has.

    Attributes:
        hbm_bytes: Memory that a program may use.
        flops: Peak per second in bfloat16.
        hbm_bandwidth: Bytes per second.
        ici_bandwidth: Bytes per second to its neighbours, all links together.
    """

    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float


CHIPS = {
    "v5e": Chip(hbm_bytes=16 * GIB, flops=197e12, hbm_bandwidth=0.819e12, ici_bandwidth=200e9),
    "v5p": Chip(hbm_bytes=95 * GIB, flops=459e12, hbm_bandwidth=2.765e12, ici_bandwidth=600e9),
    "v6e": Chip(hbm_bytes=int(31.25 * GIB), flops=918e12, hbm_bandwidth=1.638e12, ici_bandwidth=448e9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of one forward: its own, and those that they see beside their own."""

    video: int
    audio: int
    past_video: int = 0
    past_audio: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a mesh is thought to take: bytes per chip, and seconds for one row of a batch if one chip did it all."""

    mesh: MeshConfig
    bytes: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips that are wired to their neighbours, so many along each side."""

    chip: Chip
    sides: tuple[int, ...]

    @classmethod
    def parse(cls, topology: str) -> "Slice":
        """Read a topology such as `v5p:4x4x4`.

        Raises:
            ValueError: If the generation is unknown, or the sides are no numbers.
        """
        generation, _, sides = topology.partition(":")
        if generation not in CHIPS or not all(side.isdecimal() and int(side) for side in sides.split("x")):
            known = ", ".join(CHIPS)
            raise ValueError(f"--topology {topology}: must be one of {known} and its sides, such as v5p:4x4x4")
        return cls(chip=CHIPS[generation], sides=tuple(map(int, sides.split("x"))))

    @property
    def chips(self) -> int:
        """Chips in all."""
        return math.prod(self.sides)

    @property
    def is_deep(self) -> bool:
        """Whether three sides have more than two chips: 4x4x4, neither 2x4x4 nor 8x16."""
        return sum(side > 2 for side in self.sides) == 3


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the layers' matrices, which are all but a hundredth."""
    wide, narrow = model.video.width, model.audio.width
    return model.layers * (16 * wide**2 + 16 * narrow**2 + 4 * narrow * (wide + narrow))


def forward_flops(model: ModelConfig, tokens: Tokens, text: int) -> float:
    """FLOPs of one forward of one sample, text keys and values given: two per multiply-add of matrix products."""
    wide, narrow = model.video.width, model.audio.width
    seen_v, seen_a = tokens.video + tokens.past_video, tokens.audio + tokens.past_audio
    linear = tokens.video * (14 * wide**2 + 4 * wide * narrow) + tokens.audio * 18 * narrow**2
    attention = tokens.video * (wide * (seen_v + text) + narrow * seen_a)
    attention += tokens.audio * narrow * (seen_v + seen_a + text)
    ends = 2 * (tokens.video * wide * model.video.latent_channels + tokens.audio * narrow * model.audio.latent_channels)
    return model.layers * (2.0 * linear + 4.0 * attention) + 2.0 * ends


def whole_clip(blocks: tuple[Block, ...], per_frame: int) -> Tokens:
    """Tokens of a clip that is seen whole."""
    return Tokens(video=blocks[-1].video_end * per_frame, audio=blocks[-1].audio_end)


def block_tokens(sampler: SamplerConfig, per_frame: int) -> Tokens:
    """Tokens of a late block against a full cache."""
    layout, ring = sampler.layout, sampler.past_blocks
    return Tokens(
        video=layout.step_v * per_frame,
        audio=layout.step_a,
        past_video=(layout.first_v + ring * layout.step_v) * per_frame,
        past_audio=layout.first_a + ring * layout.step_a,
    )


def cache_bytes(model: ModelConfig, tokens: Tokens) -> float:
    """Bytes, in bfloat16, of the keys and values that one sample's past takes."""
    wide, narrow = model.video.width, model.audio.width
    return model.layers * 2.0 * (tokens.past_video * 2 * (wide + narrow) + tokens.past_audio * 4 * narrow)


def program_flops(program: Program, model: ModelConfig, sampler: SamplerConfig, per_frame: int, text: int) -> float:
    """FLOPs of one sample, roughly: backward passes at twice a forward, rollouts at a block's forward.

    A rollout stops at its exit step, which lies in the middle; attention that is computed again is left out.
    """
    blocks = sampler.layout.blocks(latent_frames(sampler.layout.frames_for(sampler.horizon_seconds)))
    clip = forward_flops(model, whole_clip(blocks, per_frame), text)
    block = forward_flops(model, block_tokens(sampler, per_frame), text)
    rollout = len(blocks) * ((sampler.steps + 1) / 2 + 1) * block
    critic = rollout + 3 * clip
    return {
        Program.STAGE2: 3 * clip,
        Program.CRITIC: critic,
        Program.STAGE3: rollout + len(blocks) * 4 * block + 4 * clip,
        Program.STREAM: (sampler.steps + 1) * block,
    }[program]


def estimate(
    program: Program,
    model: ModelConfig,
    sampler: SamplerConfig,
    per_frame: int,
    text: int,
    mesh: MeshConfig,
    place: Slice,
) -> Estimate:
    """Guess bytes per chip and time of a program with one row for each of the mesh's parts of a batch.

    Weights that are cut over all chips of a deep slice are gathered by sums.
    """
    blocks = sampler.layout.blocks(latent_frames(sampler.layout.frames_for(sampler.horizon_seconds)))
    clip, block = whole_clip(blocks, per_frame), block_tokens(sampler, per_frame)
    parameters, tensor, layers = parameter_count(model), mesh.tensor, model.layers
    whole, cut, narrow_cut = KEPT_WIDTHS
    kept = whole * model.video.width + (cut * model.video.width + narrow_cut * model.audio.width) / tensor
    state = STATE_BYTES[program] * parameters / (mesh.fsdp * tensor)
    caches = 0.0 if program is Program.STAGE2 else cache_bytes(model, block) / tensor
    activations = 0.0 if program is Program.STREAM else 2.0 * layers * clip.video * kept
    flops = program_flops(program, model, sampler, per_frame, text)
    forwards = flops / forward_flops(model, block, text)
    gathered = GATHERS[program] * 2.0 * parameters / tensor * (1 - 1 / mesh.fsdp)
    if place.is_deep and mesh.fsdp == mesh.devices:
        gathered *= SUMMED
    summed = forwards * TENSOR_SUMS * layers * 4.0 * block.video * model.video.width * (1 - 1 / tensor)
    seconds = flops / (tensor * EFFICIENCY * place.chip.flops) + (gathered + summed) / place.chip.ici_bandwidth
    return Estimate(mesh=mesh, bytes=state + caches + activations, seconds=seconds * tensor)


def rank(
    program: Program, model: ModelConfig, sampler: SamplerConfig, per_frame: int, text: int, place: Slice
) -> list[Estimate]:
    """Order the meshes of a slice: those that should fit, by speed, by memory where that is alike.

    A stream must also keep up: a block may take no longer than it shows. Weights of a stream are not cut over fsdp,
    since they would be gathered for every step of every block.
    """

    def order(one: Estimate) -> tuple[bool, bool, float, float]:
        late = program is Program.STREAM and one.seconds / one.mesh.tensor > sampler.layout.step_seconds
        return one.bytes > 0.85 * place.chip.hbm_bytes, late, float(f"{one.seconds:.1e}"), one.bytes

    estimates, chips = [], place.chips
    for tensor in (n for n in range(1, model.video.heads + 1) if chips % n == 0 and model.video.heads % n == 0):
        for fsdp in (n for n in range(1, chips // tensor + 1) if (chips // tensor) % n == 0):
            mesh = MeshConfig(replica=chips // tensor // fsdp, fsdp=fsdp, tensor=tensor)
            parts = fsdp * tensor
            if math.gcd(model.video.width, model.audio.width) % parts or (program is Program.STREAM and fsdp > 1):
                continue
            estimates.append(estimate(program, model, sampler, per_frame, text, mesh, place))
    return sorted(estimates, key=order)
