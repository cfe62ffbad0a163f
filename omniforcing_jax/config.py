"""Configs of a network and of its sampler: frozen, validated, to JSON and back.

A config holds facts about weights. Sizes of a request (seconds, height, width, seed) are arguments elsewhere. Configs
are hashable, so they can be static arguments of compiled functions.
"""

import dataclasses
import enum
import itertools
import math

from omniforcing_jax.layout import PREFIX, Layout
from omniforcing_jax.strict_json import LARGEST_SIZE, MOST_LAYERS, Config, require, require_counts

MOST_SIGMAS = 1025  # of a sampler
LONGEST_HORIZON_S = 24 * 3600  # of a clip


class RotaryKind(enum.StrEnum):
    """Which two channels of a head share a rotary angle: (i, i + H/2) or (2i, 2i + 1)."""

    SPLIT = "split"
    INTERLEAVED = "interleaved"


class GridPrecision(enum.StrEnum):
    """Precision in which the rotary frequencies were computed when the weights were trained."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"


class CrossTimestep(enum.StrEnum):
    """Whose sigma drives a stream's cross-modal modulation.

    OWN: its own, per token. CROSS: the other stream's scalar. HYBRID: its own for scale and shift, the other's scalar
    for the gate. Equal sigmas make the three equal.

    Source: OWN OmniForcing@50a271f:ltx_causal/transformer/causal_model.py,
    CROSS ltx-core@1.0.0:model/transformer/transformer_args.py, HYBRID ltx-core since 1.1.4.
    """

    OWN = "own"
    CROSS = "cross"
    HYBRID = "hybrid"


class EightBitKind(enum.StrEnum):
    """What eight bits encode: whole numbers, or float8 with 4 bits of exponent and 3 of mantissa (e4m3)."""

    INT8 = "int8"
    FLOAT8 = "float8"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EightBits(Config):
    """Which matrices of a network are in eight bits.

    Attributes:
        kind: The kind of eight bits.
        layers: Layers that have them, in order.
        parts: The matrices of such a layer, by path, as "video/self_attn/q".
    """

    kind: EightBitKind
    layers: tuple[int, ...]
    parts: tuple[str, ...]

    def __post_init__(self):
        in_order = all(a < b for a, b in itertools.pairwise((-1, *self.layers)))
        require(len(self.layers) > 0 and in_order, "layers", self.layers, "must be numbers of layers, from 0, in order")
        require(0 < len(self.parts) == len(set(self.parts)), "parts", self.parts, "must be matrices, each named once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedHeads(Config):
    """Sizes of attention whose heads are rotated."""

    heads: int
    head_size: int

    def __post_init__(self):
        require_counts(self, LARGEST_SIZE, "heads", "head_size")
        require(self.head_size % 2 == 0, "head_size", self.head_size, "must be even, rotation pairs channels")

    @property
    def width(self) -> int:
        """Channels of all heads together."""
        return self.heads * self.head_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamConfig(RotatedHeads):
    """One stream's sizes.

    Attributes:
        latent_channels: Channels of a token.
        mlp_bias: Whether the feed-forward part adds a bias (LTX-2.5's video: no).
    """

    latent_channels: int
    mlp_bias: bool = True

    def __post_init__(self):
        require_counts(self, LARGEST_SIZE, "latent_channels")
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraMotion(Config):
    """What camera keys do, per pixel frame, and how far a picture sees; weights were trained with these figures.

    Attributes:
        speed: Translation per frame while a key is held.
        turn_degrees: Yaw per frame.
        tilt_degrees: Pitch per frame.
        tilt_limit_degrees: Largest pitch, up or down.
        unit: Translations are divided by this before the network gets them.
        view_degrees: Horizontal field of view.
    """

    speed: float = 0.05
    turn_degrees: float = 0.4
    tilt_degrees: float = 0.2
    tilt_limit_degrees: float = 40.0
    unit: float = 30.0
    view_degrees: float = 70.0

    def __post_init__(self):
        for field in (field.name for field in dataclasses.fields(self)):
            require(0 < getattr(self, field) < math.inf, field, getattr(self, field), "must be positive and finite")
        require(self.view_degrees < 180, "view_degrees", self.view_degrees, "must be below 180")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraConfig(Config):
    """Camera attention beside the self-attention of video.

    Attributes:
        heads: Its heads, which are not video's.
        head_size: Channels of each: half for the camera, a quarter each for columns and rows of the picture.
        theta: Ratio of the highest to the lowest frequency of columns and rows.
        motion: What camera keys do.
    """

    heads: int
    head_size: int
    theta: float = 100.0
    motion: CameraMotion = CameraMotion()

    def __post_init__(self):
        require_counts(self, LARGEST_SIZE, "heads", "head_size")
        require(self.head_size % 8 == 0, "head_size", self.head_size, "must be a multiple of 8")
        require(0 < self.theta < math.inf, "theta", self.theta, "must be positive and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryConfig(Config):
    """Rotary position embedding over (seconds, pixel row, pixel column).

    Attributes:
        kind: Which channels form a pair.
        theta: Ratio of the highest to the lowest frequency.
        max_seconds: Seconds are scaled so that 0 .. max becomes -1 .. 1.
        max_pixels: The same for pixel rows and columns.
        grid: Precision in which the frequencies were computed.
    """

    kind: RotaryKind = RotaryKind.SPLIT
    theta: float = 10_000.0
    max_seconds: float = 20.0
    max_pixels: float = 2048.0
    grid: GridPrecision = GridPrecision.FLOAT64

    def __post_init__(self):
        for field in ("theta", "max_seconds", "max_pixels"):
            require(0 < getattr(self, field) < math.inf, field, getattr(self, field), "must be positive and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """A dual-stream transformer.

    Attributes:
        layers: L, the number of dual-stream layers.
        video: Sizes of the video stream.
        audio: Sizes of the audio stream, which has as many heads.
        caption_channels: Width of the text contexts, which the network projects. None if they have the streams' widths
            already (LTX-2.3).
        rotary: Position embedding.
        cross_timestep: Whose sigma drives the cross-modal modulation.
        gate_multiplier: Sigma times this is the input of the cross-modal gates; all others get 1000 sigma.
        gated_attention: Whether every attention has a gate per head (LTX-2.3).
        text_adaln: Whether text attention is modulated (LTX-2.3).
        prompt_time: Whether the modulation of text keys depends on a noise level. Otherwise each layer's table alone
            modulates them. It has no effect without `text_adaln`.
        keyframe_embedding: Whether a learned vector marks the tokens of latent frames that are one pixel frame long,
            as the first one of a clip is (LTX-2.5).
        sinks: Learned audio tokens in front of block 0.
        log_ratio: Whether queries are scaled by log(1 + visible) / log(1 + total); masked regime only.
        spatial_compression: Pixels per latent row or column.
        eight_bits: Which matrices are in eight bits; None where none is.
        camera: Camera attention of every layer; None without.
        float32_tables: Whether the modulation tables are float32, whatever type the other weights have (LTX-2.5's
            files).
    """

    layers: int
    video: StreamConfig
    audio: StreamConfig
    caption_channels: int | None
    rotary: RotaryConfig = RotaryConfig()
    cross_timestep: CrossTimestep = CrossTimestep.OWN
    gate_multiplier: float = 1000.0
    gated_attention: bool = False
    text_adaln: bool = False
    prompt_time: bool = True
    keyframe_embedding: bool = False
    sinks: int = 0
    log_ratio: bool = False
    spatial_compression: int = 32
    eight_bits: EightBits | None = None
    camera: CameraConfig | None = None
    float32_tables: bool = False

    def __post_init__(self):
        require_counts(self, MOST_LAYERS, "layers")
        require_counts(self, LARGEST_SIZE, "spatial_compression")
        require(0 <= self.sinks <= LARGEST_SIZE, "sinks", self.sinks, f"must be between 0 and {LARGEST_SIZE}")
        same = self.video.heads == self.audio.heads
        require(same, "audio.heads", self.audio.heads, f"must equal video.heads={self.video.heads}")
        if self.caption_channels is not None:
            require_counts(self, LARGEST_SIZE, "caption_channels")
        require(not (self.camera and self.log_ratio), "log_ratio", True, "is not defined for camera attention")
        if self.eight_bits is not None:
            numbers, rule = self.eight_bits.layers, f"must be below {self.layers}, the number of layers"
            require(numbers[-1] < self.layers, "eight_bits.layers", numbers, rule)

    @property
    def text_needs_sigma(self) -> bool:
        """Whether text keys depend on a noise level."""
        return self.text_adaln and self.prompt_time


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig(Config):
    """How a causal few-step student samples; it belongs to the weights.

    Attributes:
        sigmas: Noise levels of the denoise steps, from 1 down to 0; one network call per step.
        horizon_seconds: Length of the training clips, in whole seconds (one frame not counted).
        layout: How a clip is cut into blocks.
        context_noise: Sigma of the clean pass whose keys and values later blocks read.
        window: Blocks that a block may see, itself included. 0 fills the horizon; pinned blocks then take some of
            its places.
        pinned: Blocks that are never evicted, from block 0 on.
        reanchor: Whether pinned keys move along with the stream once it is past the horizon. Otherwise they stay at the
            beginning of the stream, at distances that no training clip had.
        renewal: How much of the noise each step draws afresh, see `schedule.fresh_shares`. 0 makes Euler steps and 1
            ancestral ones, for a causal network that was not distilled. None draws all of it at every step, as few-step
            students are trained to.
        scalar_sigma: Noise level that modulates text and crossings in every pass, clean passes too. It drives what the
            network takes from one scalar per sample: text AdaLN, and what `ModelConfig.cross_timestep` gives the other
            stream. None takes the level of the pass.
        needs_picture: Whether a stream must begin with a picture, as every training clip did.
    """

    sigmas: tuple[float, ...]
    horizon_seconds: int
    layout: Layout = PREFIX
    context_noise: float = 0.0
    window: int = 0
    pinned: int = 1
    reanchor: bool = True
    renewal: float | None = None
    scalar_sigma: float | None = None
    needs_picture: bool = False

    def __post_init__(self):
        rule = f"must have at least 2 and at most {MOST_SIGMAS} entries"
        require(2 <= len(self.sigmas) <= MOST_SIGMAS, "sigmas", self.sigmas, rule)
        most = f"must be at most {LONGEST_HORIZON_S}"
        require(self.horizon_seconds <= LONGEST_HORIZON_S, "horizon_seconds", self.horizon_seconds, most)
        require(abs(self.sigmas[0] - 1) <= 1e-6, "sigmas", self.sigmas, "must start at 1")
        require(self.sigmas[-1] == 0, "sigmas", self.sigmas, "must end at 0")
        falls = all(a > b for a, b in itertools.pairwise(self.sigmas))
        require(falls, "sigmas", self.sigmas, "must fall from step to step")
        rule = "must be finite and not negative; leave it out to draw all noise afresh"
        require(self.renewal is None or 0 <= self.renewal < math.inf, "renewal", self.renewal, rule)
        held = self.scalar_sigma
        require(held is None or 0 <= held <= 1, "scalar_sigma", held, "must be a noise level in [0, 1]")
        require(0 <= self.context_noise < 1, "context_noise", self.context_noise, "must be in [0, 1)")
        try:
            self.layout.frames_for(self.horizon_seconds)
        except ValueError as error:
            raise ValueError(f"horizon_{error}") from None
        rule = f"must be between 0 and the horizon's {self.horizon_blocks} blocks"
        require(0 <= self.window <= self.horizon_blocks, "window", self.window, rule)
        require(0 <= self.pinned <= self.horizon_blocks, "pinned", self.pinned, rule)

    @property
    def horizon_blocks(self) -> int:
        """Blocks in a training clip."""
        return 1 + (self.horizon_seconds - self.layout.first_seconds) // self.layout.step_seconds

    @property
    def past_blocks(self) -> int:
        """R, the ring's slots: unpinned past blocks that a block sees.

        With window 0 every block beyond the horizon sees as many blocks as the last trained block saw, at the same
        distances. R leaves out the current block and the pinned ones.
        """
        if self.window:
            return self.window - 1
        return max(0, self.horizon_blocks - 1 - self.pinned)

    def shift_seconds(self, k: int) -> int:
        """Seconds by which pinned keys are shifted for block k: 0 within the horizon, then along with the stream."""
        if not self.reanchor:
            return 0
        start = self.layout.start_seconds
        return max(0, start(k) - start(self.horizon_blocks - 1))

    @property
    def steps(self) -> int:
        """Denoise steps per block, one fewer than noise levels."""
        return len(self.sigmas) - 1
