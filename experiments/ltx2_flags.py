"""Flags that the recipes for LTX-2 share, and the values that their CONFIGs have in common.

A recipe's Arguments have its Config as a field, whose fields are flags as well: `--optimiser.learning-rate`.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from omniforcing_jax.config import CrossTimestep, SamplerConfig
from omniforcing_jax.layout import FUSED, PREFIX, PREFIX2, Layout
from omniforcing_jax.schedule import ltx2_schedule, snap
from omniforcing_jax.strict_json import require
from omniforcing_jax.train.distil import DistillConfig
from omniforcing_jax.train.loop import LoopConfig

LayoutName = Literal["fused", "prefix", "prefix2"]
LAYOUTS = {"fused": FUSED, "prefix": PREFIX, "prefix2": PREFIX2}
SINKS = {"fused": 0, "prefix": 16, "prefix2": 0}  # the releases have none; a block 0 of one audio latent needs them

# Noise levels of OmniForcing at 9c25f15 (v1) and 50a271f (v2), snapped to the teacher's schedule of 40 steps as there.
V1_SIGMAS = snap((1000, 757, 522, 0), ltx2_schedule(40))[1]
V2_SIGMAS = snap((1000, 909, 725, 421, 0), ltx2_schedule(40))[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """What everything that runs LTX-2 on prompts takes."""

    contexts: Path
    """Store of the prompts' text contexts (docs/pairs.md)."""
    batch: int = 1
    """Prompts at once, on all devices together."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type to compute in."""
    mesh: str = "1,1,1"
    """Devices as replica,fsdp,tensor (docs/pod.md); all of them. A run may be continued on another mesh."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(LoopConfig, Compute):
    """What every recipe takes, the trainer's loop included."""

    student: Path
    """Weights folder that the network in training begins from."""
    seed: int = 0
    """Random seed of noise, of the order of the prompts, and of new sinks."""
    sample_every: int = 500
    """Steps between sample clips, with sound and a contact sheet, in FOLDER/samples. 0 makes none."""
    sample_prompts: int = 2
    """Sample clips at a time, of the first prompts."""

    def __post_init__(self):
        """Check ranges."""
        super().__post_init__()
        require(self.sample_every >= 0, "sample_every", self.sample_every, "must not be negative")
        require(self.sample_prompts >= 1, "sample_prompts", self.sample_prompts, "must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutArguments(Arguments):
    """What a recipe that learns from examples takes."""

    held_out: float = 0.01
    """Share of the examples that no step learns from. Metrics `held_out/...` are the loss of stage 2 on them."""
    evaluate_every: int = 500
    """Steps between looks at the examples that are held out."""

    def __post_init__(self):
        """Check ranges."""
        super().__post_init__()
        require(0 <= self.held_out < 1, "held_out", self.held_out, "must be a share of the examples, in [0, 1)")
        require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsArguments(HeldOutArguments):
    """What a recipe that learns from a teacher's trajectories takes."""

    pairs: Path
    """Store of the teacher's trajectories (docs/pairs.md)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExamplesArguments(HeldOutArguments):
    """What a recipe that learns from a teacher's trajectories, from real clips, or from both takes."""

    pairs: Path | None = None
    """Store of the teacher's trajectories (docs/pairs.md)."""
    clips: Path | None = None
    """Folder of real clips (docs/videos.md), of any sizes, none longer than the clips of this run."""
    real_share: float | None = None
    """Share of the steps that learn from real clips, by diffusion forcing. With both --pairs and --clips it must be
    given."""

    def __post_init__(self):
        """Check that what is learned from is there."""
        super().__post_init__()
        require(bool(self.pairs or self.clips), "pairs", None, "give --pairs, --clips, or both")
        share = self.share_of_clips
        rule = "must be a share of the steps: 0 without --clips, 1 without --pairs, between them with both"
        fits = (0 < share < 1) if self.pairs and self.clips else share == (1 if self.clips else 0)
        require(fits, "real_share", self.real_share, rule)

    @property
    def share_of_clips(self) -> float:
        """The share of the steps that learn from real clips."""
        return self.real_share if self.real_share is not None else float(self.pairs is None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalArguments:
    """What a recipe for a causal student takes."""

    layout: LayoutName = "fused"
    """First block of a clip, in latents of picture and sound: 4 + 26 (fused) as OmniForcing's release; 1 + 1 with sinks
    (prefix) as its paper; 1 + 2 (prefix2) as EchoWM. All later blocks have 3 + 25."""

    @property
    def blocks(self) -> Layout:
        """The layout."""
        return LAYOUTS[self.layout]

    @property
    def sinks(self) -> int:
        """Sinks that a student gets where it has none."""
        return SINKS[self.layout]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """What a recipe for a causal student sets, whatever its teacher is.

    Attributes:
        sigmas: Noise levels of the student's steps.
        cross_timestep: Whose noise level drives the student's crossings, see `ModelConfig`. OmniForcing's student takes
            each token's own. LTX-2 takes the other stream's, of which a clip with a level per block has several, unless
            `scalar_sigma` holds it.
        scalar_sigma: Noise level that modulates text and crossings in every pass, see `SamplerConfig`. EchoWM holds 1.
            Networks with text AdaLN (LTX-2.3) need it. None holds nothing.
        window: Blocks that a block may see, itself included; 0 shows all of a clip.
        pinned: Blocks that are never evicted, from block 0 on.
    """

    sigmas: tuple[float, ...] = V2_SIGMAS
    cross_timestep: CrossTimestep = CrossTimestep.OWN
    scalar_sigma: float | None = None
    window: int = 0
    pinned: int = 1

    def sampler(self, layout: Layout, seconds: int, context_noise: float = 0.0) -> SamplerConfig:
        """Say what makes the network a student, trained on clips of so many seconds.

        Raises:
            ValueError: As `SamplerConfig`.
        """
        return SamplerConfig(
            layout=layout,
            sigmas=self.sigmas,
            horizon_seconds=seconds,
            context_noise=context_noise,
            window=self.window,
            pinned=self.pinned,
            scalar_sigma=self.scalar_sigma,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DmdArguments(Arguments):
    """What a recipe with a teacher and a critic takes; each recipe has a `config` of its own."""

    teacher: Path
    """Weights folder of the bidirectional teacher; the critic begins as it."""
    negative: str
    """Negative prompt of the teacher's guidance; it must be in the contexts store."""
    config: DistillConfig
    """How generator and critic are trained."""
