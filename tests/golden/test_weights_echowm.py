"""Golden EchoWM weights go through `convert` and `export` as the published file has them: bit-exact there and back."""

import numpy as np
import pytest
from echowm import echo_case, echo_json, needs_echowm, network_of, save_published
from safetensors.numpy import load_file

from converters.cli import main
from converters.formats.transformer import PREFIX

pytestmark = needs_echowm
WEIGHTS = "weights_echowm"


def run(*words) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def published(tmp_path):
    case = echo_case("j_camera_forward")
    path = tmp_path / "echo-wm.safetensors"
    return path, save_published(case, path), network_of(case)


def test_camera_keys_go_there_and_back_bit_exact(published, tmp_path, capsys):
    path, tensors, config = published
    heads = config.camera.heads
    assert set(echo_json(WEIGHTS)["checks"]["camera_keys"]) <= {key.removeprefix(PREFIX) for key in tensors}
    flags = ("--camera-heads", heads, "--student", "echowm-flash")
    assert run("convert", "--from", path, *flags, "--out", tmp_path / "w") == 0
    assert f"camera attention of {heads} heads" in capsys.readouterr().out
    assert run("export", "--from", tmp_path / "w", "--to", "ltx2", "--out", tmp_path / "back.safetensors") == 0
    assert "--camera-heads" in capsys.readouterr().out
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    assert run("export", "--from", tmp_path / "w", "--to", "diffusers", "--out", tmp_path / "pipe") == 0
    assert run("convert", "--from", tmp_path / "pipe", "--out", tmp_path / "again", "--camera-heads", heads) == 0
    assert (tmp_path / "again/transformer/model.safetensors").read_bytes() == (
        tmp_path / "w/transformer/model.safetensors"
    ).read_bytes()


def test_heads_that_do_not_fit_are_refused(published, tmp_path, capsys):
    path, tensors, _ = published
    width = tensors[f"{PREFIX}transformer_blocks.0.ucpe_q_proj.weight"].shape[0]
    assert run("convert", "--from", path, "--camera-heads", width + 1, "--out", tmp_path / "w") == 2
    assert f"camera-heads={width + 1}: must divide the width {width} of camera" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_omniforcing_s_format_has_no_room_for_cameras(published, tmp_path, capsys):
    path, _, config = published
    assert run("convert", "--from", path, "--camera-heads", config.camera.heads, "--out", tmp_path / "w") == 0
    assert run("export", "--from", tmp_path / "w", "--to", "omniforcing", "--out", tmp_path / "back.safetensors") == 2
    assert "OmniForcing's code reads no config" in capsys.readouterr().err
