"""What is written of a student: its levels, and weights halfway to those that its training began from."""

import jax
import numpy as np
import pytest
from tiny import random_params

from experiments.chime import export, train_teacher, two_players
from omniforcing_jax import config as configs
from omniforcing_jax.pipeline import read_pipeline_config


def test_what_ships_streams_as_it_is_exported():
    shipped = read_pipeline_config(train_teacher.ASSETS / "student").sampler
    assert shipped == export.student_config().sampler
    assert len(shipped.sigmas) == 17
    assert export.student_config("nine").sampler == two_players.Config().sampler


def test_halfway_is_the_mean_of_every_weight():
    folder = train_teacher.ASSETS / "student"
    other, own = train_teacher.exported(folder, configs.CHIME), random_params(configs.CHIME)
    mean = export.halfway_to(own, folder)
    for found, a, b in zip(*map(jax.tree.leaves, (mean, own, other)), strict=True):
        np.testing.assert_allclose(found, (np.asarray(a) + np.asarray(b)) / 2, rtol=1e-6)


@pytest.mark.parametrize(("part", "flag"), [("teacher", "halfway"), ("stage2", "halfway"), ("teacher", "levels")])
def test_a_flag_that_means_nothing_for_a_part_is_refused(tmp_path, part, flag):
    given = {"halfway": tmp_path} if flag == "halfway" else {"levels": "nine"}
    with pytest.raises(ValueError, match=f"{flag}=.*is for"):
        export.main(part, out=tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_a_teacher_is_no_start_to_be_halfway_to():
    with pytest.raises(ValueError, match="sinks"):
        export.halfway_to(random_params(configs.CHIME), train_teacher.ASSETS / "teacher")
