"""Guided sampling with negative prompts, keyframes and references against live pipelines of diffusers, and ltx-core.

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
)
from diffusers.pipelines.ltx2 import pipeline_ltx2_condition, pipeline_ltx2_ic_lora
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.conditioning import VideoConditionByLatentIndex, VideoConditionByReferenceLatent
from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import X0Model
from ltx_core.tools import VideoLatentTools
from ltx_core.types import AudioLatentShape, VideoLatentShape

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
LTX_2 = dataclasses.replace(
    TINY, rotary=RotaryConfig(kind=RotaryKind.SPLIT, theta=THETA), cross_timestep=CrossTimestep.CROSS
)
LTX_2_3 = dataclasses.replace(LTX_2, caption_channels=None, gated_attention=True, text_adaln=True)
GENERATIONS = pytest.mark.parametrize(
    "config", [pytest.param(LTX_2, id="2.0", marks=pytest.mark.long), pytest.param(LTX_2_3, id="2.3")]
)


def core_state(sigma):
    """The state of ltx-core with a picture that replaces latents and a reference, both of less strength."""
    shape = VideoLatentShape(1, 8, FRAMES, ROWS, COLUMNS)
    tools = VideoLatentTools(VideoLatentPatchifier(1), shape, fps=24.0)
    state = tools.create_initial_state("cpu", torch.float32)
    for kind, frames, rows, columns, options in (
        (VideoConditionByLatentIndex, 1, ROWS, COLUMNS, {"strength": 0.7, "latent_idx": 0}),
        (VideoConditionByReferenceLatent, 1, ROWS // 2, COLUMNS // 2, {"strength": 0.4, "downscale_factor": 2}),
    ):
        latent = torch.from_numpy(encode(frames, rows, columns)).reshape(1, 1, rows, columns, 8).permute(0, 4, 1, 2, 3)
        state = kind(latent=latent, **options).apply_to(state, tools)
    level = state.denoise_mask * sigma
    noise = torch.from_numpy(NOISE[state.latent.shape[1]])
    return dataclasses.replace(state, latent=noise * level + state.clean_latent * (1 - level))


@torch.no_grad()
def core_estimate(config, sigma):
    """The guided clean estimate of ltx-core: four passes, its guider, its mixture with what is given."""
    state, network, levels = core_state(sigma), X0Model(networks(config)[2]), torch.full((1,), sigma)
    audio_places = AudioPatchifier(1).get_patch_grid_bounds(AudioLatentShape(1, 8, AUDIO, 16)).float()

    def ask(prompt, *perturbations):
        context, texts = torch.from_numpy(text(config, prompt)), {"sigma": levels, "context_mask": None}
        own = (state.denoise_mask * sigma, state.positions)
        video = Modality(state.latent, timesteps=own[0], positions=own[1], context=context, **texts)
        all_audio = (levels[:, None, None].expand(1, AUDIO, 1), audio_places)
        noisy = torch.from_numpy(NOISE_A)
        audio = Modality(
            noisy, timesteps=all_audio[0], positions=all_audio[1], context=audio_text(config, context), **texts
        )
        return network(video, audio, BatchedPerturbationConfig([PerturbationConfig(list(perturbations))]))

    kinds = PerturbationType
    stg = [Perturbation(kind, [1]) for kind in (kinds.SKIP_VIDEO_SELF_ATTN, kinds.SKIP_AUDIO_SELF_ATTN)]
    cut = [Perturbation(kind, None) for kind in (kinds.SKIP_A2V_CROSS_ATTN, kinds.SKIP_V2A_CROSS_ATTN)]
    passes = [ask("prompt"), ask("negative"), ask("prompt", *stg), ask("prompt", *cut)]
    guided = []
    for stream, cfg in enumerate((3.0, 7.0)):
        params = MultiModalGuiderParams(cfg_scale=cfg, stg_scale=1.0, rescale_scale=RESCALE, modality_scale=3.0)
        guided.append(MultiModalGuider(params).calculate(*(each[stream] for each in passes)))
    mask = state.denoise_mask
    return state, [(guided[0] * mask + state.clean_latent * (1 - mask)).numpy(), guided[1].numpy()]


@functools.cache
def networks(config):
    """Diffusers' network, our parameters, and ltx-core's network."""
    newer = config.text_adaln
    core = peers.build_core(newer, "split", theta=THETA)
    theirs = peers.build_diffusers(core, newer, "split", rope_theta=THETA, perturbed_attn=True)
    tensors = {PREFIX + name: value for name, value in peers.get_weights(core).items()}
    return theirs, jax.tree.map(jnp.asarray, to_native(COMPONENT, LTX2, config, tensors)), core


def draw(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NOISE = {FRAMES * ROWS * COLUMNS + n: draw(1, FRAMES * ROWS * COLUMNS + n, 8, seed=n) for n in (0, 2, 8, 16)}
NOISE_A = draw(1, AUDIO, 8, seed=77)


def text(config, name):
    """Contexts of a prompt for video; the audio's are made of them."""
    return draw(1, peers.WORDS, config.caption_channels or config.video.width, seed=80 + len(name))


def audio_text(config, context):
    return context[..., : config.caption_channels or config.audio.width] * 0.5


class Connectors(torch.nn.Module):
    """Stands for the text connectors: contexts of both streams from what it is given."""

    device = torch.device("cpu")

    def __init__(self, config):
        super().__init__()
        self.network = config

    def forward(self, embeds, mask, padding_side):
        return embeds, audio_text(self.network, embeds), mask


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


def run_theirs(monkeypatch, config, kind, **options):
    """Run a pipeline of diffusers; returns its latents, and what the network saw at its first call."""

    def noise(shape, **_):
        return torch.from_numpy(NOISE_A if shape[1] == AUDIO else NOISE[shape[1]])

    for module in (pipeline_ltx2_condition, pipeline_ltx2_ic_lora):
        monkeypatch.setattr(module, "randn_tensor", noise)
    network, seen = networks(config)[0], []
    handle = network.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs), with_kwargs=True)
    parts = {
        "vae": PictureEncoder(),
        "audio_vae": audio_codec(),
        "connectors": Connectors(config),
        "transformer": network,
    }
    parts |= dict.fromkeys(("text_encoder", "tokenizer", "vocoder"))
    pipeline = kind(scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    mask = torch.ones(1, peers.WORDS, dtype=torch.int64)
    video, audio = pipeline(
        prompt_embeds=torch.from_numpy(text(config, "prompt")),
        negative_prompt_embeds=torch.from_numpy(text(config, "negative")),
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


def guide_of(config, plans):
    """Lay out the stand-in's latents of what is given."""
    given = [place_given(config, each, jnp.asarray(encode(each.frames, *each.grid))) for each in plans]
    return make_guide(given, FRAMES * ROWS * COLUMNS) if plans else None


def guidance(rescale):
    strong = StreamGuidance(cfg=3.0, stg=1.0, modality=3.0, rescale=rescale)
    return GuidanceConfig(video=strong, audio=dataclasses.replace(strong, cfg=7.0), stg_layers=(1,))


def begin(guide, sigma=1.0):
    tokens = FRAMES * ROWS * COLUMNS if guide is None else guide.clean.shape[1]
    noise = Streams(jnp.array(NOISE[tokens]), jnp.array(NOISE_A))
    return noise if guide is None else begin_guided(guide, noise, None, sigma)


def run_ours(config, guide, levels=(*SIGMAS, 0.0), rescale=0.0):
    positions = make_positions(config, clip_block(FRAMES, AUDIO), (ROWS, COLUMNS))
    prompts = [text(config, name) for name in ("prompt", "negative")]
    contexts = [TextContexts(jnp.asarray(x), jnp.asarray(audio_text(config, x)), None) for x in prompts]
    static, latents = ClipStaticConfig(config, guidance(rescale), jnp.dtype("float32")), begin(guide, levels[0])
    for sigmas in itertools.pairwise(levels):
        step = SamplingStep(sigmas=jnp.array(sigmas, jnp.float32), fresh=None, share=jnp.float32(0))
        latents = clip_step(networks(config)[1], latents, step, ClipText(*contexts), positions, guide, static=static)
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


@pytest.mark.long
def test_a_negative_prompt_pushes_as_in_diffusers(monkeypatch):
    config = LTX_2_3
    theirs, _ = run_theirs(monkeypatch, config, LTX2ConditionPipeline)
    assert_same_clip(run_ours(config, None, rescale=RESCALE), theirs)


@GENERATIONS
def test_a_first_picture_and_a_later_clip_are_given_as_in_diffusers(monkeypatch, config):
    theirs, seen = run_theirs(monkeypatch, config, LTX2ConditionPipeline, conditions=[condition(1, 0), condition(9, 1)])
    plans = plan([Keyframe(picture=picture()), Keyframe(picture=picture(9), second=1 / 24)])
    guide = guide_of(config, plans)
    assert_same_inputs(guide, plans, seen)
    ours = run_ours(config, guide)
    assert_same_clip(ours, theirs)
    np.testing.assert_allclose(ours.video[:, : ROWS * COLUMNS], encode(1, ROWS, COLUMNS), atol=1e-6)


def test_a_picture_of_less_strength_has_the_noise_and_the_second_that_diffusers_gives_it(monkeypatch):
    config = LTX_2_3
    monkeypatch.setattr("test_guided_sampling.SIGMAS", (1.0,))
    _, seen = run_theirs(
        monkeypatch, config, LTX2ConditionPipeline, conditions=[condition(9, 0, 0.7), condition(1, 2, 0.4)]
    )
    plans = plan([Keyframe(picture=picture(9), strength=0.7), Keyframe(picture=picture(), second=9 / 24, strength=0.4)])
    with pytest.raises(ValueError, match=r"contradicts"):
        plan([Keyframe(picture=picture(17)), Keyframe(picture=picture(), second=9 / 24)])
    assert_same_inputs(guide_of(config, plans), plans, seen)


@pytest.mark.long
def test_a_reference_of_half_the_size_is_read_as_in_diffusers(monkeypatch):
    config = LTX_2_3
    theirs, seen = run_theirs(
        monkeypatch,
        config,
        LTX2InContextPipeline,
        conditions=[condition(1, 0)],
        reference_conditions=[LTX2ReferenceCondition(frames=picture(1, 2)[0])],
        reference_downscale_factor=2,
    )
    plans = plan([Keyframe(picture=picture())], [Reference(picture=picture(1, 2))], scale=2)
    guide = guide_of(config, plans)
    assert_same_inputs(guide, plans, seen)
    assert_same_clip(run_ours(config, guide), theirs)


@pytest.mark.long
def test_tokens_of_less_strength_are_estimated_and_rescaled_as_in_ltx_core():
    config = LTX_2_3
    state, theirs = core_estimate(config, 0.6)
    plans = plan([Keyframe(picture=picture(), strength=0.7)], [Reference(picture=picture(1, 2), strength=0.4)], scale=2)
    guide = guide_of(config, plans)
    np.testing.assert_allclose(begin(guide, 0.6).video, state.latent, atol=1e-6)
    ours = run_ours(config, guide, (0.6, 0.0), rescale=RESCALE)
    assert_same_clip(ours, [theirs[0][:, : FRAMES * ROWS * COLUMNS], theirs[1]])
