"""Golden m: keys to poses to matrices, and the camera attention of one layer alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from echowm import echo_case, echo_variants, lenses_of, load_network, needs_echowm, network_of

from omniforcing_jax.config import CameraMotion, SamplerConfig
from omniforcing_jax.layout import PREFIX2, latent_frames
from omniforcing_jax.model.cameras import Shots, cameras_of_clip, lens_matrix, lens_of_intrinsics, move_origin
from omniforcing_jax.nn.camera import attend_through_cameras, camera_site, multiply, turn
from omniforcing_jax.nn.linear import project
from omniforcing_jax.stream.camera.motion import MotionState, move, parse_camera, pose_of
from omniforcing_jax.stream.camera.path import advance_path, begin_path

pytestmark = [needs_echowm, pytest.mark.usefixtures("strict")]
NAME = "m_camera"


def make_layer(case, poses):
    """Weights of the recorded layer's camera attention, and its site for some poses."""
    config = network_of(case)
    params = load_network(case.config["weights"], config)
    layer = jax.tree.map(lambda x: x[case.config["layer"]], params.layers.camera)
    cameras = cameras_of_clip(Shots(poses, lenses_of(case["in.Ks"], tuple(case.config["image_size"]))))
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


@pytest.mark.parametrize("name", echo_variants(NAME, "paths"))
def test_a_path_of_keys_is_the_reference_s(name):
    case = echo_case(NAME)
    uses = case.config["paths"][name]
    motion = CameraMotion(
        speed=uses["translation_speed"],
        turn_degrees=uses["rotation_speed_deg"],
        tilt_degrees=uses["pitch_speed_deg"],
        tilt_limit_degrees=uses["pitch_limit_deg"],
        view_degrees=uses["fov_deg"],
    )
    state, poses = MotionState(), [pose_of(MotionState(), motion)]
    for segment in parse_camera(uses["action"]):
        for _ in range(segment.frames):
            state = move(motion, state, segment.keys)
            poses.append(pose_of(state, motion))
    moved = np.stack(poses)
    moved[:, :3, 3] *= motion.unit
    case.compare(f"{name}.poses", moved)
    path, sampler = begin_path(uses["action"]), SamplerConfig(layout=PREFIX2, sigmas=(1.0, 0.0), horizon_seconds=6)
    latents = []
    for k in range(PREFIX2.block_count(latent_frames(uses["num_frames"]))):
        path = advance_path(path, motion, sampler, k)
        latents += [*np.array(path.seen[-1].poses).reshape(-1, 3, 4)]
    matrices = np.concatenate([np.stack(latents), np.tile([[[0.0, 0.0, 0.0, 1.0]]], (len(latents), 1, 1))], axis=1)
    case.compare(f"{name}.viewmats", matrices)
    size = uses["height"], uses["width"]
    recorded = lens_of_intrinsics(case[f"{name}.K"].astype(np.float64), *size)
    np.testing.assert_allclose(recorded, lens_matrix(motion.view_degrees, *size), atol=1e-6)
    back = lens_matrix(motion.view_degrees, *size)
    k = [[back[0, 0] * size[1], 0, size[1] / 2], [0, back[1, 1] * size[0], size[0] / 2], [0, 0, 1]]
    case.compare(f"{name}.K", np.array(k))
    case.assert_all_compared(f"{name}.*")
