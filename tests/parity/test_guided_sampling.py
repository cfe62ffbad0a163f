"""Guided sampling with negative prompts, keyframes and references against live pipelines of diffusers.

The pipelines run whole at tiny size, with loops of their own. Only text and pictures are given as latents. Rotary
frequencies are lower than those of the published networks: float32 tables are then exact enough to compare clips.

With given frames nothing is rescaled here: diffusers' estimate of a given token has the noise level of all others, and
counts in the spread. Ours has its own level, as in ltx-core.
"""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ltx2_peers as peers
import numpy as np
import pytest
import torch
from conversion import to_native
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2ConditionPipeline,
    LTX2InContextPipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import pipeline_ltx2_condition, pipeline_ltx2_ic_lora
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

from converters.component import LTX2
from converters.formats.transformer import COMPONENT, PREFIX
from omniforcing_jax.config import CrossTimestep, RotaryConfig, RotaryKind
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.pipeline.presets import TINY, TINY_CLIP
from omniforcing_jax.sample.clip import ClipText, SamplingStep, clip_step
from omniforcing_jax.sample.guide import begin_guided, cut_appended, make_guide, video_levels
from omniforcing_jax.sample.keyframes import FACTOR, Keyframe, Reference, place_given, plan_guides
from omniforcing_jax.sample.plan import ClipStaticConfig
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

THETA, SIGMAS, AUDIO = 30.0, (1.0, 0.7, 0.4), 18
FRAMES, ROWS, COLUMNS = peers.GRID
PIXELS, HEIGHT, WIDTH = 1 + 8 * (FRAMES - 1), 32 * ROWS, 32 * COLUMNS
RESCALE = 0.7
CONFIG = dataclasses.replace(
    TINY, rotary=RotaryConfig(kind=RotaryKind.SPLIT, theta=THETA), cross_timestep=CrossTimestep.CROSS
)


@functools.cache
def networks():
    """Diffusers' network, and our parameters."""
    core = peers.build_core(newer=False, rotary="split")
    options = {
        "caption_channels": peers.CAPTION,
        "rope_theta": THETA,
        "rope_double_precision": True,
        "perturbed_attn": True,
    }
    theirs = LTX2VideoTransformer3DModel(**peers.SIZES, rope_type="split", **options).eval()
    theirs.load_state_dict({peers._rename(name): value for name, value in core.state_dict().items()})
    tensors = {PREFIX + name: value for name, value in peers.get_weights(core).items()}
    return theirs, jax.tree.map(jnp.asarray, to_native(COMPONENT, LTX2, CONFIG, tensors))


def draw(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NOISE = {FRAMES * ROWS * COLUMNS + n: draw(1, FRAMES * ROWS * COLUMNS + n, 8, seed=n) for n in (0, 2, 8, 16)}
NOISE_A = draw(1, AUDIO, 8, seed=77)
TEXT = {name: draw(1, peers.WORDS, peers.CAPTION, seed=80 + i) for i, name in enumerate(("prompt", "negative"))}


class Connectors(torch.nn.Module):
    """Stands for the text connectors: contexts of both streams from what it is given."""

    device = torch.device("cpu")

    def forward(self, embeds, mask, padding_side):
        return embeds, embeds * 0.5, mask


class PictureEncoder(torch.nn.Module):
    """Stands for the video codec: any picture of a length and a size is the same latents."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.spatial_compression_ratio, self.temporal_compression_ratio, self.dtype = 32, 8, torch.float32
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.latents_mean, self.latents_std = torch.zeros(8), torch.ones(8)

    def encode(self, pixels):
        _, _, frames, height, width = pixels.shape
        tokens = torch.from_numpy(encode(frames, height // 32, width // 32))
        shape = (1, 1 + (frames - 1) // 8, height // 32, width // 32, 8)
        return SimpleNamespace(latents=tokens.reshape(shape).permute(0, 4, 1, 2, 3))


def encode(frames, rows, columns):
    return draw(1, (1 + (frames - 1) // 8) * rows * columns, 8, seed=100 + frames + rows)


def audio_codec():
    """Stands for the audio codec: sizes and neutral statistics."""
    codec = torch.nn.Module()
    codec.device = torch.device("cpu")
    codec.config = SimpleNamespace(sample_rate=16000, mel_hop_length=160, mel_bins=16, latent_channels=2)
    codec.mel_compression_ratio = codec.temporal_compression_ratio = 4
    codec.latents_mean, codec.latents_std = torch.zeros(8), torch.ones(8)
    return codec


def run_theirs(monkeypatch, kind, **options):
    """Run a pipeline of diffusers; returns its latents, and what the network saw at its first call."""

    def noise(shape, **_):
        return torch.from_numpy(NOISE_A if shape[1] == AUDIO else NOISE[shape[1]])

    for module in (pipeline_ltx2_condition, pipeline_ltx2_ic_lora):
        monkeypatch.setattr(module, "randn_tensor", noise)
    network, seen = networks()[0], []
    handle = network.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs), with_kwargs=True)
    parts = {"vae": PictureEncoder(), "audio_vae": audio_codec(), "connectors": Connectors(), "transformer": network}
    parts |= dict.fromkeys(("text_encoder", "tokenizer", "vocoder"))
    pipeline = kind(scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    mask = torch.ones(1, peers.WORDS, dtype=torch.int64)
    video, audio = pipeline(
        prompt_embeds=torch.from_numpy(TEXT["prompt"]),
        negative_prompt_embeds=torch.from_numpy(TEXT["negative"]),
        prompt_attention_mask=mask,
        negative_prompt_attention_mask=mask,
        height=HEIGHT,
        width=WIDTH,
        num_frames=PIXELS,
        sigmas=list(SIGMAS),
        guidance_scale=3.0,
        audio_guidance_scale=7.0,
        stg_scale=1.0,
        modality_scale=3.0,
        guidance_rescale=RESCALE if "conditions" not in options else 0.0,
        audio_guidance_rescale=RESCALE if "conditions" not in options else 0.0,
        spatio_temporal_guidance_blocks=[1],
        output_type="latent",
        return_dict=False,
        **options,
    )
    handle.remove()
    tokens = [video.permute(0, 2, 3, 4, 1).reshape(1, -1, 8), audio.permute(0, 2, 1, 3).reshape(1, AUDIO, 8)]
    return [np.asarray(each) for each in tokens], seen[0]


def plan(keyframes=(), references=(), scale=1):
    return plan_guides(TINY_CLIP, (ROWS, COLUMNS), PIXELS, keyframes, references, [{FACTOR: str(scale)}])


def guide_of(plans):
    """Lay out the stand-in's latents of what is given."""
    given = [place_given(CONFIG, each, jnp.asarray(encode(each.frames, *each.grid))) for each in plans]
    return make_guide(given, FRAMES * ROWS * COLUMNS) if plans else None


def guidance(rescale):
    strong = StreamGuidance(cfg=3.0, stg=1.0, modality=3.0, rescale=rescale)
    return GuidanceConfig(video=strong, audio=dataclasses.replace(strong, cfg=7.0), stg_layers=(1,))


def begin(guide):
    tokens = FRAMES * ROWS * COLUMNS if guide is None else guide.clean.shape[1]
    noise = Streams(jnp.array(NOISE[tokens]), jnp.array(NOISE_A))
    return noise if guide is None else begin_guided(guide, noise, None, SIGMAS[0])


def run_ours(guide):
    positions = make_positions(CONFIG, clip_block(FRAMES, AUDIO), (ROWS, COLUMNS))
    contexts = [TextContexts(jnp.asarray(x), jnp.asarray(x * 0.5), None) for x in TEXT.values()]
    strengths = guidance(RESCALE if guide is None else 0.0)
    static, latents = ClipStaticConfig(CONFIG, strengths, jnp.dtype("float32")), begin(guide)
    for sigmas in itertools.pairwise((*SIGMAS, 0.0)):
        step = SamplingStep(sigmas=jnp.array(sigmas, jnp.float32), fresh=None, share=jnp.float32(0))
        latents = clip_step(networks()[1], latents, step, ClipText(*contexts), positions, guide, static=static)
    return cut_appended(latents, FRAMES * ROWS * COLUMNS)


def assert_same_inputs(guide, plans, seen):
    """What the networks see first: latents, a noise level for each token, and where the tokens are."""
    np.testing.assert_allclose(begin(guide).video, seen["hidden_states"][:1], atol=1e-6)
    levels = np.repeat(video_levels(guide, jnp.ones(1)), guide.clean.shape[1] // guide.strength.shape[0], axis=1)
    np.testing.assert_allclose(levels, seen["timestep"][:1] / 1000, atol=1e-6)
    middles = seen["video_coords"][0].mean(-1).numpy()[:, FRAMES * ROWS * COLUMNS :]
    pieces = [np.zeros((3, 0))]
    for each in plans:
        if each.first != 0:
            axes = [each.seconds(), *((np.arange(n) + 0.5) * 32 * each.scale for n in each.grid)]
            pieces.append(np.stack([x.reshape(-1) for x in np.meshgrid(*axes, indexing="ij")]))
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), middles, atol=1e-5)


def assert_same_clip(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert np.abs(other).max() > 0.5


def picture(frames=1, factor=1):
    return np.zeros((frames, HEIGHT // factor, WIDTH // factor, 3), np.uint8)


def condition(frames, index, strength=1.0):
    return LTX2VideoCondition(frames=picture(frames), index=index, strength=strength, crf=0)


def test_a_negative_prompt_pushes_as_in_diffusers(monkeypatch):
    theirs, _ = run_theirs(monkeypatch, LTX2ConditionPipeline)
    assert_same_clip(run_ours(None), theirs)


def test_a_first_picture_and_a_later_clip_are_given_as_in_diffusers(monkeypatch):
    theirs, seen = run_theirs(monkeypatch, LTX2ConditionPipeline, conditions=[condition(1, 0), condition(9, 1)])
    plans = plan([Keyframe(picture=picture()), Keyframe(picture=picture(9), second=1 / 24)])
    guide = guide_of(plans)
    assert_same_inputs(guide, plans, seen)
    ours = run_ours(guide)
    assert_same_clip(ours, theirs)
    np.testing.assert_allclose(ours.video[:, : ROWS * COLUMNS], encode(1, ROWS, COLUMNS), atol=1e-6)


def test_a_picture_of_less_strength_has_the_noise_and_the_second_that_diffusers_gives_it(monkeypatch):
    monkeypatch.setattr("test_guided_sampling.SIGMAS", (1.0,))
    _, seen = run_theirs(monkeypatch, LTX2ConditionPipeline, conditions=[condition(9, 0, 0.7), condition(1, 2, 0.4)])
    plans = plan([Keyframe(picture=picture(9), strength=0.7), Keyframe(picture=picture(), second=9 / 24, strength=0.4)])
    with pytest.raises(ValueError, match=r"contradicts"):
        plan([Keyframe(picture=picture(17)), Keyframe(picture=picture(), second=9 / 24)])
    assert_same_inputs(guide_of(plans), plans, seen)


def test_a_reference_of_half_the_size_is_read_as_in_diffusers(monkeypatch):
    theirs, seen = run_theirs(
        monkeypatch,
        LTX2InContextPipeline,
        conditions=[condition(1, 0)],
        reference_conditions=[LTX2ReferenceCondition(frames=picture(1, 2)[0])],
        reference_downscale_factor=2,
    )
    plans = plan([Keyframe(picture=picture())], [Reference(picture=picture(1, 2))], scale=2)
    guide = guide_of(plans)
    assert_same_inputs(guide, plans, seen)
    assert_same_clip(run_ours(guide), theirs)
