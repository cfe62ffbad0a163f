"""Chime's pairs on disk: what is written in two goes is what is written in one, and the student's trainer reads it."""

import numpy as np
import pytest

from experiments.chime.world import latents, pairs, recipe, trajectories
from experiments.chime.world.clips import TRAIN_SEED
from omniforcing_jax.train.store import Writer

PARAMS = {"w": np.ones(3, np.float32)}


@pytest.fixture(autouse=True)
def quick_teacher(monkeypatch):
    """A teacher whose trajectory is its seed, at every entry and place."""
    entries = len(recipe.STUDENT_SIGMAS)

    def make_trajectory(model, places, vectors):
        def trajectory(params, ids, seeds):
            shapes = (16 * 16, model.video.latent_channels), (126, model.audio.latent_channels)
            return [
                np.broadcast_to(np.float32(seeds)[:, None, None], (entries, len(seeds), *shape)) for shape in shapes
            ]

        return trajectory

    monkeypatch.setattr(pairs, "make_trajectory", make_trajectory)


def test_pairs_written_in_two_goes_are_those_written_in_one(tmp_path, monkeypatch):
    pairs.write(tmp_path / "one", PARAMS, 5, batch=2, shards=2)
    put, done = Writer.put, []

    def put_three(self, index, row):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(index)
        put(self, index, row)

    monkeypatch.setattr(Writer, "put", put_three)
    with pytest.raises(KeyboardInterrupt):
        pairs.write(tmp_path / "two", PARAMS, 5, batch=1, shards=2)
    monkeypatch.setattr(Writer, "put", put)
    pairs.write(tmp_path / "two", PARAMS, 5, batch=2, shards=2)
    one, two = (pairs.read(tmp_path / name) for name in ("one", "two"))
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])
    np.testing.assert_array_equal(one["video"][:, 0, 0, 0], np.arange(5))
    np.testing.assert_array_equal(one["ids"][4], latents.prompt_ids(TRAIN_SEED + 4))


def test_the_students_trainer_reads_them_entries_first(tmp_path):
    pairs.write(tmp_path, PARAMS, 3, batch=3, shards=1)
    trajectory = trajectories.recorded(pairs.read(tmp_path), recipe.STUDENT_SIGMAS, None)
    entries = len(recipe.STUDENT_SIGMAS)
    assert trajectory.video.shape == (entries, 3, 256, 32)
    np.testing.assert_array_equal(trajectory.audio[0, :, 0, 0], np.arange(3))


def test_pairs_of_another_teacher_are_not_mixed_in(tmp_path):
    pairs.write(tmp_path, PARAMS, 2, batch=2, shards=1)
    with pytest.raises(ValueError, match=r"another store: facts.teacher="):
        pairs.write(tmp_path, {"w": np.zeros(3, np.float32)}, 2, batch=2, shards=1)
