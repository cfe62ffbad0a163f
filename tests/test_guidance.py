"""Guidance: the formula of ltx-core, passes in one batch, both meanings of STG, the Euler trajectory."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams

from omniforcing_jax.guidance import (
    LTX2_GUIDANCE,
    GuidanceConfig,
    Pass,
    Stg,
    StreamGuidance,
    combine_passes,
    euler_trajectory,
    guided_x0,
    perturbation_of_passes,
    predict_passes,
)
from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.streams import Streams

pytestmark = pytest.mark.usefixtures("strict")
LAYERS = 3
STRONG = StreamGuidance(cfg=3.0, stg=1.5, modality=2.0, rescale=0.7)
BOTH = GuidanceConfig(video=STRONG, audio=STRONG, stg_layers=(1,))
SIGMA = jnp.float32(0.6)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


LATENTS = Streams(draw(2, 3, 4), draw(2, 5, 2, seed=1))
PROMPT, NEGATIVE = {"context": draw(2, 4, seed=2)}, {"context": draw(2, 4, seed=3)}


class Network:
    """A stand-in that shows in its output everything that it was given, and remembers its batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, latents, sigma, context, perturbation):
        self.batches.append(latents[0].shape[0])
        ones = jnp.ones((LAYERS, len(sigma)), jnp.float32)

        def weigh(which):
            mask = getattr(perturbation, which)
            return (jnp.arange(1.0, LAYERS + 1)[:, None] * (ones if mask is None else mask)).sum(0)

        seen = 2 * weigh("video_mix") + 3 * weigh("video_self") + 5 * weigh("a2v") + context["context"].sum(1) + sigma
        return Streams(latents[0] * seen[:, None, None], latents[1] - seen[:, None, None])


def combine(passes, strengths, over_batch):
    return np.asarray(combine_passes(passes, strengths, over_batch))


def draw_passes():
    return {which: draw(2, 6, 3, seed=i) for i, which in enumerate(Pass)}


def test_without_strengths_there_is_one_pass_and_nothing_is_left_out():
    network = Network()
    plain = GuidanceConfig()
    assert plain.passes == (Pass.PROMPT,)
    guided = guided_x0(network, LATENTS, SIGMA, PROMPT, None, plain, LAYERS)
    expected = Network()(LATENTS, jnp.full(2, SIGMA), PROMPT, Perturbation())
    assert network.batches == [2]
    for value, other in zip(guided, expected, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_passes_combine_as_in_ltx_core(rescale):
    passes = draw_passes()
    params = MultiModalGuiderParams(cfg_scale=3.0, stg_scale=1.5, rescale_scale=rescale, modality_scale=2.0)
    theirs = MultiModalGuider(params).calculate(*(torch.from_numpy(np.array(value)) for value in passes.values()))
    strengths = StreamGuidance(cfg=3.0, stg=1.5, modality=2.0, rescale=rescale)
    np.testing.assert_allclose(combine(passes, strengths, over_batch=True), theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_a_share_of_guidance_is_a_share_of_every_push_sample_by_sample():
    shares = jnp.asarray([0.25, 1.0], jnp.float32)
    config = GuidanceConfig(video=STRONG, audio=StreamGuidance(cfg=5.0), stg_layers=(1,))
    found = guided_x0(Network(), LATENTS, SIGMA, PROMPT, NEGATIVE, config, LAYERS, shares)
    for share, sample in ((0.25, 0), (1.0, 1)):
        video = StreamGuidance(cfg=1 + 2 * share, stg=1.5 * share, modality=1 + share, rescale=STRONG.rescale)
        weaker = GuidanceConfig(video=video, audio=StreamGuidance(cfg=1 + 4 * share), stg_layers=(1,))
        expected = guided_x0(Network(), LATENTS, SIGMA, PROMPT, NEGATIVE, weaker, LAYERS)
        for value, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(value[sample], other[sample], rtol=1e-5, atol=1e-5)


def test_a_sample_is_rescaled_without_regard_to_its_neighbours():
    passes = draw_passes()
    alone = {which: value[:1] for which, value in passes.items()}
    np.testing.assert_allclose(combine(passes, STRONG, False)[:1], combine(alone, STRONG, False), rtol=1e-6)
    assert np.abs(combine(passes, STRONG, True)[:1] - combine(alone, STRONG, True)).max() > 1e-3


def test_full_rescale_keeps_the_spread_of_every_plain_sample():
    passes = draw_passes()
    full = StreamGuidance(cfg=4.0, rescale=1.0)
    np.testing.assert_allclose(
        combine(passes, full, False).std(axis=(1, 2)), np.asarray(passes[Pass.PROMPT]).std(axis=(1, 2)), rtol=1e-5
    )


def test_all_passes_go_through_the_network_as_one_batch():
    network = Network()
    passes = predict_passes(network, LATENTS, SIGMA, PROMPT, NEGATIVE, BOTH, LAYERS)
    assert network.batches == [8]
    assert tuple(passes) == tuple(Pass)


def test_a_negative_prompt_of_another_length_goes_alone_and_changes_nothing_else():
    network, longer = Network(), {"context": jnp.concatenate([NEGATIVE["context"], jnp.zeros((2, 3))], axis=1)}
    together = predict_passes(Network(), LATENTS, SIGMA, PROMPT, NEGATIVE, BOTH, LAYERS)
    apart = predict_passes(network, LATENTS, SIGMA, PROMPT, longer, BOTH, LAYERS)
    assert sorted(network.batches) == [2, 6]
    for which, streams in together.items():
        for value, other in zip(streams, apart[which], strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-6)


def test_only_the_passes_that_a_strength_needs_are_made():
    config = GuidanceConfig(video=StreamGuidance(cfg=2.0), audio=StreamGuidance(modality=2.0))
    assert config.passes == (Pass.PROMPT, Pass.NEGATIVE, Pass.ISOLATED)


@pytest.mark.parametrize(
    ("stg", "fields"), [(Stg.VALUES, ("video_mix", "audio_mix")), (Stg.DROP, ("video_self", "audio_self"))]
)
def test_the_perturbed_pass_leaves_out_the_chosen_layers_in_the_chosen_way(stg, fields):
    config = GuidanceConfig(video=STRONG, audio=STRONG, stg_layers=(0, 2), stg=stg)
    perturbation = perturbation_of_passes((Pass.PROMPT, Pass.PERTURBED), config, LAYERS, batch=2)
    expected = np.ones((LAYERS, 4))
    expected[[0, 2], 2:] = 0
    for field in ("video_mix", "audio_mix", "video_self", "audio_self", "a2v", "v2a"):
        if field in fields:
            np.testing.assert_array_equal(getattr(perturbation, field), expected)
        else:
            assert getattr(perturbation, field) is None


def test_the_isolated_pass_cuts_both_crossings_in_all_layers():
    perturbation = perturbation_of_passes((Pass.ISOLATED, Pass.PROMPT), BOTH, LAYERS, batch=1)
    for mask in (perturbation.a2v, perturbation.v2a):
        np.testing.assert_array_equal(mask, [[0, 1]] * LAYERS)
    assert perturbation.video_mix is None


def test_streams_have_their_own_strengths():
    config = GuidanceConfig(video=StreamGuidance(cfg=1.0), audio=StreamGuidance(cfg=5.0))
    video, _ = guided_x0(Network(), LATENTS, SIGMA, PROMPT, NEGATIVE, config, LAYERS)
    plain, _ = guided_x0(Network(), LATENTS, SIGMA, PROMPT, None, GuidanceConfig(), LAYERS)
    np.testing.assert_allclose(video, plain, rtol=1e-6)


def test_each_stream_is_pushed_by_its_own_strength():
    config = GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=5.0))
    found = guided_x0(Network(), LATENTS, SIGMA, PROMPT, NEGATIVE, config, LAYERS)
    kept = (2 + 3 + 5) * sum(range(1, LAYERS + 1))  # what the stand-in adds where nothing is left out
    with_text, without = (kept + np.asarray(text["context"]).sum(1) + 0.6 for text in (PROMPT, NEGATIVE))
    video, audio = ((without + strength * (with_text - without))[:, None, None] for strength in (3, 5))
    np.testing.assert_allclose(found[0], np.asarray(LATENTS[0]) * video, rtol=1e-5)
    np.testing.assert_allclose(found[1], np.asarray(LATENTS[1]) - audio, rtol=1e-5)


def test_every_pass_asks_about_a_sample_at_that_samples_own_level():
    levels = jnp.asarray([0.2, 0.9], jnp.float32)
    passes = predict_passes(Network(), LATENTS, levels, PROMPT, NEGATIVE, BOTH, LAYERS)
    for i in range(2):
        one = slice(i, i + 1)
        latents = Streams(LATENTS.video[one], LATENTS.audio[one])
        prompt, negative = ({"context": text["context"][one]} for text in (PROMPT, NEGATIVE))
        alone = predict_passes(Network(), latents, levels[i], prompt, negative, BOTH, LAYERS)
        for which, streams in passes.items():
            for value, own in zip(streams, alone[which], strict=True):
                np.testing.assert_allclose(value[one], own, rtol=1e-6, err_msg=f"{which} of sample {i}")


def test_cfg_without_a_negative_prompt_is_refused():
    with pytest.raises(ValueError, match=r"cfg=3\.0, 3\.0: needs a negative prompt"):
        guided_x0(Network(), LATENTS, SIGMA, PROMPT, None, BOTH, LAYERS)


def test_a_layer_that_the_network_lacks_is_refused():
    with pytest.raises(ValueError, match=r"stg_layers=\(29,\): must be below 3"):
        guided_x0(Network(), LATENTS, SIGMA, PROMPT, NEGATIVE, LTX2_GUIDANCE, LAYERS)


def test_stg_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"stg_layers=\(\): must not be empty with stg on"):
        GuidanceConfig(video=STRONG)


def test_a_config_survives_json():
    assert GuidanceConfig.from_json(LTX2_GUIDANCE.to_json()) == LTX2_GUIDANCE


def test_a_trajectory_towards_a_fixed_clip_is_the_straight_line():
    clean, sigmas = Streams(LATENTS[0] + 1, LATENTS[1] * 2), jnp.asarray([1.0, 0.75, 0.2, 0.0], jnp.float32)
    path = euler_trajectory(lambda latents, sigma: clean, LATENTS, sigmas)
    for entries, x0, noise in zip(path, clean, LATENTS, strict=True):
        level = np.asarray(sigmas).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(entries, (1 - level) * np.asarray(x0) + level * np.asarray(noise), atol=1e-6)
        np.testing.assert_array_equal(entries[-1], x0)


def test_a_trajectory_asks_for_every_sigma_but_the_last():
    sigmas = jnp.asarray([1.0, 0.5, 0.25, 0.0], jnp.float32)
    video, _ = euler_trajectory(lambda x, sigma: Streams(x.video * 0 + sigma, x.audio), LATENTS, sigmas)
    # x0 = sigma: x_1 = .5 x + .5 * 1, x_2 = .5 x_1 + .5 * .5, x_3 = .25
    np.testing.assert_allclose(video[1], 0.5 * np.asarray(LATENTS[0]) + 0.5, atol=1e-6)
    np.testing.assert_allclose(video[2], 0.25 * np.asarray(LATENTS[0]) + 0.5, atol=1e-6)
    np.testing.assert_allclose(video[3], np.full_like(LATENTS[0], 0.25), atol=1e-6)
