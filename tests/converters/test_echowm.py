"""EchoWM from its merged file to a stream whose camera is steered, cut, resumed, and back to the same bytes."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from published import NEWER, save_merged, text_path
from run import run
from test_whole_file import CONFIGS

from converters.component import DIFFUSERS, LTX2
from converters.registry import COMPONENTS
from omniforcing_jax.config import CameraConfig
from omniforcing_jax.pipeline.presets import ECHOWM, STUDENTS
from omniforcing_jax.pipeline.weights_folder import read_pipeline_config
from omniforcing_jax.stream.camera.path import CameraReceipt
from omniforcing_jax.stream.conditioning.condition import Condition
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import save
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.text.contexts import TextContexts

BLOCKS, CHANGED, CUT = 12, 5, 9
NETWORK = dataclasses.replace(
    NEWER,
    audio=dataclasses.replace(NEWER.audio, latent_channels=16),
    camera=CameraConfig(heads=2, head_size=16),
)
PARTS = CONFIGS | {
    "transformer": NETWORK,
    "connectors": text_path(NETWORK),
    "audio_vae": dataclasses.replace(CONFIGS["audio_vae"], mel_bins=64, z_channels=1, base_channels=16),
}


@pytest.fixture
def merged(tmp_path):
    """One file with all components; its header is silent about cameras."""
    save_merged(tmp_path / "echo-wm-flash.safetensors", PARTS)
    return tmp_path / "echo-wm-flash.safetensors"


@pytest.mark.parametrize("naming", [LTX2, DIFFUSERS])
def test_keys_and_parameters_are_those_of_the_published_network(naming):
    placements = COMPONENTS["transformer"].expand(ECHOWM, naming)
    assert len(placements) == 4426
    assert sum(math.prod(each.source_shape) for each in placements) == 19_794_341_120
    camera = [each for each in placements if "ucpe" in each.source]
    assert (len(camera), sum(math.prod(each.source_shape) for each in camera)) == (240, 805_502_976)


def open_moving(ours):
    picture = np.random.default_rng(2).integers(0, 255, (1, 80, 70, 3), np.uint8)
    text = TextContexts(*(jnp.ones((1, 4, stream.width)) for stream in (NETWORK.video, NETWORK.audio)), None)
    start = Condition(picture=picture, fit="crop", compress=33)
    return open_stream(ours, "", BLOCKS - 1, seed=1, contexts=text, start=start, camera="w-48,wd-96", lookahead=0)


def pixels(chunks):
    return np.concatenate([chunk.video for chunk in chunks])


@pytest.mark.long
def test_a_merged_file_is_streamed_steered_cut_resumed_and_exported_to_the_same_bytes(merged, tmp_path, capsys):
    ours, size = tmp_path / "ours", ("--height", 64, "--width", 64)
    run("convert", "--from", merged, "--student", "echowm-flash", "--camera-heads", 2, *size, "--out", ours)
    assert read_pipeline_config(ours).sampler == STUDENTS["echowm-flash"].sampler
    stream, steered = open_moving(ours), []
    for k, chunk in enumerate(stream):
        steered.append(chunk)
        if k + 1 == CHANGED:
            receipt = CameraReceipt(block=CHANGED, second=CHANGED - 1, frames=144)
            assert stream.set_camera("jl-24,s-120") == receipt
        if k + 1 == CUT:
            save(stream, tmp_path / "state")
    again = list(resume(tmp_path / "state", ours))
    for one, other in itertools.zip_longest(again, steered[CUT:]):
        np.testing.assert_array_equal(one.video, other.video)
        np.testing.assert_array_equal(one.audio, other.audio)
    straight = list(open_moving(ours))
    assert len(pixels(straight)) == len(pixels(steered)) == 1 + 24 * (BLOCKS - 1)
    same = [np.array_equal(a.video, b.video) for a, b in zip(straight, steered, strict=True)]
    assert same[:CHANGED] == [True] * CHANGED
    assert not any(same[CHANGED:BLOCKS])
    run("export", "--from", ours, "--to", "ltx2", "--out", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == merged.read_bytes()
    capsys.readouterr()
