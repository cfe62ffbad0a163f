"""Golden m: the camera attention of one layer alone, and cameras that are moved by one common translation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from echowm import echo_case, lenses_of, load_network, needs_echowm, network_of

from omniforcing_jax.model.cameras import cameras_of_clip, move_origin
from omniforcing_jax.nn.camera import attend_through_cameras, camera_site, multiply, turn
from omniforcing_jax.nn.linear import project

pytestmark = [needs_echowm, pytest.mark.usefixtures("strict")]
NAME = "m_camera"


def make_layer(case, poses):
    """Weights of the recorded layer's camera attention, and its site for some poses."""
    config = network_of(case)
    params = load_network(case.config["weights"], config)
    layer = jax.tree.map(lambda x: x[case.config["layer"]], params.layers.camera)
    cameras = cameras_of_clip(poses, lenses_of(case["in.Ks"], tuple(case.config["image_size"])))
    return layer, camera_site(config.camera, jax.tree.map(jnp.asarray, cameras), tuple(case.config["grid"]))


def as_rows(x):
    """[B, T, N, H] as it was recorded, heads before tokens."""
    return np.swapaxes(x, 1, 2)


def test_one_layer_s_camera_attention_is_the_reference_s():
    case = echo_case(NAME)
    layer, site = make_layer(case, case["in.viewmats"])
    states = case["in.states"]
    y, kept = attend_through_cameras(layer, jnp.asarray(states), site)
    case.compare("out.branch", y)
    case.compare("out.k", as_rows(multiply(kept.k, site.cameras.own_inverse)))
    q = turn(project(layer.q, jnp.asarray(states)).reshape(*states.shape[:2], layer.heads, -1), site)
    case.compare("out.q", as_rows(multiply(q, jnp.swapaxes(site.cameras.own, -1, -2))))


def test_the_rotations_of_columns_and_rows_are_the_reference_s():
    case = echo_case(NAME)
    _, site = make_layer(case, case["in.viewmats"])
    rows, columns = case.config["grid"]
    for name, rotary in (("x", site.columns), ("y", site.rows)):
        case.compare(f"rope.{name}.cos", rotary.cos[0, : rows * columns, 0])
        case.compare(f"rope.{name}.sin", rotary.sin[0, : rows * columns, 0])
    case.assert_all_compared("rope.*")


def test_cameras_that_are_moved_together_change_nothing():
    case = echo_case(NAME)
    poses, recorded = case["in.viewmats"], case["out.viewmats_rebased"]
    anchor = next(i for i in range(poses.shape[1]) if np.allclose(recorded[:, i, :3, 3], 0, atol=1e-6))
    moved = move_origin(poses, poses[:, anchor : anchor + 1])
    case.compare("out.viewmats_rebased", moved)
    layer, site = make_layer(case, moved)
    case.compare("out.branch", attend_through_cameras(layer, jnp.asarray(case["in.states"]), site)[0])
