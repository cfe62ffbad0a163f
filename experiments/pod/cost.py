"""Hours and cost of each stage by formula, before anything is paid for.

A step's FLOPs (experiments/pod/plan.py) are divided by a chip's peak and by the share of it that is assumed to be
reached, over all chips. **No stage has been timed at full size**, so the share is a guess, and its flag says so.
Compiling, loading, checkpoints and sample clips come on top. Attention that is computed again adds 6 % to stage 2.

Hardware: any; no weight is made.
Expect: a table in Markdown, a line for pairs and for each stage, as in docs/pod.md.

    python -m experiments.pod.cost --chip v5p --chips 64 --batch 64 --price 1
"""

import dataclasses
import math
from typing import Literal

from experiments import causal_dmd, make_pairs, stage1_dmd, stage3_self_forcing
from experiments.cli_errors import refusing
from experiments.pod.plan import CHIPS, EFFICIENCY, Program, forward_flops, program_flops, whole_clip
from experiments.script import read_flags
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.pipeline.presets import LTX2_19B_STREAM
from omniforcing_jax.strict_json import require

TRAINED = 3  # forwards that a forward and its gradient cost
HEAD = "| | PFLOP a clip | clips | hours | chip hours | cost |"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Print hours and cost of each stage."""

    chip: Literal["v5e", "v5p", "v6e"] = "v5p"
    """Generation of the chips."""
    peak: float | None = None
    """Peak of a chip in TFLOP/s in bfloat16, for others, such as 989 for an H100; by default the generation's."""
    chips: int = 64
    """Chips in all."""
    share: float = EFFICIENCY
    """Share of the peak that is reached: an assumption, none was measured at full size."""
    price: float = 1.0
    """Price of a chip for an hour, in any currency; 1 makes the cost chip hours."""
    batch: int = 64
    """Rows of a batch."""
    pairs: int = 10_000
    """Trajectories that are made."""
    stage1: int = 1000
    """Steps of stage 1; how many the reference took is not known."""
    stage2: int = 5000
    """Steps of stage 2, as the reference."""
    stage3: int = 1000
    """Steps of stage 3; how many the reference took is not known."""
    causal_dmd: int = 20_000
    """Steps of causal DMD, as the reference."""
    text: int = 1024
    """Tokens of a prompt."""

    def __post_init__(self):
        """Check ranges."""
        for name in ("chips", "batch", "pairs", "stage1", "stage2", "stage3", "causal_dmd", "text"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(0 < self.share <= 1, "share", self.share, "must be a share of the peak, in (0, 1]")
        require(self.peak is None or self.peak > 0, "peak", self.peak, "must be positive")
        require(self.price >= 0, "price", self.price, "must not be negative")


def clip_flops(model: ModelConfig, sampler: SamplerConfig, per_frame: int, text: int) -> dict[str, float]:
    """FLOPs for one row: of a trajectory, and of a mean step of each stage.

    Where there is a critic, a step trains it, and one in `ratio` trains the generator too. Scoring a clip takes the
    teacher's passes and the critic.
    """
    blocks = sampler.layout.blocks(latent_frames(sampler.layout.frames_for(sampler.horizon_seconds)))
    clip = forward_flops(model, whole_clip(blocks, per_frame), text)
    pairs, first, third, causal = (
        recipe.CONFIG for recipe in (make_pairs, stage1_dmd, stage3_self_forcing, causal_dmd)
    )
    simulated = len(first.sigmas) - 1
    scored = {recipe: 1 + len(recipe.dmd.guidance.passes) for recipe in (first, causal)}
    second_f, third_f, critic_f = (
        program_flops(program, model, sampler, per_frame, text)
        for program in (Program.STAGE2, Program.STAGE3, Program.CRITIC)
    )
    return {
        "pairs": pairs.steps * len(pairs.guidance.passes) * clip,
        "stage1": clip * (simulated + 1 + TRAINED + (simulated + TRAINED + scored[first]) / first.ratio),
        "stage2": second_f,
        "stage3": critic_f + third_f / third.ratio,
        "causal_dmd": clip * (1 + TRAINED + (TRAINED + scored[causal]) / causal.ratio),
    }


def table(arguments: Arguments) -> str:
    """Write the table."""
    preset = LTX2_19B_STREAM
    assert preset.sampler is not None
    per_frame = math.prod(preset.grid(*preset.resolution))
    peak = CHIPS[arguments.chip].flops if arguments.peak is None else 1e12 * arguments.peak
    lines = [HEAD, "|---|---|---|---|---|---|"]
    for name, flops in clip_flops(preset.model, preset.sampler, per_frame, arguments.text).items():
        clips = getattr(arguments, name) * (1 if name == "pairs" else arguments.batch)
        chip_hours = flops * clips / (peak * arguments.share) / 3600
        hours, cost = chip_hours / arguments.chips, chip_hours * arguments.price
        what = name.replace("stage", "stage ").replace("_dmd", " DMD")
        lines.append(f"| {what} | {flops / 1e15:.2f} | {clips:,} | {hours:.1f} | {chip_hours:,.0f} | {cost:,.0f} |")
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    """Print the table; bad input is one line on stderr and exit code 2."""
    with refusing():
        print(table(arguments))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
