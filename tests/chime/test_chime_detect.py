"""Detectors against rendered truth, clean and spoiled; the worlds are not those that the constants were tuned on."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from omniforcing_jax.chime import box, detect, physics, render
from omniforcing_jax.chime.track import watch

SECONDS, FRAMES = 4, 97
WORLDS = [physics.sample_world([990, i], balls=1 + i % 3) for i in range(6)]


@pytest.fixture(scope="module")
def tracks():
    return [watch(render.render_video(scene, FRAMES)) for scene in WORLDS]


@pytest.fixture(scope="module")
def onsets():
    return [detect.onsets(render.render_audio(scene, FRAMES * 1000), 24_000) for scene in WORLDS]


def _gaps(scene, events):
    """Milliseconds from each impact well inside the clip to the nearest event of its colour, corners left out."""
    exact = physics.impacts(scene, FRAMES / 24)
    lonely = [a for a in exact if all(a is b or a.ball != b.ball or abs(a.time - b.time) > 0.1 for b in exact)]
    inside = [impact for impact in lonely if 0.15 < impact.time < FRAMES / 24 - 0.15]
    same = [[e.time - i.time for e in events if e.colour == i.colour] for i in inside]
    return np.array([1e3 * min(map(abs, gaps), default=9.0) for gaps in same])


def _spoil(video, blur, noise):
    soft = gaussian_filter(video.astype(np.float32), (0, blur, blur, 0))
    return np.clip(soft + np.random.default_rng(0).normal(0, noise, video.shape), 0, 255).astype(np.uint8)


def test_centres_are_right_to_a_fraction_of_a_pixel_even_when_half_hidden(tracks):
    for scene, seen in zip(WORLDS, tracks, strict=True):
        exact = physics.positions(scene, np.arange(FRAMES) / 24)
        miss = 64 * np.abs(seen.centres[:, scene.colour] - exact)
        visible = seen.visible[:, scene.colour]
        assert np.nanmax(miss[visible > 0.9], initial=0) < 0.15
        assert np.nanmax(miss, initial=0) < 0.3


def test_the_right_colours_are_seen_and_nothing_else(tracks):
    for scene, seen in zip(WORLDS, tracks, strict=True):
        assert seen.colours() == tuple(sorted(scene.colour))
        assert seen.count() == len(scene.colour)
        assert not seen.twins.any()
        assert not seen.strangers.any()


def test_impacts_and_onsets_tell_where_a_ball_hits(tracks, onsets):
    for scene, seen, heard in zip(WORLDS, tracks, onsets, strict=True):
        exact = physics.impacts(scene, FRAMES / 24)
        for event in [*detect.impacts(seen), *heard]:
            near = [i for i in exact if i.colour == event.colour and abs(i.time - event.time) < 0.05]
            if len(near) == 1 and 0.15 < event.time < FRAMES / 24 - 0.15:
                assert event.place == pytest.approx(near[0].position[0], abs=0.03)


def test_a_tone_that_swells_rises_for_longer(onsets):
    struck = render.render_audio(physics.sample_world(1, colours=["red"]), FRAMES * 1000)
    (first, *_) = detect.onsets(struck, 24_000)
    swell = np.clip((np.arange(len(struck)) / 24_000 - first.time) / 0.08, 0, 1)[:, None].astype(np.float32)
    until = round(24_000 * (first.time + 0.3))  # before the next tone
    (slow, *_) = detect.onsets((struck * swell)[:until], 24_000)
    quick = [event.rise_s for event in onsets[0] if np.isfinite(event.rise_s)]
    assert np.median(quick) == pytest.approx(0.018, abs=0.002)
    assert slow.rise_s > 0.03


def test_a_larger_picture_is_seen_as_well():
    scene = physics.sample_world([990, 9], balls=2)
    seen = watch(render.render_video(scene, 24, size=96))
    exact = physics.positions(scene, np.arange(24) / 24)
    assert np.nanmax(np.abs(seen.centres[:, scene.colour] - exact)) * 96 < 0.3


def test_a_true_colour_has_no_error_and_a_faded_one_has():
    video = render.render_video(physics.sample_world(1, colours=["red"]), 6)
    faded = (video * 0.8).astype(np.uint8)
    assert np.nanmean(watch(video).colour_error) < 1
    assert np.nanmean(watch(faded).colour_error) > 20


def test_a_second_ball_of_the_same_colour_counts():
    one, two = (render.render_video(physics.sample_world(seed, colours=["green"]), 48) for seed in (1, 2))
    assert watch(np.maximum(one, two)).count() == 2


def test_a_ball_of_no_known_colour_counts_as_a_ball_but_is_no_colour():
    video = render.render_video(physics.sample_world(1, colours=["red"]), 24)
    video[:, 20:34, 4:18] = (250, 250, 250)
    seen = watch(video)
    assert seen.colours() == (0,)
    assert seen.count() == 2


def test_an_empty_box_has_no_balls():
    seen = watch(np.broadcast_to(box.backdrop(64), (8, 64, 64, 3)))
    assert seen.count() == 0
    assert seen.colours() == ()
    assert detect.impacts(seen) == []


def test_impacts_seen_are_exact_to_a_few_milliseconds(tracks):
    gaps = np.concatenate([_gaps(s, detect.impacts(t)) for s, t in zip(WORLDS, tracks, strict=True)])
    assert len(gaps) > 25
    assert np.median(gaps) < 0.5
    assert np.percentile(gaps, 90) < 5
    assert (gaps < 20).mean() > 0.95


def _assert_all_happened(scene, events):
    exact = physics.impacts(scene, 5)
    for event in events:
        assert min(abs(event.time - i.time) for i in exact if i.colour == event.colour) < 0.05


def test_no_impact_is_seen_that_did_not_happen(tracks):
    for scene, seen in zip(WORLDS, tracks, strict=True):
        _assert_all_happened(scene, detect.impacts(seen))


def test_onsets_heard_are_exact_to_a_millisecond(onsets):
    gaps = np.concatenate([_gaps(s, heard) for s, heard in zip(WORLDS, onsets, strict=True)])
    assert np.median(gaps) < 0.2
    assert np.percentile(gaps, 90) < 1
    assert (gaps < 5).mean() > 0.95


def test_no_onset_is_heard_that_did_not_ring(onsets):
    for scene, heard in zip(WORLDS, onsets, strict=True):
        _assert_all_happened(scene, [event for event in heard if event.time < SECONDS - 0.05])


def test_blur_and_noise_in_the_picture_move_impacts_by_milliseconds_only():
    scene = WORLDS[2]
    spoiled = _spoil(render.render_video(scene, FRAMES), 1.5, 8)
    gaps = _gaps(scene, detect.impacts(watch(spoiled)))
    assert np.median(gaps) < 3
    assert (gaps < 20).mean() > 0.9


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_noise_in_the_sound_moves_onsets_by_milliseconds_only(rate):
    scene = WORLDS[2]
    sound = render.render_audio(scene, FRAMES * rate // 24, rate)
    noisy = sound + np.random.default_rng(0).normal(0, 0.01, sound.shape).astype(np.float32)
    gaps = _gaps(scene, detect.onsets(noisy, rate))
    assert np.median(gaps) < 1
    assert (gaps < 20).mean() > 0.9


def test_a_corner_is_one_event():
    fall, drift = np.sqrt(2 * box.GRAVITY * 0.5), 0.4
    period = 2 * fall / box.GRAVITY
    phase, start = period - 1.0, physics.SPAN - 1.01 * drift  # floor at 1.00 s, right wall at 1.01 s
    one = {"bounce_speed": fall, "bounce_phase": phase, "start": start, "drift": drift}
    scene = physics.World(colour=np.array([0]), **{name: np.array([value]) for name, value in one.items()})
    assert [i.surface for i in physics.impacts(scene, 1.2)] == ["floor", "right"]
    seen = detect.impacts(watch(render.render_video(scene, 37)))
    assert len(seen) == 1
    assert seen[0].time == pytest.approx(1.0, abs=0.005)


def test_silence_and_a_sound_too_short_have_no_onsets():
    assert detect.onsets(np.zeros((24_000, 2), np.float32), 24_000) == []
    assert detect.onsets(np.zeros((0, 2), np.float32), 24_000) == []


def test_pictures_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="square"):
        watch(np.zeros((2, 32, 64, 3), np.uint8))
