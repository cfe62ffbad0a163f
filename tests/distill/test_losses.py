"""Flow matching and stage 2: what they pull on, and where their levels come from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from omniforcing_jax.config import CrossTimestep, SamplerConfig
from omniforcing_jax.distill import flow, ode
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.layout import PREFIX, PREFIX2, block_of_frames
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.model.transformer import Prediction, text_kv
from omniforcing_jax.model.view import Sigmas
from omniforcing_jax.nn.attention import NO_PAST
from omniforcing_jax.pipeline.presets import TINY
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

STUDENT = dataclasses.replace(TINY, sinks=2)
GRID = (2, 2)
BLOCKS = PREFIX.blocks(7)
BATCH = 2


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = tiny.random_params(STUDENT, 0)
    context = draw(BATCH, 5, TINY.caption_channels)
    trajectory = ode.Trajectory(
        video=draw(3, BATCH, 7 * 4, 8), audio=draw(3, BATCH, 51, 8), sigmas=jnp.array([1.0, 0.6, 0.0])
    )
    return params, context, trajectory


def loss_of(params, features, trajectory, key, empty=None, **values):
    network = clip_network(STUDENT, make_positions(STUDENT, clip_block(7, 51), GRID))
    text = ode.Prompts(text_kv(params, features, features), None if empty is None else text_kv(params, empty, empty))
    return ode.ode_loss(params, trajectory, text, key, BLOCKS, network, ode.OdeConfig(**values))


@pytest.mark.parametrize("mode", list(ode.Context))
def test_every_weight_gets_a_gradient_in_stage_2(scene, mode):
    params, context, trajectory = scene
    loss = jax.grad(lambda p: loss_of(p, context, trajectory, jax.random.key(1), context=mode)[0])
    gradient = jax.jit(loss, compiler_options={"xla_backend_optimization_level": 0})(params)
    silent = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(gradient) if not jnp.any(g)]
    assert silent == []


def newer(**values):
    """An LTX-2.3 student on a clip of three blocks; each sees itself, and block 0, which is pinned."""
    model = dataclasses.replace(tiny.MODERN, cross_timestep=CrossTimestep.CROSS)
    sampler = SamplerConfig(
        sigmas=(1.0, 0.6, 0.0), horizon_seconds=2, layout=PREFIX2, window=1, scalar_sigma=0.9, **values
    )
    return clip_network(model, make_positions(model, clip_block(7, 52), GRID), student=sampler)


@pytest.mark.parametrize("build", ["masked", "on_context"])
def test_a_masked_clip_is_seen_as_its_student_streams_it(build):
    levels = jnp.asarray([[1.0, 0.6, 0.3]])
    video, audio = block_of_frames(PREFIX2.blocks(7))
    view = getattr(newer(), build)(Sigmas(levels[:, video], levels[:, audio]), PREFIX2.blocks(7))
    for times, of in zip(view.times, (video, audio), strict=True):
        np.testing.assert_array_equal(times.main, levels[:, of])
        np.testing.assert_array_equal([times.cross, times.gate], np.full((2, 1, 1), 0.9, np.float32))
    last = view.sites.a2v.mask.bands[-1]
    assert (last.fresh, last.past) == {
        "masked": (((0, 2), (27, 52)), ()),
        "on_context": (((27, 52),), ((0, 2),)),
    }[build]


def test_the_text_of_a_masked_clip_is_at_the_level_that_is_held():
    network, rng = newer(), np.random.default_rng(0)
    params = tiny.random_params(network.model)
    contexts = TextContexts(*(jnp.asarray(rng.normal(size=(1, 2, w)), jnp.float32) for w in (64, 32)), None)
    expected = text_kv(params, *contexts, sigma=jnp.full(1, 0.9))
    jax.tree.map(np.testing.assert_array_equal, network.masked_text(params, contexts), expected)
    for student in (None, dataclasses.replace(network.student, scalar_sigma=None)):
        with pytest.raises(ValueError, match="text_adaln=True: a masked clip has several noise levels"):
            dataclasses.replace(network, student=student).masked_text(params, contexts)


def test_a_clean_context_never_draws_the_clean_entry_and_a_noisy_one_does():
    drawn = {clean: ode.draw_entries(jax.random.key(0), 50, 20, 3, clean_too=clean) for clean in (False, True)}
    assert set(np.unique(drawn[False])) == {0, 1}
    assert set(np.unique(drawn[True])) == {0, 1, 2}


def test_every_block_of_every_sample_draws_an_entry_of_its_own():
    """Two neighbours of 3000 draw the same of three entries with odds of a third; 6 spreads are 0.07."""
    drawn = np.asarray(ode.draw_entries(jax.random.key(0), 1500, 3, 3, clean_too=True))
    assert np.mean(drawn[:, 1:] == drawn[:, :-1]) == pytest.approx(1 / 3, abs=0.07)
    assert np.mean(drawn[1:] == drawn[:-1]) == pytest.approx(1 / 3, abs=0.07)


def test_a_share_of_samples_has_one_conditioning_stream_and_never_both():
    picture, sound = ode.draw_conditioned(jax.random.key(0), 4000, 0.3)
    assert not jnp.any(picture & sound)
    assert jnp.mean(picture) == pytest.approx(0.15, abs=0.03)
    assert jnp.mean(sound) == pytest.approx(0.15, abs=0.03)


def test_a_conditioning_stream_is_not_regressed_on(scene):
    params, context, trajectory = scene
    one = ode.Trajectory(video=trajectory.video[:, :1], audio=trajectory.audio[:, :1], sigmas=trajectory.sigmas)

    def losses(key, share):
        return loss_of(params, context[:1], one, key, context=ode.Context.CLEAN, conditioned=share)[1]

    losses = jax.jit(losses, static_argnames="share")
    conditioned = [losses(jax.random.key(i), share=1.0) for i in range(8)]
    assert all((parts["video"] == 0) != (parts["audio"] == 0) for parts in conditioned)
    assert {bool(parts["video"] == 0) for parts in conditioned} == {True, False}
    assert all(loss > 0 for loss in losses(jax.random.key(0), share=0.0).values())


def test_what_comes_before_a_change_is_context_only(scene):
    params, context, trajectory = scene
    none, last = jnp.zeros(BATCH, int), jnp.full(BATCH, len(BLOCKS) - 1)
    draws = (jax.random.split(jax.random.key(i), 3)[0] for i in range(100))
    entries = [ode.draw_entries(key, BATCH, len(BLOCKS), 3, clean_too=True) for key in draws]
    seed = next(i for i, drawn in enumerate(entries) if not jnp.any(drawn == 2))  # no target serves as context

    @jax.jit
    def losses(since, trajectory):
        return loss_of(params, context, trajectory.replace(since=since), jax.random.key(seed))[1]

    early = trajectory.video.at[-1, :, : 4 * 4].add(1.0)
    other = trajectory.replace(video=early)
    assert losses(none, trajectory) == losses(None, trajectory)
    assert all(loss == 0 for loss in losses(last + 1, trajectory).values())
    assert losses(none, trajectory)["video"] != losses(none, other)["video"]
    assert losses(last, trajectory)["video"] == losses(last, other)["video"]


@pytest.fixture
def asked(scene, monkeypatch):
    """Stage 2 with a network whose velocity is half of what it sees: its loss, and what the network was asked.

    Of each forward: both streams as they came in, and the noise levels that go with their tokens, sinks left out.
    """
    params, context, trajectory = scene
    questions = []

    def answer(params, config, noisy, view, text, **options):
        video, audio = noisy

        def of_tokens(times, count):
            return np.repeat(times.main, count // times.main.shape[1], axis=1)

        levels_a = of_tokens(view.times.audio, STUDENT.sinks + audio.shape[1])[:, STUDENT.sinks :]
        questions.append(((video, of_tokens(view.times.video, video.shape[1])), (audio, levels_a)))
        return Prediction(Streams(video / 2, audio / 2), fresh=NO_PAST)

    monkeypatch.setattr(ode.transformer, "predict", answer)

    def run(mode, **options):
        loss, parts = loss_of(params, context, trajectory, jax.random.key(4), context=mode, **options)
        return float(loss), parts, questions

    return run


@pytest.mark.parametrize("mode", list(ode.Context))
def test_every_block_starts_from_one_entry_and_is_told_the_level_of_that_entry(scene, asked, mode):
    _, _, trajectory = scene
    question, counts = asked(mode)[2][-1], ([4, 12, 12], [1, 25, 25])
    found = []
    for (tokens, levels), entries, sizes in zip(question, trajectory_streams(trajectory), counts, strict=True):
        same = np.all(np.asarray(tokens)[None] == np.asarray(entries), axis=-1)  # [entry, sample, token]
        assert np.all(same.sum(axis=0) == 1)
        entry = same.argmax(axis=0)
        np.testing.assert_array_equal(levels, np.asarray(trajectory.sigmas)[entry])
        starts = np.cumsum([0, *sizes[:-1]])
        np.testing.assert_array_equal(entry, np.repeat(entry[:, starts], sizes, axis=1))
        found.append(entry[:, starts])
    np.testing.assert_array_equal(*found)  # both streams of a block start from the same entry


def test_a_clean_context_is_the_clip_at_the_context_noise_that_the_network_is_told(scene, asked):
    _, _, trajectory = scene
    first, _ = asked(ode.Context.CLEAN, context_noise=0.25)[2]
    noises = []
    for (tokens, levels), entries in zip(first, trajectory_streams(trajectory), strict=True):
        np.testing.assert_array_equal(levels, 0.25)
        noises.append((np.asarray(tokens, np.float64) - 0.75 * np.asarray(entries[-1])) / 0.25)
        assert np.std(noises[-1]) == pytest.approx(1, abs=0.15)  # 448 unit normals or more: 4 spreads
    assert np.isin(*(np.round(noise, 4) for noise in noises)).mean() < 0.1  # each stream has noise of its own


def test_the_loss_of_stage_2_is_the_mean_over_noisy_tokens_and_weighs_the_audio(scene, asked):
    _, _, trajectory = scene
    loss, parts, questions = asked(ode.Context.NOISY, audio_weight=0.2)
    expected = []
    for (tokens, levels), entries in zip(questions[-1], trajectory_streams(trajectory), strict=True):
        x0 = np.asarray(tokens, np.float64) * (1 - np.asarray(levels)[..., None] / 2)
        expected.append(((x0 - np.asarray(entries[-1])) ** 2)[np.asarray(levels) > 0].mean())
    assert [float(parts[name]) for name in ("video", "audio")] == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx(expected[0] + 0.2 * expected[1], rel=1e-5)


def trajectory_streams(trajectory):
    return trajectory.video, trajectory.audio


def test_a_token_takes_the_entry_that_was_drawn_for_it():
    entries = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 1, 4, 2))
    picked = ode.pick(entries, jnp.array([[0, 2, 1, 2]]))
    np.testing.assert_array_equal(picked[0, :, 0], [0, 2, 1, 2])


def test_audio_takes_the_level_of_its_block_and_not_of_its_proportion():
    _, audio = block_of_frames(BLOCKS)
    assert audio[:1].tolist() == [0]
    assert audio[1:26].tolist() == [1] * 25
    assert audio[26:].tolist() == [2] * 25


def test_a_mean_counts_noisy_tokens_only():
    error = jnp.array([[[2.0], [4.0], [9.0]]])
    assert ode.masked_mean(error, jnp.array([[1.0, 1.0, 0.0]])) == 3
    assert ode.masked_mean(error, jnp.zeros((1, 3))) == 0


def test_velocity_error_is_x0_error_over_sigma_squared():
    rng = np.random.default_rng(1)
    velocity, noisy, target = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(3))
    sigma = jnp.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])
    of_x0, of_velocity = (float(ode.stream_loss(velocity, noisy, target, sigma, error)) for error in ode.Error)
    assert of_velocity == pytest.approx(4 * of_x0, rel=1e-6)
    true = (noisy - target) / 0.5
    assert float(ode.stream_loss(true, noisy, target, sigma, ode.Error.VELOCITY)) < 1e-12


def test_guidance_is_at_rest_where_a_sampler_with_that_scale_would_be():
    rng = np.random.default_rng(2)
    unguided, empty = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(2))
    learned = empty + 3.0 * (unguided - empty)
    np.testing.assert_allclose(unguided + ode.guidance_push(3.0, learned, empty), learned, atol=1e-6)
    assert not jnp.any(jax.grad(lambda x: ode.guidance_push(3.0, x, empty).sum())(learned))


@pytest.mark.parametrize("mode", list(ode.Context))
def test_guidance_moves_what_the_prompt_changes_and_nothing_else(scene, mode):
    params, context, trajectory = scene

    def loss(empty, guidance):
        key = jax.random.key(1)
        return float(loss_of(params, context, trajectory, key, empty, context=mode, guidance=guidance)[0])

    plain = loss(None, 1.0)
    assert loss(context, 3.0) == pytest.approx(plain, rel=1e-6)
    assert loss(-context, 3.0) != pytest.approx(plain, rel=1e-3)


def test_flow_loss_is_zero_for_the_true_velocity_only():
    clip = Streams(jnp.zeros((4, 6, 8)), jnp.zeros((4, 5, 8)))

    def true_velocity(noisy, sigma):
        return jax.tree.map(lambda x: x / sigma[:, None, None], noisy)

    def none(noisy, sigma):
        return jax.tree.map(jnp.zeros_like, noisy)

    right, _ = flow.flow_loss(true_velocity, clip, jax.random.key(0))
    wrong, parts = flow.flow_loss(none, clip, jax.random.key(0))
    assert right < 1e-9
    assert parts["video"] == pytest.approx(1.0, abs=0.35)  # 192 unit normals: the odds of missing are below 1e-3
    assert wrong == pytest.approx(parts["video"] + parts["audio"])
    weighted, same = flow.flow_loss(none, clip, jax.random.key(0), weights=(0.5, 3.0))
    assert weighted == pytest.approx(0.5 * parts["video"] + 3.0 * parts["audio"])
    assert same == parts


def test_video_and_audio_are_noised_by_noise_of_their_own():
    seen = []

    def predict(noisy, sigma):
        seen.extend(x / sigma[:, None, None] for x in noisy)
        return noisy

    flow.flow_loss(predict, Streams(jnp.zeros((4, 6, 8)), jnp.zeros((4, 5, 8))), jax.random.key(0))
    video, audio = (np.round(np.asarray(x), 4) for x in seen)
    assert np.isin(video, audio).mean() < 0.1  # by chance one of 200 rounded normals is among 160 others


def test_noise_levels_lie_between_zero_and_one_and_favour_noise():
    sigma = flow.draw_sigma(jax.random.key(0), 4000)
    assert 0 < sigma.min() < 0.05
    assert 0.95 < sigma.max() < 1
    assert 0.6 < jnp.median(sigma) < 0.75


def test_noise_levels_of_one_batch_are_spread_over_the_distribution():
    sigma = flow.draw_sigma(jax.random.key(0), 8, uniform=0.0)
    share = jax.scipy.stats.norm.cdf((jax.scipy.special.logit(sigma) - 0.8) / 1.2)
    np.testing.assert_array_equal(np.floor(8 * share), np.arange(8))
