"""What is written of a student: its levels, and weights halfway to those that its training began from."""

import jax
import numpy as np
import pytest
from tiny import random_params

from experiments.chime import export, train_teacher, two_players
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.weights_folder import read_pipeline_config


def test_what_ships_streams_as_it_is_exported():
    shipped = read_pipeline_config(train_teacher.ASSETS / "student").sampler
    assert shipped == export.student_config().sampler
    assert len(shipped.sigmas) == 17
    assert export.student_config("nine").sampler == two_players.Config().sampler


def test_halfway_is_the_mean_of_every_weight():
    folder = train_teacher.ASSETS / "student"
    other, own = train_teacher.exported(folder, presets.CHIME), random_params(presets.CHIME)
    mean = export.halfway_to(own, folder)
    for found, a, b in zip(*map(jax.tree.leaves, (mean, own, other)), strict=True):
        np.testing.assert_allclose(found, (np.asarray(a) + np.asarray(b)) / 2, rtol=1e-6)


def test_a_flag_that_means_nothing_for_a_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"halfway=.*is for --part student, not stage2"):
        export.main("stage2", out=tmp_path, halfway=tmp_path)
    with pytest.raises(ValueError, match=r"halfway=.*is for --part student, not teacher"):
        export.main("teacher", out=tmp_path, halfway=tmp_path)
    with pytest.raises(ValueError, match=r"levels='nine'.*is for students"):
        export.main("teacher", out=tmp_path, levels="nine")
    assert not list(tmp_path.iterdir())


def test_a_teacher_is_no_start_to_be_halfway_to():
    with pytest.raises(ValueError, match=r"sinks"):
        export.halfway_to(random_params(presets.CHIME), train_teacher.ASSETS / "teacher")
