"""Clips from a teacher: their dependence on prompt, seed and place, and their steps."""

import jax
import numpy as np
import pytest
from tiny_stream import PROMPT, teacher

from omniforcing_jax.cli.sample import parse_guidance
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.sample.clip import clip_noise, sample_clip, sample_planned
from omniforcing_jax.sample.plan import plan_clip
from omniforcing_jax.sample.request import ClipRequest

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
    with pytest.raises(ValueError, match=r"renewal=-1: must not be negative"):
        ClipRequest(prompts=[PROMPT], seconds=1, renewal=-1)


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
    for clip in (other, below):
        assert not np.array_equal(clip.audio, plain.audio)
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
