"""What stage 2 learns from: a teacher's trajectories, real clips of one or several buckets, or both in turns."""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from experiments import ltx2_recipe
from experiments.ltx2_flags import ExamplesArguments
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.train import data
from omniforcing_jax.train.clips import Clips, open_clips
from omniforcing_jax.train.compare import differences, refuse
from omniforcing_jax.train.contexts import Contexts, Prompted, WithContexts
from omniforcing_jax.train.loop import Batches
from omniforcing_jax.train.mixture import Mixture


class Sources(NamedTuple):
    """Where batches come from.

    Attributes:
        batches: What is learned from.
        held: What is held out, a source for each shape.
        prompts: Of all examples.
    """

    batches: Batches
    held: list[data.Source]
    prompts: list[str]


def open_sources(
    arguments: ExamplesArguments,
    student: PipelineConfig,
    sampler: SamplerConfig,
    contexts: Contexts,
    mesh: Mesh | None,
) -> Sources:
    """Open all examples, hold some of each shape out, and mix the rest: clips of a bucket by their number.

    Raises:
        ValueError: In one line, if a store does not fit the student, a prompt has no context, or a bucket holds less
            than a batch.
    """
    ltx2_recipe.check_masked(student.model, sampler)
    share, examples, shares = arguments.share_of_clips, list[Prompted](), list[float]()
    if arguments.pairs is not None:
        examples.append(ltx2_recipe.open_pairs(arguments.pairs, student, sampler))
        shares.append(1 - share)
    if arguments.clips is not None:
        buckets = open_buckets(arguments.clips, student, sampler)
        total = sum(map(len, buckets))
        examples += buckets
        shares += [share * len(bucket) / total for bucket in buckets]
    split = [data.hold_out(WithContexts(source, contexts), arguments.held_out) for source in examples]
    for source, (learned, _) in zip(examples, split, strict=True):
        if isinstance(source, Clips) and len(learned) < arguments.batch:
            raise ValueError(
                f"batch={arguments.batch}: {arguments.clips} has {len(learned)} clips of {describe(source)} to learn "
                "from; take a smaller batch, or keep that bucket elsewhere"
            )
    parts = [data.PlacedBatches(learned, arguments.batch, arguments.seed, mesh) for learned, _ in split]
    return Sources(
        batches=parts[0] if len(parts) == 1 else Mixture(parts, shares, arguments.seed),
        held=[held for _, held in split],
        prompts=[prompt for source in examples for prompt in source.prompts],
    )


def open_buckets(folder: Path, student: PipelineConfig, sampler: SamplerConfig) -> list[Clips]:
    """Open the real clips of a folder, bucket by bucket.

    Raises:
        ValueError: If there are none, a store is damaged, or clips have other latents, another layout or more seconds
            than the student's.
    """
    model, found = student.model, open_clips(folder)
    wanted = {"video": model.video.latent_channels, "audio": model.audio.latent_channels}
    longest = sampler.layout.frames_for(sampler.horizon_seconds)
    for size, clips in found.items():
        one, where = clips[0], f"{folder}: {describe(clips)}"
        (frames, rows, columns, video), (latents, audio) = one["clip_video"].shape, one["clip_audio"].shape
        refuse(where, "other latents", differences({"video": video, "audio": audio}, wanted))
        refuse(where, "other latents", differences({"grid": (rows, columns)}, {"grid": student.grid(*size[:2])}))
        if size[2] > longest:
            raise ValueError(f"{where}: longer than --seconds {sampler.horizon_seconds:g}")
        try:
            sampler.layout.check_clip(frames, latents)
        except ValueError as error:
            raise ValueError(f"{where}: clips of another layout: {error}") from None
    return list(found.values())


def describe(clips: Clips) -> str:
    """Name a bucket."""
    height, width, frames = clips.size
    return f"{height}x{width} pixels and {frames} frames"
