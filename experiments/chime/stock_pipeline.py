"""Chime's teacher, exported, played by diffusers' own LTX-2 pipeline: the export proven with trained weights.

Loop, guidance, scheduler and transformer are diffusers'. The transformer reads the files that `converters export`
wrote. Text contexts are passed in, as a pipeline without Gemma needs them. Chime's codecs are smaller than diffusers'
classes can be, so our own replace them. Noise and noise levels are those of our own clip, so the clips should be
equal. Both are written as MP4 and judged as `evaluate --file` judges.

Hardware: two CPU cores, a minute per prompt.
Expect: equal figures, and hardly a pixel that differs by more than rounding.

    python -m experiments.chime.stock_pipeline --prompts 8 --json out/stock_pipeline.json
"""

import dataclasses
import tempfile
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from converters import export
from experiments.chime.judge import sources
from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.film import read_film
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline import text_source
from omniforcing_jax.pipeline.pipeline import Codecs, Pipeline
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.sample import clip
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.mp4 import Mp4Writer
from omniforcing_jax.streams import Streams

OTHER_GUIDANCE_OFF = {
    **dict.fromkeys(("stg_scale", "audio_stg_scale", "guidance_rescale", "audio_guidance_rescale"), 0.0),
    **dict.fromkeys(("modality_scale", "audio_modality_scale"), 1.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(sources.SampleFlags):
    """Let diffusers play the exported teacher, and compare with our own clips."""

    weights: Path = CHIME_WEIGHTS / "teacher"
    """Weights folder of the teacher."""
    prompts: str = "8"
    """Text file with one prompt per line, or how many to draw."""
    folder: Path = Path("out/stock_pipeline")
    """Folder for the clips."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""


class Substitute(torch.nn.Module):
    """What stands in a place of the pipeline: it has no weights there, but says where they would be."""

    device, dtype = torch.device("cpu"), torch.float32


class PassContexts(Substitute):
    """In the place of the connectors: contexts were made already, the same for both streams."""

    def forward(
        self, contexts: torch.Tensor, mask: torch.Tensor, padding_side: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return contexts [B, X, C] of picture and sound, and their mask [B, X]."""
        return contexts, contexts, mask


class OurVideo(Substitute):
    """In the place of the video VAE: hands latents [B, C, F, h, w] on; its latents are of unit scale."""

    def __init__(self, codecs: Codecs) -> None:
        super().__init__()
        channels = codecs.video_config.latent_channels
        self.spatial_compression_ratio = codecs.video_config.spatial_compression
        self.temporal_compression_ratio = 8
        self.config = types.SimpleNamespace(scaling_factor=1.0)
        self.latents_mean, self.latents_std = torch.zeros(channels), torch.ones(channels)


class OurSound(Substitute):
    """In the place of the audio VAE: hands latents [B, C, A, M] on; its latents are of unit scale."""

    def __init__(self, codecs: Codecs) -> None:
        super().__init__()
        channels, bins = codecs.audio_config.z_channels, codecs.audio_config.mel_bins
        self.mel_compression_ratio = self.temporal_compression_ratio = 4
        self.config = types.SimpleNamespace(
            sample_rate=16000, mel_hop_length=160, mel_bins=bins, latent_channels=channels
        )
        width = channels * bins // self.mel_compression_ratio
        self.latents_mean, self.latents_std = torch.zeros(width), torch.ones(width)


def open_stock(folder: Path, codecs: Codecs) -> Any:
    """Open an exported transformer in diffusers' pipeline, our codecs and contexts in the other places.

    Raises:
        ValueError: If diffusers misses weights or finds more than it knows.
    """
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2.pipeline_ltx2 import LTX2Pipeline
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    load: Any = LTX2VideoTransformer3DModel.from_pretrained
    transformer, report = load(folder, subfolder="transformer", low_cpu_mem_usage=False, output_loading_info=True)
    wrong = {name: keys for name, keys in report.items() if keys}
    if wrong:
        raise ValueError(f"{folder}: diffusers finds missing or unknown keys: {wrong}")
    places: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "transformer": transformer.eval(),
        "connectors": PassContexts(),
        "vae": OurVideo(codecs),
        "audio_vae": OurSound(codecs),
    }
    pipeline = LTX2Pipeline(**places, text_encoder=None, tokenizer=None, vocoder=None)  # pyright: ignore[reportArgumentType]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def play_stock(folder: Path, pipeline: Pipeline, plan: clip.ClipPlan, noise: Streams) -> list[Chunk]:
    """Make a plan's clips by diffusers from the same noise, without renewal, and decode them by our codecs."""
    batch, (rows, columns) = len(plan.prompts), plan.grid
    prompt, empty = (text_source.encode_text(pipeline, texts, None) for texts in (plan.prompts, [""] * batch))
    # [B, T, C] -> [B, C, F, h, w], and [B, A, c m] -> [B, c, A, m]
    video = np.asarray(noise[0]).reshape(batch, plan.frames, rows, columns, -1).transpose(0, 4, 1, 2, 3)
    audio = (
        np.asarray(noise[1])
        .reshape(batch, plan.tokens[1], pipeline.codecs.audio_config.z_channels, -1)
        .transpose(0, 2, 1, 3)
    )
    stock = open_stock(folder, pipeline.codecs)
    height, width = (side * pipeline.codecs.video_config.spatial_compression for side in plan.grid)
    played = stock(
        height=height,
        width=width,
        num_frames=1 + 8 * (plan.frames - 1),
        frame_rate=float(FRAME_RATE),
        sigmas=list(plan.sigmas[:-1]),
        num_inference_steps=len(plan.sigmas) - 1,
        guidance_scale=plan.static.guidance.video.cfg,
        audio_guidance_scale=plan.static.guidance.audio.cfg,
        **OTHER_GUIDANCE_OFF,
        latents=_torch(video),
        audio_latents=_torch(audio),
        prompt_embeds=_torch(prompt.video),
        prompt_attention_mask=_torch(prompt.mask),
        negative_prompt_embeds=_torch(empty.video),
        negative_prompt_attention_mask=_torch(empty.mask),
        output_type="latent",
    )
    tokens = played.frames.numpy().transpose(0, 2, 3, 4, 1).reshape(noise[0].shape)
    sound = played.audio.numpy().transpose(0, 2, 1, 3).reshape(noise[1].shape)
    return clip.decode_clips(pipeline, plan, Streams(jnp.asarray(tokens), jnp.asarray(sound)))


def _torch(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def judge_files(chunks: list[Chunk], prompts: tuple[str, ...], folder: Path, name: str) -> dict[str, Any]:
    """Write each clip as MP4 and judge the files as `evaluate --file` does."""
    judged = []
    for chunk, prompt in zip(chunks, prompts, strict=True):
        path = folder / f"{name}_{chunk.index}.mp4"
        height, width = chunk.video.shape[1:3]
        with Mp4Writer(
            path, height=height, width=width, frame_rate=FRAME_RATE, sample_rate=chunk.sample_rate
        ) as writer:
            writer.write(chunk)
        judged.append(metrics.perceive(read_film(path), sources.read_request(prompt)))
    return metrics.judge_clips(judged)


def compare(stock: list[Chunk], own: list[Chunk]) -> dict[str, float]:
    """Say how far clips differ: pixels in levels of 256, sound against its own largest sample."""
    levels = [np.abs(a.video.astype(int) - b.video.astype(int)) for a, b in zip(stock, own, strict=True)]
    sound = [np.abs(a.audio - b.audio).max() / np.abs(b.audio).max() for a, b in zip(stock, own, strict=True)]
    return {
        "largest_pixel_difference": float(max(level.max() for level in levels)),
        "pixels_off_by_more_than_one": float(np.mean(np.stack(levels) > 1)),
        "largest_sound_difference": float(max(sound)),
    }


def run(arguments: Arguments) -> dict[str, Any]:
    """Export, play both ways, judge both."""
    prompts = sources.read_prompts(arguments.prompts, arguments.seed)
    request = sources.clip_request(prompts, arguments)
    plan = clip.plan_clip(arguments.weights, request)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pipeline = sources.load(arguments.weights)
    noise = clip.clip_noise(
        jax.random.key(arguments.seed), config=plan.config.model, rows=len(prompts), tokens=plan.tokens
    )
    with tempfile.TemporaryDirectory() as exported:
        export.run(export.prepare(arguments.weights, "diffusers", Path(exported), components=["transformer"]))
        stock = play_stock(Path(exported), pipeline, plan, noise)
    own = clip.sample_planned(pipeline, plan)
    figures = {
        name: judge_files(chunks, plan.prompts, arguments.folder, name)
        for name, chunks in (("stock", stock), ("own", own))
    }
    return {**figures, "difference": compare(stock, own)}


def main(arguments: Arguments) -> None:
    """Print and keep the figures; bad input is one line on stderr and exit code 2."""
    with refusing(arguments.json):
        figures = run(arguments)
        for name in ("stock", "own"):
            print(name, ", ".join(f"{key} {value}" for key, value in figures[name].items() if key != "drift"))
        print(", ".join(f"{key} {value:.3g}" for key, value in figures["difference"].items()))
        keep_figures(arguments.json, figures)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
