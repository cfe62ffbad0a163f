"""What judges long and steered streams, on rendered truth, where the answers are known."""

import numpy as np
import pytest

from experiments.chime import conditioning, drift, prompt_change
from experiments.chime.judge.sources import render_film
from omniforcing_jax.chime import metrics, physics, render
from omniforcing_jax.chime.film import Film
from omniforcing_jax.chime.prompts import parse
from omniforcing_jax.layout import FRAME_RATE

PROMPTS = ("a red ball", "a green ball and a blue ball")


@pytest.fixture(scope="module")
def truth():
    scenes = [physics.sample_world([5, i], colours=parse(prompt).colours) for i, prompt in enumerate(PROMPTS)]
    length = conditioning.PAST + conditioning.NEW
    return [
        metrics.perceive(render_film(scene, length), parse(prompt))
        for scene, prompt in zip(scenes, PROMPTS, strict=True)
    ]


def test_a_change_asks_for_other_colours_and_another_number():
    for first, second in prompt_change.draw_pairs(50, 0):
        before, after = parse(first), parse(second)
        assert not set(before.colours) & set(after.colours)
        assert before.count != after.count


def test_velocities_are_those_of_the_world():
    scene = physics.sample_world([6, 0], colours=("cyan",))
    tracks = metrics.see(render.render_video(scene, 97)).tracks
    frames = next(
        range(n, n + conditioning.FLIGHT)
        for n in range(90)
        if conditioning.velocity(tracks, 3, range(n, n + conditioning.FLIGHT))
    )
    speed, place = conditioning.velocity(tracks, 3, frames)
    middle, step = np.mean(frames) / FRAME_RATE, 1e-4
    before, now, after = physics.positions(scene, np.array([middle - step, middle, middle + step]))[:, 0]
    np.testing.assert_allclose(speed, (after - before) / (2 * step), atol=0.02)
    np.testing.assert_allclose(place, now, atol=0.01)


def test_a_ball_that_bounces_has_no_velocity():
    scene = physics.sample_world([6, 1], colours=("cyan",))
    tracks = metrics.see(render.render_video(scene, 97)).tracks
    hit = round(next(i.time for i in physics.impacts(scene, 4.0) if i.time > 0.5) * FRAME_RATE)
    assert conditioning.velocity(tracks, 3, range(hit - 3, hit + 4)) is None


def test_truth_flies_on_across_the_border_and_a_cut_does_not(truth):
    found = conditioning.across(truth)
    assert found["balls"] >= 1
    assert found["change_x"] < 0.03
    assert found["change_y"] < 0.1
    assert found["turned"] == 0
    border = 1 + conditioning.PAST * FRAME_RATE
    for clip in truth:
        clip.picture.tracks.centres[border:, :, 0] = 1 - clip.picture.tracks.centres[border:, :, 0]
    assert conditioning.across(truth)["turned"] == 1


def test_a_minute_of_truth_is_judged_right(truth):
    figures = drift.judge_minute(truth)
    assert figures["adherence"] == 1
    assert figures["sync_recall"] > 0.9
    assert set(drift.SHOWN) <= set(figures)
    rows = [drift.Row(window=w, block_0="not kept", minute=m, figures=figures) for w in (1, 0) for m in (1, 2)]
    assert [line.split(" | ")[:2] for line in drift.table(rows).splitlines()[2:]] == [
        ["| 1", "not kept"],
        ["| horizon", "not kept"],
    ]


def test_seams_are_found_where_the_picture_jumps_and_not_elsewhere():
    clips = []
    for i in range(3):
        scene = physics.sample_world([7, i], colours=("red", "yellow"))
        video, audio, rate = render_film(scene, 8)
        other = render.render_video(physics.sample_world([8, i], colours=("cyan", "blue", "purple")), len(video))
        border = 1 + 4 * FRAME_RATE
        clips.append(Film(np.concatenate([video[:border], other[border:]]), audio, rate))
    at_cut, elsewhere = (prompt_change.pool_seams(clips, places) for places in ([4 + 1 / 24], [2 + 1 / 24, 6 + 1 / 24]))
    assert at_cut["change"]["ratio"] > 2 * at_cut["change"]["highest_elsewhere"]
    assert elsewhere["change"]["ratio"] < elsewhere["change"]["highest_elsewhere"]
