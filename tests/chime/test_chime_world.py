"""The small world: exact physics against a simulation, and renderers that do not care where a call begins."""

import math

import numpy as np
import pytest

from omniforcing_jax.chime import box, physics, prompts, render
from omniforcing_jax.layout import FRAME_RATE

SECONDS = 6


def _simulate(scene, ball, seconds, dt=1e-4):
    """Step one ball through time and note where it is when it has gone through a surface."""
    eps = 1e-6
    (x, y), (x1, y1) = physics.positions(scene, np.array([0.0, eps]))[:, ball]
    vx, vy = (x1 - x) / eps, (y1 - y) / eps
    found = []
    for step in range(round(seconds / dt)):
        x, y, vy = x + vx * dt, y + vy * dt - box.GRAVITY / 2 * dt**2, vy - box.GRAVITY * dt
        for hit, surface, speed in (
            (y < box.RADIUS and vy < 0, "floor", -vy),
            (x < box.RADIUS and vx < 0, "left", -vx),
            (x > 1 - box.RADIUS and vx > 0, "right", vx),
        ):
            if hit:
                found.append(((step + 1) * dt, surface, speed))
                vx, vy = (vx, -vy) if surface == "floor" else (-vx, vy)
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_impacts_are_those_of_a_step_by_step_simulation(seed):
    scene = physics.sample_world(seed, balls=2)
    for ball in range(2):
        exact = [i for i in physics.impacts(scene, SECONDS) if i.ball == ball]
        stepped = _simulate(scene, ball, SECONDS)
        assert [i.surface for i in exact] == [surface for _, surface, _ in stepped]
        np.testing.assert_allclose([i.time for i in exact], [t for t, _, _ in stepped], atol=2e-3)
        np.testing.assert_allclose([i.speed for i in exact], [v for _, _, v in stepped], rtol=5e-3)


def test_the_centre_touches_the_surface_at_the_time_of_impact():
    scene = physics.sample_world(3, balls=3)
    for impact in physics.impacts(scene, 60):
        x, y = physics.positions(scene, np.array([impact.time]))[0, impact.ball]
        contact = {"floor": y, "left": x, "right": 1 - x}[impact.surface]
        assert contact == pytest.approx(box.RADIUS, abs=1e-9)
        assert impact.position == pytest.approx((x, y))


def test_balls_bounce_for_ever_inside_the_box():
    scene = physics.sample_world(4, balls=3)
    hour = physics.positions(scene, 3600 + np.arange(0, 20, 1e-3))
    assert hour.min() >= box.RADIUS - 1e-9
    assert hour[..., 0].max() <= 1 - box.RADIUS + 1e-9
    apex = hour[..., 1].max(axis=0) - box.RADIUS
    assert ((apex > physics.APEX[0] - 1e-3) & (apex < physics.APEX[1])).all()


def test_the_same_seed_gives_the_same_world():
    first, again, other = (render.render_video(physics.sample_world(s, balls=2), 3) for s in ([5, 6], [5, 6], [5, 7]))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_named_colours_are_the_colours_of_the_world():
    scene = physics.sample_world(1, colours=["blue", "red"])
    assert {prompts.COLOURS[c] for c in scene.colour} == {"red", "blue"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"colours": ["red", "red"]}, "distinct"),
        ({"colours": ["mauve"]}, "mauve"),
        ({"balls": 4}, "1 to 3"),
        ({"balls": 0}, "1 to 3"),
        ({"balls": 2, "colours": ["red"]}, "balls=2"),
    ],
)
def test_an_impossible_world_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        physics.sample_world(0, **arguments)


def test_a_video_cut_from_the_middle_is_that_part_of_the_whole():
    scene = physics.sample_world(7, balls=3)
    whole = render.render_video(scene, 40)
    np.testing.assert_array_equal(render.render_video(scene, 13, first_frame=21), whole[21:34])


@pytest.mark.parametrize("rate", [24_000, 16_000])
def test_a_sound_cut_from_the_middle_is_that_part_of_the_whole(rate):
    scene = physics.sample_world(7, balls=3)
    whole = render.render_audio(scene, 3 * rate, rate)
    np.testing.assert_array_equal(
        render.render_audio(scene, rate, rate, first_sample=rate + 17), whole[rate + 17 :][:rate]
    )


@pytest.mark.parametrize("size", [48, 64, 96])
def test_a_disc_has_its_area_and_its_place_to_a_fraction_of_a_pixel(size):
    scene = physics.sample_world(8, balls=1)
    mask = render.foreground_mask(scene, 24, size)
    rows, columns = np.indices((size, size)) + 0.5
    area = mask.sum((1, 2))
    np.testing.assert_allclose(area, math.pi * (box.RADIUS * size) ** 2, rtol=0.015)
    centres = physics.positions(scene, np.arange(24) / FRAME_RATE)[:, 0] * size
    np.testing.assert_allclose((mask * columns).sum((1, 2)) / area, centres[:, 0], atol=0.03)
    np.testing.assert_allclose((mask * rows).sum((1, 2)) / area, size - centres[:, 1], atol=0.03)


def test_the_mask_is_where_the_picture_differs_from_the_backdrop():
    scene = physics.sample_world(9, balls=3)
    changed = (render.render_video(scene, 12) != box.backdrop(64)).any(-1)
    mask = render.foreground_mask(scene, 12)
    assert (mask[changed] > 0).all()
    assert changed[mask > 0.05].all()
    assert render.foreground_mask(scene, 12, dilate=2.0).sum() > 1.3 * mask.sum()


def test_the_front_ball_hides_the_one_behind():
    scene = physics.sample_world(2, balls=2)
    same = {name: np.full_like(value, value[0]) for name, value in vars(scene).items() if name != "colour"}
    together = physics.World(colour=scene.colour, **same)
    video = render.render_video(together, 1)[0].reshape(-1, 3)
    assert (video == box.PALETTE[scene.colour[1]]).all(-1).sum() > 100
    assert not (video == box.PALETTE[scene.colour[0]]).all(-1).any()


def test_palette_colours_are_well_apart_from_each_other_and_from_the_backdrop():
    colours = np.concatenate([box.PALETTE, box.BACKGROUND[None], box.BORDER[None]]).astype(float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)[:6]
    assert distance[distance > 0].min() > 140


def test_the_world_begins_in_silence():
    scene = physics.sample_world(10, balls=3)
    first = physics.impacts(scene, 5)[0].time
    sound = render.render_audio(scene, 120_000)
    assert not sound[: int(first * render.SAMPLE_RATE)].any()
    assert np.abs(sound).max() > 0.05


@pytest.mark.parametrize("colour", prompts.COLOURS)
def test_an_impact_rings_the_pitch_of_its_colour(colour):
    scene = physics.sample_world(11, colours=[colour])
    start = round(physics.impacts(scene, 5)[0].time * render.SAMPLE_RATE)
    spectrum = np.abs(np.fft.rfft(render.render_audio(scene, 4800, first_sample=start).sum(1)))
    loudest = np.argmax(spectrum) * render.SAMPLE_RATE / 4800
    assert loudest == pytest.approx(box.PITCHES[prompts.COLOURS.index(colour)], abs=5)


def test_every_impact_of_a_colour_has_the_phase_of_one_steady_tone():
    scene = physics.sample_world(12, colours=["green"])
    sound = render.render_audio(scene, 240_000).sum(1)
    tone = np.exp(-2j * np.pi * box.PITCHES[prompts.COLOURS.index("green")] * np.arange(240_000) / render.SAMPLE_RATE)
    starts = [round(i.time * render.SAMPLE_RATE) for i in physics.impacts(scene, 9.9)]
    phases = [np.angle((sound * tone)[s : s + 2400].sum()) for s in starts]
    np.testing.assert_allclose(phases, -np.pi / 2, atol=0.05)


def test_a_sound_is_louder_on_its_side_and_for_a_harder_impact():
    scene = physics.sample_world(13, colours=["red"])
    rings = {}
    for impact in physics.impacts(scene, 30):
        start = round(impact.time * render.SAMPLE_RATE)
        alone = render.render_audio(scene, 1200, first_sample=start) - render.render_audio(scene, 1, first_sample=start)
        rings[impact.surface] = np.sqrt((alone**2).mean(0))
    assert rings["left"][0] > 2 * rings["left"][1]
    assert rings["right"][1] > 2 * rings["right"][0]
    assert np.hypot(*rings["floor"]) > np.hypot(*rings["left"])


def test_the_sound_does_not_clip():
    peaks = [np.abs(render.render_audio(physics.sample_world([14, i], balls=3), 120_000)).max() for i in range(20)]
    assert max(peaks) < 0.95
