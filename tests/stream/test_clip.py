"""Clips from a teacher: their dependence on prompt, seed and place, and their steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stream import PROMPT, teacher

from omniforcing_jax.cli.sample import parse_guidance
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.sample import clip
from omniforcing_jax.sample.clip import ClipText, SamplingStep, clip_noise, sample_clip, sample_planned
from omniforcing_jax.sample.plan import plan_clip
from omniforcing_jax.sample.request import ClipRequest
from omniforcing_jax.schedule import DISTILLED, ancestral_shares
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

REQUEST = ClipRequest(prompts=(PROMPT,), seconds=1, steps=2, guidance=2.0, seed=5)


def test_a_clip_depends_on_its_prompt_its_place_and_the_seed_and_not_on_its_neighbours():
    both = sample_clip(teacher(), [PROMPT, "a green ball"], 1, steps=2, guidance=2.0, seed=5)
    (alone,) = sample_clip(teacher(), [PROMPT], 1, steps=2, guidance=2.0, seed=5)
    assert both[0].video.shape == (25, 64, 96, 3)
    assert both[0].audio.shape == (101 * 240, 2)
    np.testing.assert_allclose(both[0].audio, alone.audio, atol=1e-4)
    assert np.abs(both[0].video.astype(int) - alone.video).max() <= 1
    assert not np.array_equal(both[0].video, both[1].video)


def test_renewed_noise_depends_on_the_place_and_the_seed_and_not_on_neighbours():
    both = sample_clip(teacher(), [PROMPT, "a green ball"], 1, steps=3, guidance=1, seed=5, renewal=0.7)
    (alone,) = sample_clip(teacher(), [PROMPT], 1, steps=3, guidance=1, seed=5, renewal=0.7)
    (euler,) = sample_clip(teacher(), [PROMPT], 1, steps=3, guidance=1, seed=5)
    np.testing.assert_allclose(both[0].audio, alone.audio, atol=1e-4)
    assert np.abs(alone.audio - euler.audio).max() > 1e-3
    with pytest.raises(ValueError, match=r"renewal=-1: must be finite and not negative"):
        ClipRequest(prompts=[PROMPT], seconds=1, renewal=-1)


def test_video_and_audio_of_a_clip_start_from_noise_of_their_own():
    video, audio = clip_noise(jax.random.key(0), config=teacher().config.model, rows=2, tokens=(12, 26))
    assert not np.intersect1d(video, audio).size
    assert not np.intersect1d(video[0], video[1]).size


def test_a_step_replaces_its_share_of_the_noise_that_the_clip_itself_seems_to_have(monkeypatch):
    """Where the clean estimate is half of the noisy clip; shapes are such as no other test has compiled."""
    monkeypatch.setattr(clip, "guided_x0", lambda ask, latents, *rest: jax.tree.map(lambda x: x / 2, latents))
    plan = plan_clip(teacher(), ClipRequest(prompts=(PROMPT,), seconds=1, steps=2))
    rng = np.random.default_rng(0)
    latents, fresh = ([rng.normal(size=(1, tokens, 8)).astype(np.float32) for tokens in (7, 5)] for _ in "lf")
    sigma, after, share = 0.8, 0.3, 0.6
    positions = make_positions(plan.config.model, clip_block(1, 1), (1, 1))
    text = ClipText(prompt=TextContexts(jnp.zeros((1, 2, 24)), jnp.zeros((1, 2, 24)), None), negative=None)
    levels, drawn = jnp.array([sigma, after], jnp.float32), Streams(*map(jnp.asarray, fresh))
    step = SamplingStep(sigmas=levels, fresh=drawn, share=jnp.float32(share))
    noisy = Streams(*map(jnp.asarray, latents))
    made = clip.clip_step(teacher().transformer, noisy, step, text, positions, static=plan.static)
    for found, x, drawn in zip(made, latents, fresh, strict=True):
        clean, own = x / 2, (x - (1 - sigma) * x / 2) / sigma
        noise = np.sqrt(1 - share**2) * own + share * drawn
        np.testing.assert_allclose(found, (1 - after) * clean + after * noise, atol=1e-5)


def test_every_step_has_its_levels_its_share_and_noise_of_its_own(monkeypatch):
    seen = []

    def step(params, latents, step, *rest, static):
        seen.append((step.sigmas, step.share, latents, step.fresh))
        return latents

    monkeypatch.setattr(clip, "clip_step", step)
    request = ClipRequest(prompts=(PROMPT,), seconds=1, seed=5, renewal=1.0, sigmas=(1.0, 0.75, 0.5, 0.0))
    sample_planned(teacher(), plan_clip(teacher(), request))
    np.testing.assert_allclose([pair for pair, *_ in seen], [(1.0, 0.75), (0.75, 0.5), (0.5, 0.0)])
    # DDIM's eta 1: g^2 = 1 - (after / before)^2 with the odds 0.75 / 0.25 = 3 and 0.5 / 0.5 = 1 of noise to signal
    np.testing.assert_allclose([share for _, share, *_ in seen], [1.0, np.sqrt(1 - (1 / 3) ** 2), 0.0], atol=1e-6)
    drawn = [seen[0][2], *(fresh for *_, fresh in seen)]
    for one, other in itertools.combinations(drawn, 2):
        assert not any(np.intersect1d(a, b).size for a, b in zip(one, other, strict=True))


def test_the_recipe_of_ltx_2_5_has_ancestral_shares():
    request = ClipRequest(prompts=(PROMPT,), seconds=1, ancestral=1, sigmas=DISTILLED)
    np.testing.assert_array_equal(plan_clip(teacher(), request).shares, ancestral_shares(DISTILLED, 1))
    assert ClipRequest(prompts=(PROMPT,), seconds=1, sigmas=DISTILLED).shares is None


def test_every_step_is_reported():
    steps = []
    sample_planned(teacher(), plan_clip(teacher(), REQUEST), steps.append)
    assert steps == [1, 2]


def test_clips_may_begin_from_latents_at_any_level():
    plan = plan_clip(teacher(), REQUEST)

    def noise(key=5):
        return clip_noise(jax.random.key(key), config=plan.config.model, rows=1, tokens=plan.tokens)

    (plain,) = sample_planned(teacher(), plan)
    (same,) = sample_planned(teacher(), plan, start=noise())
    np.testing.assert_array_equal(same.video, plain.video)
    np.testing.assert_array_equal(same.audio, plain.audio)
    (other,) = sample_planned(teacher(), plan, start=noise(6))
    (below,) = sample_planned(teacher(), plan._replace(sigmas=plan.sigmas[1:]), start=noise())
    for made in (other, below):
        assert not np.array_equal(made.audio, plain.audio)
    with pytest.raises(ValueError, match=r"start: audio=\(1, 26, 4\)"):
        sample_planned(teacher(), plan, start=noise()._replace(audio=noise().audio[..., :4]))


def test_guidance_is_read_for_both_streams_or_for_one():
    assert parse_guidance(["3"]) == GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=3.0))
    assert parse_guidance(["3", "7", "audio.stg=1", "rescale=0.7", "layers=1,2"]) == GuidanceConfig(
        video=StreamGuidance(cfg=3.0, rescale=0.7),
        audio=StreamGuidance(cfg=7.0, stg=1.0, rescale=0.7),
        stg_layers=(1, 2),
    )


@pytest.mark.parametrize("item", ["three", "cgf=3", "both.cfg=3", "layers=a"])
def test_guidance_that_cannot_be_read_is_refused_by_name(item):
    with pytest.raises(ValueError, match=item.partition("=")[0].rpartition(".")[0] or item.partition("=")[0]):
        parse_guidance([item])
