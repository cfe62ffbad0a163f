"""Distribution matching against its definition, written out in NumPy sample by sample.

Source: DMD2 (arXiv 2405.14867) with the normaliser of DMD (arXiv 2311.18828), as OmniForcing (arXiv 2603.11647) has
them: one noise level per sample for both streams, a normaliser for each stream.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from omniforcing_jax.distill import dmd
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.flow import noise_like
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

BATCH, FRAMES = 2, 4
BLOCKS = PREFIX.blocks(FRAMES)  # two of them: 1 + 1, then 3 + 25
CONFIG = dmd.DmdConfig(
    guidance=GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=5.0)),
    block_weights=dmd.BlockWeights.LINEAR_RAMP,
    ramp_from=0.5,
    video_weight=0.75,
    audio_weight=0.25,
)
BLOCK_OF = np.repeat([0, 1], [tiny.TOKENS, 3 * tiny.TOKENS]), np.repeat([0, 1], [1, 25])


def draw(seed: int, batch: int = BATCH) -> Streams:
    return Streams(*tiny.random_latents(tiny.TINY, FRAMES, 26, seed, batch))


def scaled(latents: Streams, *factors: float) -> Streams:
    """Multiply each sample by a number of its own."""
    return Streams(*(x * jnp.asarray(factors, jnp.float32)[:, None, None] for x in latents))


def defined_gradient(x0, fake, real, counts=None) -> np.ndarray:
    """(fake - real) / mean |x0 - real| of one stream, one sample at a time."""
    x0, fake, real = (np.asarray(x, np.float64) for x in (x0, fake, real))
    chosen = np.ones(x0.shape[1], bool) if counts is None else np.asarray(counts, bool)
    return np.stack(
        [(f - r) / (np.abs(x[chosen] - r[chosen]).mean() + 1e-8) for x, f, r in zip(x0, fake, real, strict=True)]
    )


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("counted", [False, True])
def test_each_sample_is_divided_by_its_own_mean_distance_to_the_teacher(stream, counted):
    x0, fake, real = (scaled(draw(i), 1.0, 6.0)[stream] for i in (0, 1, 2))
    fake = 0.3 * fake + x0  # the critic is much nearer to the clip than the teacher
    counts = jnp.asarray(np.arange(x0.shape[1]) % 3 == 0, jnp.float32) if counted else None
    found = dmd.kl_gradient(x0, fake, real, counts)
    np.testing.assert_allclose(found, defined_gradient(x0, fake, real, counts), rtol=2e-5, atol=1e-6)


def test_a_clip_that_the_teacher_leaves_as_it_is_gives_finite_numbers():
    x0, fake, _ = (draw(i).audio for i in (0, 1, 2))
    found = dmd.kl_gradient(x0, fake.at[0].set(x0[0]).at[1, 0, 0].set(jnp.nan), x0)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0], 0)


def scheduled(timestep: int) -> float:
    """LTX-2's sigma of a timestep of a thousand: shifted by e^2.05, then stretched so that timestep 1 has 0.1."""
    shifted = [math.exp(2.05) / (math.exp(2.05) + 1000 / t - 1) for t in (timestep, 1)]
    return 1 - 0.9 * (1 - shifted[0]) / (1 - shifted[1])


@pytest.mark.parametrize(
    ("timestep", "scored"), [(0, 20), (19, 20), (20, 20), (21, 21), (500, 500), (979, 979), (981, 980), (999, 980)]
)
def test_the_noise_level_of_a_timestep_is_the_schedules_and_clamped_on_both_sides(timestep, scored):
    found = dmd.scoring_sigma(jnp.asarray([timestep]), dmd.DmdConfig(first=20, last=980))
    np.testing.assert_allclose(found, [scheduled(scored)], rtol=1e-6)


def test_scoring_levels_are_drawn_for_each_sample_from_all_timesteps():
    """Shares of 4000 draws below three timesteps: the odds of missing one by 6 spreads are 2e-9."""
    levels = np.asarray(dmd.draw_scoring_sigma(jax.random.key(0), 4000, config=dmd.DmdConfig()))
    assert levels.min() == np.float32(scheduled(20))
    assert levels.max() == np.float32(scheduled(980))
    for timestep in (100, 500, 900):
        share = timestep / 1000
        spread = math.sqrt(share * (1 - share) / 4000)
        assert np.mean(levels < scheduled(timestep)) == pytest.approx(share, abs=6 * spread)


def defined_loss(x0, target, config) -> float:
    """Half the weighted mean squared distance: the mean over samples, tokens and channels, summed over the streams."""
    ramp = np.array([config.ramp_from, 1.0])
    strengths = (config.video_weight, config.audio_weight)
    losses = [
        0.5 * strength * np.mean(ramp[blocks][None, :, None] * (np.asarray(x, np.float64) - t) ** 2)
        for strength, blocks, x, t in zip(strengths, BLOCK_OF, x0, target, strict=True)
    ]
    return float(sum(losses))


def test_the_cotangent_of_a_clip_is_the_slope_of_the_loss():
    """Central differences of the definition in float64, at some places of both samples and both streams."""
    x0, gradient = draw(0), scaled(draw(1), 1.0, 3.0)
    found = dmd.clip_cotangent(gradient, BLOCKS, CONFIG)
    target = [np.asarray(x, np.float64) - np.asarray(g) for x, g in zip(x0, gradient, strict=True)]
    rng, step = np.random.default_rng(0), 1e-3
    for stream, (x, slope) in enumerate(zip(x0, found, strict=True)):
        for sample in range(BATCH):
            for spot in [(sample, 0, 0), *((sample, *rng.integers(x.shape[1:])) for _ in range(4))]:
                values = []
                for side in (step, -step):
                    moved = [np.asarray(y, np.float64).copy() for y in x0]
                    moved[stream][spot] += side
                    values.append(defined_loss(moved, target, CONFIG))
                assert slope[spot] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_the_generators_loss_is_its_definition_and_holds_its_target_fixed():
    x0, gradient = draw(0), scaled(draw(1), 1.0, 3.0)
    (loss, parts), slope = jax.value_and_grad(dmd.generator_loss, has_aux=True)(x0, gradient, BLOCKS, CONFIG)
    target = [np.asarray(x, np.float64) - np.asarray(g) for x, g in zip(x0, gradient, strict=True)]
    assert float(loss) == pytest.approx(defined_loss(x0, target, CONFIG), rel=1e-5)
    one = dataclasses.replace(CONFIG, video_weight=1.0, audio_weight=0.0)
    assert float(parts["dmd_video"]) == pytest.approx(defined_loss(x0, target, one), rel=1e-5)
    for found, g, blocks, strength in zip(slope, gradient, BLOCK_OF, (0.75, 0.25), strict=True):
        ramp = np.array([0.5, 1.0])[blocks][None, :, None]
        np.testing.assert_allclose(found, strength * ramp * np.asarray(g) / g.size, rtol=1e-3, atol=1e-8)


class Scene:
    """A scorer whose networks are replaced by formulas that show what they were asked."""

    def __init__(self, monkeypatch, config=CONFIG):
        teacher, critic = (tiny.random_params(tiny.TINY, seed) for seed in (1, 2))
        rng = np.random.default_rng(7)
        self.prompt, self.negative = (
            TextContexts(*(jnp.asarray(rng.normal(size=(BATCH, 4, 24)), jnp.float32) for _ in "va"), None) for _ in "pn"
        )
        positions = make_positions(tiny.TINY, clip_block(FRAMES, 26), tiny.GRID)
        self.scorer = dmd.Scorer(teacher=teacher, critic=critic, network=clip_network(tiny.TINY, positions))
        self.asked = []
        monkeypatch.setattr("omniforcing_jax.distill.clip_network.predict_x0", self.ask)
        self.clip = scaled(draw(0), 1.0, 4.0)
        self.gradient, self.metrics = dmd.dmd_gradient(
            self.clip, self.scorer, self.prompt, self.negative, jax.random.key(3), config
        )

    def ask(self, params, model, noisy, sigma, contexts, *rest, **options):
        self.asked.append((params.video.head.b, noisy, sigma))
        return answer(params, noisy, contexts)

    def seen(self, params) -> tuple[list[np.ndarray], np.ndarray]:
        """The noisy clip and the levels that a network was asked about first."""
        noisy, sigma = next(rest for name, *rest in self.asked if np.array_equal(name, params.video.head.b))
        return [np.asarray(x[:BATCH]) for x in noisy], np.asarray(sigma[:BATCH])


def answer(params, noisy, contexts):
    """A clean estimate that depends on the network, on the noisy clip and on the text."""
    own = params.video.head.b[0], params.audio.head.b[0]
    said = contexts.video.mean(axis=(1, 2)), contexts.audio.mean(axis=(1, 2))
    estimates = ((1 + strength) * x + word[:, None, None] for strength, x, word in zip(own, noisy, said, strict=True))
    return Streams(*estimates)


@pytest.fixture
def scene(monkeypatch):
    return Scene(monkeypatch)


def test_teacher_and_critic_are_asked_about_one_noisy_clip_at_one_level_per_sample(scene):
    (of_teacher, levels), (of_critic, own) = scene.seen(scene.scorer.teacher), scene.seen(scene.scorer.critic)
    np.testing.assert_array_equal(levels, own)
    assert levels[0] != levels[1]
    for one, other, clean in zip(of_teacher, of_critic, scene.clip, strict=True):
        np.testing.assert_array_equal(one, other)
        level = levels[:, None, None]
        noise = (one - (1 - level) * np.asarray(clean)) / level
        assert np.std(noise, axis=(1, 2)) == pytest.approx([1, 1], abs=0.3)  # 192 unit normals or more: 6 spreads
        assert abs(np.mean(noise[0] * noise[1])) < 0.45  # samples have noise of their own


def test_the_score_is_the_critics_estimate_minus_the_guided_teachers_over_the_distance_to_the_teacher(scene):
    noisy, _ = scene.seen(scene.scorer.critic)
    prompted, unprompted = (answer(scene.scorer.teacher, noisy, text) for text in (scene.prompt, scene.negative))
    fake = answer(scene.scorer.critic, noisy, scene.prompt)
    for i, strength in enumerate((3.0, 5.0)):
        real = np.asarray(unprompted[i]) + strength * (np.asarray(prompted[i]) - np.asarray(unprompted[i]))
        expected = defined_gradient(scene.clip[i], fake[i], real)
        np.testing.assert_allclose(scene.gradient[i], expected, rtol=1e-4, atol=1e-5)


def test_each_clip_has_its_own_share_of_the_guidance_in_both_streams(monkeypatch):
    scene = Scene(monkeypatch, dataclasses.replace(CONFIG, guidance_from=0.25))
    noisy, _ = scene.seen(scene.scorer.critic)
    prompted, unprompted = (answer(scene.scorer.teacher, noisy, text) for text in (scene.prompt, scene.negative))
    fake = answer(scene.scorer.critic, noisy, scene.prompt)
    tried, shares = np.linspace(0.25, 1, 3001), []
    for i, strength in enumerate((3.0, 5.0)):
        for sample in range(BATCH):
            clip, made, plain, away = (np.asarray(x[i][sample]) for x in (scene.clip, fake, prompted, unprompted))
            real = [plain + (strength - 1) * share * (plain - away) for share in tried]
            scores = [(made - x) / (np.abs(clip - x).mean() + 1e-8) for x in real]
            misses = [np.abs(np.asarray(scene.gradient[i][sample]) - score).max() for score in scores]
            assert min(misses) < 2e-3
            shares.append(tried[np.argmin(misses)])
    assert shares[:BATCH] == pytest.approx(shares[BATCH:], abs=1e-2)
    assert abs(shares[0] - shares[1]) > 0.05


def test_no_gradient_flows_through_a_score(scene):
    def total(clip, scorer, prompt):
        return sum(jnp.sum(x) for x in dmd.dmd_gradient(clip, scorer, prompt, prompt, jax.random.key(3), CONFIG)[0])

    slopes = jax.grad(total, argnums=(0, 1, 2), allow_int=True)(scene.clip, scene.scorer, scene.prompt)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes))


def test_video_and_audio_of_a_clip_have_noise_of_their_own():
    video, audio = noise_like(jax.random.split(jax.random.key(0)), draw(0))
    assert not np.intersect1d(video, audio).size


class Critic:
    """The critic's loss with its network replaced by a formula, which remembers what it was asked."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr("omniforcing_jax.distill.clip_network.predict_velocity", self.ask)
        positions, rng = make_positions(tiny.TINY, clip_block(FRAMES, 26), tiny.GRID), np.random.default_rng(7)
        self.contexts = TextContexts(*(jnp.asarray(rng.normal(size=(BATCH, 4, 24)), jnp.float32) for _ in "va"), None)
        self.params, self.network = tiny.random_params(tiny.TINY, 1), clip_network(tiny.TINY, positions)

    def ask(self, params, model, noisy, sigma, *rest, **options):
        self.asked = [*noisy, sigma]
        return jax.tree.map(lambda x: 0.3 * x + 0.1, noisy)

    def loss(self, clip):
        return dmd.critic_loss(self.params, self.network, clip, self.contexts, jax.random.key(2), CONFIG)


@pytest.fixture
def critic(monkeypatch):
    return Critic(monkeypatch)


def test_the_critics_loss_is_the_weighted_error_of_its_velocities(critic):
    clip = scaled(draw(0), 1.0, 3.0)
    loss, parts = critic.loss(clip)
    video, audio, sigma = (np.asarray(x, np.float64) for x in critic.asked)
    errors = []
    for noisy, clean in zip((video, audio), clip, strict=True):
        level, clean = sigma[:, None, None], np.asarray(clean, np.float64)
        noise = (noisy - (1 - level) * clean) / level
        errors.append(np.mean((0.3 * noisy + 0.1 - (noise - clean)) ** 2))
    assert [float(parts[name]) for name in ("video", "audio")] == pytest.approx(errors, rel=1e-4)
    assert float(loss) == pytest.approx(0.75 * errors[0] + 0.25 * errors[1], rel=1e-4)


def test_the_critic_learns_at_the_levels_of_scoring(critic):
    critic.loss(draw(0))
    levels = np.array([scheduled(timestep) for timestep in range(20, 981)])
    assert all(np.abs(levels - sigma).min() < 1e-6 for sigma in np.asarray(critic.asked[-1], np.float64))


def test_no_gradient_of_the_critic_reaches_the_clip(critic):
    slope = jax.grad(lambda clip: critic.loss(clip)[0])(draw(0))
    assert not any(np.any(x) for x in slope)
