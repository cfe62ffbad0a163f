"""What is written of a student: its levels, and weights halfway to those that its training began from."""

import jax
import numpy as np
import pytest
from tiny import random_params

from experiments.chime import export_networks
from experiments.chime.world import recipe
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.pipeline.weights_folder import read_pipeline_config


def test_what_ships_streams_as_it_is_exported():
    shipped = read_pipeline_config(CHIME_WEIGHTS / "student").sampler
    assert shipped == recipe.student_config().sampler
    assert len(shipped.sigmas) == 17
    assert recipe.student_config("nine").sampler == recipe.SAMPLER


def test_halfway_is_the_mean_of_every_weight():
    folder = CHIME_WEIGHTS / "student"
    other, own = recipe.read_transformer(folder, presets.CHIME), random_params(presets.CHIME)
    mean = export_networks.halfway_to(own, folder)
    for found, a, b in zip(*map(jax.tree.leaves, (mean, own, other)), strict=True):
        np.testing.assert_allclose(found, (np.asarray(a) + np.asarray(b)) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"part": "stage2", "halfway": CHIME_WEIGHTS}, "is for --part student, not stage2"),
        ({"part": "teacher", "halfway": CHIME_WEIGHTS}, "is for --part student, not teacher"),
        ({"part": "teacher", "levels": "nine"}, "levels='nine': is for students"),
    ],
)
def test_a_flag_that_means_nothing_for_a_part_is_refused(tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit) as caught:
        export_networks.main(export_networks.Arguments(out=tmp_path, **flags))
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_teacher_is_no_start_to_be_halfway_to():
    with pytest.raises(ValueError, match=r"sinks"):
        export_networks.halfway_to(random_params(presets.CHIME), CHIME_WEIGHTS / "teacher")
