"""Clips in two stages: the borders between them are diffusers' pieces, the rest is our own sampler; refusals."""

import atexit
import dataclasses
import shutil
import tempfile
import types
from functools import cache
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conversion import to_source
from diffusers import LTX2LatentUpsamplePipeline, LTX2Pipeline
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from lora_files import write_lora
from random_weights import fill
from refusal import refusal
from tiny_stream import PROMPT, folders, teacher

from converters.component import DIFFUSERS
from converters.formats.upsampler import COMPONENTS
from omniforcing_jax.cli.main import main
from omniforcing_jax.codecs.upsampler_config import Resampling, UpsamplerConfig
from omniforcing_jax.pipeline.pipeline import Pipeline, abstract_pipeline
from omniforcing_jax.pipeline.presets import TINY_CLIP
from omniforcing_jax.pipeline.weights_folder import load_pipeline, save_pipeline
from omniforcing_jax.sample import two_stage
from omniforcing_jax.sample.clip import sample_latents
from omniforcing_jax.sample.keyframes import Keyframe, Reference, encode_guides
from omniforcing_jax.sample.request import ClipRequest
from omniforcing_jax.sample.two_stage import begin_second, plan_two_stage, refine, sample_two_stage
from omniforcing_jax.schedule import DISTILLED
from omniforcing_jax.streams import Streams

UPSAMPLER = UpsamplerConfig(latent_channels=8, width=32, layers=1, resampling=Resampling.SPACE)
CONFIG = dataclasses.replace(TINY_CLIP, name="tiny-upsampling", upsampler=UPSAMPLER)
OPTIONS = {"seconds": 1, "steps": 1, "guidance": 1.0, "seed": 3, "height": 64, "width": 64}
REQUEST = ClipRequest(prompts=(PROMPT,), **OPTIONS)


@cache
def pipeline() -> Pipeline:
    return fill(abstract_pipeline(CONFIG), seed=1)


@cache
def folder() -> Path:
    """A weights folder with an upsampler."""
    root = Path(tempfile.mkdtemp(prefix="tiny_upsampling"))
    atexit.register(shutil.rmtree, root)
    save_pipeline(root / "weights", pipeline())
    return root / "weights"


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class Vae(torch.nn.Module):
    """In the place of diffusers' video VAE: its statistics, which are ours, and its sizes."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        stats = pipeline().codecs.video["stats"]
        self.latents_mean, self.latents_std = (torch.tensor(np.asarray(stats[f"latents_{n}"])) for n in ("mean", "std"))
        self.config = types.SimpleNamespace(scaling_factor=1.0)
        self.spatial_compression_ratio, self.temporal_compression_ratio = 32, 8


@cache
def stock():
    """diffusers' pipeline of the upsampler, with our weights."""
    component = COMPONENTS[0]
    model = LTX2LatentUpsamplerModel.from_config(component.namings[DIFFUSERS].table.write(UPSAMPLER))
    weights = to_source(component, DIFFUSERS, UPSAMPLER, pipeline().codecs.upsampler)
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()}, strict=True)
    return LTX2LatentUpsamplePipeline(vae=Vae(), latent_upsampler=model)


def to_torch(tokens, grid):
    """[B, T, C] to [B, C, F, h, w]."""
    return torch.tensor(np.moveaxis(np.asarray(tokens).reshape(1, -1, *grid, tokens.shape[-1]), -1, 1))


def to_tokens(latents):
    return np.moveaxis(latents.numpy(), 1, -1).reshape(1, -1, latents.shape[1])


@pytest.mark.parametrize("sigma", [0.0, DISTILLED[-4]])
def test_between_the_stages_latents_are_upsampled_and_renoised_as_diffusers_does(sigma):
    low = Streams(draw(1, 1, 4 * 2, 8), draw(2, 1, 26, 8))
    generator = torch.Generator().manual_seed(0)
    vae = stock().vae
    raw = stock()(
        latents=to_torch(low.video, (1, 2)), latents_normalized=True, height=32, width=64, num_frames=25,
        output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    clean = LTX2Pipeline._normalize_latents(raw, vae.latents_mean, vae.latents_std)
    theirs = LTX2Pipeline._create_noised_state(clean, sigma, generator)
    sound = LTX2Pipeline._create_noised_state(torch.tensor(np.asarray(low.audio)), sigma, generator)
    generator.manual_seed(0)
    noise = Streams(
        jnp.asarray(to_tokens(torch.randn(clean.shape, generator=generator))),
        jnp.asarray(torch.randn((1, 26, 8), generator=generator).numpy()),
    )
    ours = begin_second(pipeline().codecs, low, noise, jnp.float32(sigma), grid=(1, 2), dtype=jnp.dtype(jnp.float32))
    np.testing.assert_allclose(ours.video, to_tokens(theirs), rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.audio, sound, rtol=0, atol=1e-6)
    assert ours.video.shape == (1, 4 * 8, 8)


@pytest.fixture
def decoded(monkeypatch):
    """What would be decoded; the decoding is that of clips in one stage."""
    made = []
    monkeypatch.setattr(two_stage, "decode_clips", lambda pipeline, plan, latents: made.append(latents) or [])
    return made


def test_the_second_stage_is_our_own_sampler_from_there(monkeypatch, decoded):
    begun, steps = [], []

    def record(*arguments, **options):
        begun.append((arguments[1], begin_second(*arguments, **options)))
        return jax.tree.map(jnp.copy, begun[-1][1])

    monkeypatch.setattr(two_stage, "begin_second", record)
    plan = plan_two_stage(pipeline(), REQUEST)
    assert (plan.low.grid, plan.high.grid, plan.steps) == ((1, 1), (2, 2), 4)
    assert plan.high.sigmas == (0.909375, 0.725, 0.421875, 0.0)
    low = sample_latents(pipeline(), plan.low)
    made = refine(pipeline(), plan, low, steps.append)
    ((given, start),) = begun
    assert given is low
    assert steps == [2, 3, 4]
    jax.tree.map(np.testing.assert_array_equal, made, sample_latents(pipeline(), plan.high, start=start))
    sample_two_stage(pipeline(), (PROMPT,), **OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, decoded[0], made)


def test_a_second_network_refines_the_picture_and_the_sound_is_the_first_stage_s(decoded):
    plan = plan_two_stage(pipeline(), REQUEST, folders() / "teacher")
    low = sample_latents(pipeline(), plan.low)
    sample_two_stage(pipeline(), (PROMPT,), folders() / "teacher", **OPTIONS)
    (clip,) = decoded
    np.testing.assert_array_equal(clip.audio, low.audio)
    other = dataclasses.replace(pipeline(), transformer=teacher().transformer)
    np.testing.assert_array_equal(clip.video, refine(other, plan, low).video)
    own = refine(pipeline(), plan._replace(second=None), low)
    assert not np.array_equal(clip.video, own.video)
    assert not np.array_equal(clip.audio, own.audio)


def given(size=64):
    return Keyframe(picture=np.full((1, size, size, 3), 90, np.uint8))


def test_both_stages_have_the_keyframes_at_their_own_size_and_the_first_alone_the_references(tmp_path):
    lora = write_lora(tmp_path / "lora.safetensors", CONFIG.model, seed=1)
    reference = Reference(picture=np.zeros((9, 32, 32, 3), np.uint8))
    asked = dataclasses.replace(REQUEST, keyframes=(given(),), loras=((lora, 0.5),))
    plan = plan_two_stage(pipeline(), asked)  # a keyframe of the final size needs no fit
    assert [(each.guides[0].grid, each.grid) for each in (plan.low, plan.high)] == [((1, 1), (1, 1)), ((2, 2), (2, 2))]
    assert plan.low.loras.strengths == plan.high.loras.strengths == (0.5,)
    assert plan_two_stage(pipeline(), asked, folders() / "teacher").high.loras.strengths == (0.5,)
    read = plan_two_stage(pipeline(), dataclasses.replace(asked, references=(reference,)))
    assert (len(read.low.guides), len(read.high.guides)) == (2, 1)
    assert (read.low.loras.strengths, read.high.loras.strengths) == ((0.5,), ())
    with pytest.raises(ValueError, match="32x32"):
        plan_two_stage(pipeline(), dataclasses.replace(asked, keyframes=(given(32),)))


def test_a_negative_prompt_is_the_first_stages():
    plan = plan_two_stage(pipeline(), dataclasses.replace(REQUEST, guidance=2.0, negative_prompt="a blue ball"))
    assert (plan.low.negative_prompts, plan.high.negative_prompts) == (("a blue ball",), ("",))
    assert (plan.low.needs_negative, plan.high.needs_negative) == (True, False)


def test_what_both_stages_need_is_counted(monkeypatch, tmp_path):
    counted = []
    monkeypatch.setattr("omniforcing_jax.pipeline.budget.check_memory", lambda *rest: counted.append(rest[-1]))
    lora = write_lora(tmp_path / "lora.safetensors", CONFIG.model, seed=1)
    asked = dataclasses.replace(REQUEST, loras=((lora, 0.5),))
    late = dataclasses.replace(given(), second=0.5)
    for request, second in ((asked, None), (dataclasses.replace(asked, keyframes=(late,)), folders() / "teacher")):
        plan_two_stage(pipeline(), request, second)
    (_, plain, _, given_more) = counted
    assert plain.keys() == {"attention", "LoRAs", "upsampler"}
    assert given_more.keys() == {*plain, "second network"}
    assert given_more["attention"] > plain["attention"]


def test_a_keyframe_is_held_in_the_final_clip():
    asked = dataclasses.replace(REQUEST, keyframes=(given(),))
    plan = plan_two_stage(pipeline(), asked)
    found = refine(pipeline(), plan, sample_latents(pipeline(), plan.low))
    guide = encode_guides(pipeline(), plan.high.guides, plan.high.tokens[0], jnp.float32)
    tokens = plan.high.grid[0] * plan.high.grid[1]
    np.testing.assert_allclose(found.video[:, :tokens], guide.clean[:, :tokens], atol=1e-5)


def test_the_weights_are_loaded_with_their_upsampler_only_if_it_is_asked_for():
    plain, whole = load_pipeline(folder()), load_pipeline(folder(), upsampler=True)
    assert plain.codecs.upsampler is None
    jax.tree.map(np.testing.assert_array_equal, whole.codecs.upsampler, pipeline().codecs.upsampler)
    with pytest.raises(ValueError, match="was loaded without its upsampler"):
        plan_two_stage(plain, REQUEST)


def sample(tmp_path, *more, weights=None):
    weights = folder() if weights is None else weights
    sizes = ("--height", "64", "--width", "64", "--steps", "1", "--guidance", "1", "--seconds", "1")
    return ["sample", "--weights", weights, "--prompt", PROMPT, *sizes, "--out", tmp_path / "clip.mp4", *more]


def test_the_command_writes_a_clip_of_the_final_size(tmp_path, capsys):
    arguments = sample(tmp_path, "--two-stage", "--second-weights", folders() / "teacher")
    assert main([str(argument) for argument in arguments]) == 0
    assert "25 frames" in capsys.readouterr().out
    with av.open(tmp_path / "clip.mp4") as file:
        assert (file.streams.video[0].height, file.streams.video[0].width) == (64, 64)


@pytest.mark.parametrize(
    ("more", "weights", "named"),
    [
        (["--two-stage"], "teacher", "has no spatial_upsampler; convert its file, such as"),
        (["--two-stage", "--height", "96"], None, "height=96: must be a positive multiple of 64 pixels in two stages"),
        (["--two-stage", "--width", "32768"], None, "width=32768: must be at most 16384 pixels"),
        (["--second-weights", "x"], None, "second-weights=PosixPath('x'): needs --two-stage"),
        (["--fit", "crop"], None, "fit='crop': needs --keyframe or --reference"),
        (["--compress", "33", "--reference", "a.mp4"], None, "compress=33: needs --keyframe"),
        (["--two-stage", "--second-weights", "missing"], None, "missing: no such weights folder"),
        (["--two-stage", "--second-weights", "student"], None, "is a causal student"),
    ],
)
def test_what_cannot_be_made_in_two_stages_is_refused(tmp_path, capsys, no_work, more, weights, named):
    more = [folders() / "student" if each == "student" else each for each in more]
    weights = None if weights is None else folders() / weights
    assert named in refusal(capsys, sample(tmp_path, *more, weights=weights))
    assert not (tmp_path / "clip.mp4").exists()


def test_a_second_network_of_another_kind_is_refused(tmp_path):
    other = dataclasses.replace(TINY_CLIP, model=dataclasses.replace(TINY_CLIP.model, layers=1))
    save_pipeline(tmp_path / "other", fill(abstract_pipeline(other)))
    with pytest.raises(ValueError, match=r"other: transformer.layers=1: 'tiny-upsampling' has 2"):
        plan_two_stage(pipeline(), REQUEST, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"latent_channels": 16}, "spatial_upsampler=16: video_vae.latent_channels has 8"),
        ({"resampling": Resampling.ALL}, "spatial_upsampler.resampling='all': must leave time as it is"),
    ],
)
def test_an_upsampler_that_does_not_fit_the_codec_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(TINY_CLIP, upsampler=dataclasses.replace(UPSAMPLER, **change))


def test_by_default_a_clip_is_as_many_times_larger_as_the_upsampler_says():
    plan = plan_two_stage(pipeline(), dataclasses.replace(REQUEST, height=None, width=None))
    assert plan.low.grid == (2, 3)
    assert plan.high.grid == (4, 6)
