"""A stream whose latents are upsampled block by block: a larger picture, the same sound, a state that goes on."""

import dataclasses
import itertools
from functools import cache

import av
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import fill
from refusal import refusal
from tiny_stream import GRID, PROMPT, folders, student

from experiments import upscaling
from omniforcing_jax.cli.main import main
from omniforcing_jax.codecs.upsampler import init_upsampler, upsample_next
from omniforcing_jax.codecs.upsampler_config import Resampling, UpsamplerConfig
from omniforcing_jax.codecs.video_vae import decode_first, decode_next
from omniforcing_jax.io import machine
from omniforcing_jax.pipeline.weights_folder import save_pipeline
from omniforcing_jax.rollout import to_frames
from omniforcing_jax.stream.decode import to_bytes
from omniforcing_jax.stream.plan import plan_stream
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import save
from omniforcing_jax.stream.start import open_stream

UPSAMPLER = UpsamplerConfig(latent_channels=8, width=32, layers=1, resampling=Resampling.SPACE)
OPTIONS = {"seconds": 3, "seed": 3, "height": 32, "width": 32}
BY_LOOKAHEAD = pytest.mark.parametrize("lookahead", [0, pytest.param(3, marks=pytest.mark.long)])


@cache
def upsampling():
    """The tiny student with an upsampler."""
    codecs = dataclasses.replace(
        student().codecs, upsampler=fill(init_upsampler(UPSAMPLER)), upsampler_config=UPSAMPLER
    )
    config = dataclasses.replace(student().config, upsampler=UPSAMPLER)
    return dataclasses.replace(student(), codecs=codecs, config=config)


@cache
def recorded(lookahead):
    """A whole stream: its chunks, its latents, and the programs ready at each chunk."""
    latents, chunks, ready, counter = [], [], [], machine.CompileCounter.start()
    trace = lambda step, block, outputs: latents.append(outputs) if step == "denoise" else None  # noqa: E731
    for chunk in open_stream(upsampling(), PROMPT, **OPTIONS, upscale=True, lookahead=lookahead, trace=trace):
        chunks.append(chunk)
        ready.append(counter.ready)
    counter.stop()
    return chunks, latents, ready


@BY_LOOKAHEAD
def test_the_picture_is_twice_as_large_and_late_by_the_look_ahead(lookahead):
    chunks = recorded(lookahead)[0]
    lengths = {0: (1, 24, 24, 24, 0), 3: (0, 1, 24, 24, 24)}[lookahead]
    assert [chunk.video.shape for chunk in chunks] == [(length, 64, 64, 3) for length in lengths]
    for one, other in itertools.pairwise(chunks):
        assert one.video_start_s + len(one.video) / 24 == pytest.approx(other.video_start_s)


def test_a_pipeline_with_an_upsampler_streams_without_it_unless_it_is_asked_for():
    stream = open_stream(upsampling(), PROMPT, **OPTIONS)
    assert stream.picture_size == (32, 32)
    assert stream.pipeline.config == student().config


@pytest.mark.long
def test_a_chunk_is_its_latents_upsampled_then_decoded_each_from_its_own_state():
    chunks, latents, _ = recorded(3)
    codecs = upsampling().codecs
    clip = jnp.concatenate([to_frames(made.video, (1, 1)) for made in latents], axis=1)
    larger, carry = upsample_next(*codecs.upsampling, codecs.video, clip[:, :4], None, 3)
    first, decoder = decode_first(codecs.video_config, codecs.video, larger[:, :1])
    larger, carry = upsample_next(*codecs.upsampling, codecs.video, clip[:, 1:7], carry, 3)
    second, _ = decode_next(codecs.video_config, codecs.video, larger[:, :3], decoder)
    for chunk, expected in ((chunks[1], first), (chunks[2], second)):
        assert np.abs(chunk.video.astype(int) - np.asarray(to_bytes(expected))[0]).max() <= 1


@BY_LOOKAHEAD
def test_nothing_is_compiled_after_the_second_block(lookahead):
    ready = recorded(lookahead)[2]
    assert ready[1] == ready[-1]


@BY_LOOKAHEAD
def test_a_resumed_stream_goes_on_bit_by_bit(tmp_path, lookahead):
    stream = open_stream(upsampling(), PROMPT, **OPTIONS, upscale=True, lookahead=lookahead)
    before = [next(stream) for _ in range(2)]
    save(stream, tmp_path)
    for one, other in zip([*before, *resume(tmp_path, upsampling())], recorded(lookahead)[0], strict=True):
        np.testing.assert_array_equal(one.video, other.video)
        assert one.video_start_s == other.video_start_s
    with pytest.raises(ValueError, match="was loaded without its upsampler"):
        resume(tmp_path, student())


def test_an_upsampled_stream_may_look_ahead_although_its_decoder_is_causal():
    asked = StreamRequest(prompt=PROMPT, seconds=3, upscale=True, lookahead=2)
    assert plan_stream(upsampling(), asked).lookahead == 2
    assert plan_stream(upsampling(), dataclasses.replace(asked, lookahead=None)).lookahead == 3
    with pytest.raises(ValueError, match="lookahead=2: must be 0"):
        plan_stream(upsampling(), dataclasses.replace(asked, upscale=False))


@pytest.mark.long
def test_the_command_streams_a_larger_picture(tmp_path, capsys):
    save_pipeline(tmp_path / "weights", upsampling())
    flags = ["--prompt", PROMPT, "--seconds", 1, "--upscale", "--lookahead", 2, "--out", tmp_path / "a.mp4"]
    assert main([str(word) for word in ("stream", "--weights", tmp_path / "weights", *flags)]) == 0
    capsys.readouterr()
    with av.open(tmp_path / "a.mp4") as file:
        assert (file.streams.video[0].height, file.streams.video[0].width) == (64 * GRID[0], 64 * GRID[1])


@pytest.mark.long
def test_the_experiment_measures_an_error_that_falls_with_the_look_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(upscaling, "load", lambda arguments: upsampling())
    figures = upscaling.measure(upscaling.Arguments(json=tmp_path / "up.json", seconds=3, lookaheads=(0, 3)))
    assert (figures["latent_frames"], figures["reach"]) == (10, 6)
    blind, far = figures["rows"]
    assert 0 < far["so_far"] < blind["so_far"]
    assert upscaling.tabulate(figures)[0] == "| look-ahead | 0 | 3 |"


def test_weights_without_an_upsampler_are_refused(tmp_path, capsys, no_work):
    flags = ["--prompt", PROMPT, "--seconds", 1, "--upscale", "--out", tmp_path / "a.mp4"]
    line = refusal(capsys, ["stream", "--weights", folders() / "student", *flags])
    assert "has no spatial_upsampler; convert its file" in line
