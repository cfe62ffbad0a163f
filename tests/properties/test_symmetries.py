import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.rotary_rows import interleaving
from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.layout import Block
from omniforcing_jax.model.positions import make_positions
from omniforcing_jax.model.view import Sigmas, bidirectional, one_sigma
from tests.properties.clips import Clip, Masked, assert_close, build, forward
from tests.tiny import GRID, INTERLEAVED, SINKS, TINY, TOKENS

LIMIT = 2e-5
CLIP = Clip(TINY, frames=4)
SIGMA = jnp.array([0.3, 0.8])


def teach(config, params, sigmas, clip=CLIP, **offset):
    """Bidirectional forward of the clip."""
    positions = make_positions(config, Block(0, clip.frames, 0, clip.blocks[-1].audio_end), GRID, **offset)
    view = build(config, bidirectional, positions, sigmas)
    network = dataclasses.replace(config, cross_timestep=TINY.cross_timestep)  # only the view depends on it
    return forward(network, params, clip.latents, view, clip.text)[0]


def reorder(attention, rows):
    """Give the queries and keys of an attention another order of rows, as a converter does."""

    def of(linear):
        return dataclasses.replace(linear, w=linear.w[:, rows], b=linear.b[:, rows])

    return dataclasses.replace(
        attention,
        q=of(attention.q),
        k=of(attention.k),
        q_norm=attention.q_norm[:, rows],
        k_norm=attention.k_norm[:, rows],
    )


def interleaved(params):
    """Permute the four rotated attentions, not the text ones."""
    layers = params.layers
    video, audio = interleaving(4, TINY.video.head_size), interleaving(4, TINY.audio.head_size)
    return dataclasses.replace(
        params,
        layers=dataclasses.replace(
            layers,
            video=dataclasses.replace(layers.video, self_attn=reorder(layers.video.self_attn, video)),
            audio=dataclasses.replace(layers.audio, self_attn=reorder(layers.audio.self_attn, audio)),
            a2v=reorder(layers.a2v, audio),
            v2a=reorder(layers.v2a, audio),
        ),
    )


def test_split_and_interleaved_weights_are_one_function_up_to_a_permutation():
    expected = teach(TINY, CLIP.params, one_sigma(SIGMA))
    assert_close(teach(INTERLEAVED, interleaved(CLIP.params), one_sigma(SIGMA)), expected, LIMIT)
    wrong = teach(INTERLEAVED, CLIP.params, one_sigma(SIGMA))
    assert np.abs(wrong[0] - expected[0]).max() > 1e-2


@pytest.mark.parametrize("seconds", [1, 7200])
def test_moving_both_streams_in_time_changes_nothing(seconds):
    expected = teach(TINY, CLIP.params, one_sigma(SIGMA))
    assert_close(teach(TINY, CLIP.params, one_sigma(SIGMA), offset_seconds=seconds), expected, LIMIT)


def test_a_sink_keeps_its_place_while_the_streams_move():
    clip = Clip(SINKS, frames=4)
    here, moved = (teach(SINKS, clip.params, one_sigma(SIGMA), clip, offset_seconds=s) for s in (0, 1))
    assert np.abs(here[0] - moved[0]).max() > 1e-3


def test_a_student_whose_clip_is_one_block_is_the_teacher():
    clip = Clip(SINKS, frames=4)
    view = build(SINKS, Masked((Block(0, 4, 0, 26),)), clip.positions, one_sigma(SIGMA))
    out, _ = forward(SINKS, clip.params, clip.latents, view, clip.text)
    assert_close(out, teach(SINKS, clip.params, one_sigma(SIGMA), clip), LIMIT)


def test_zeroing_the_sinks_changes_the_output():
    clip = Clip(SINKS, frames=4)
    zeroed = dataclasses.replace(clip.params, sinks=jnp.zeros_like(clip.params.sinks))
    before, after = (teach(SINKS, params, one_sigma(SIGMA), clip) for params in (clip.params, zeroed))
    assert np.abs(before[0] - after[0]).max() > 1e-2


@pytest.mark.parametrize("semantics", [CrossTimestep.CROSS, CrossTimestep.HYBRID])
def test_equal_sigmas_make_all_cross_timesteps_one(semantics):
    config = dataclasses.replace(TINY, cross_timestep=semantics)
    assert_close(teach(config, CLIP.params, one_sigma(SIGMA)), teach(TINY, CLIP.params, one_sigma(SIGMA)), 1e-6)


@pytest.mark.parametrize("semantics", [CrossTimestep.CROSS, CrossTimestep.HYBRID])
def test_unequal_sigmas_tell_the_cross_timesteps_apart(semantics):
    config, sigmas = dataclasses.replace(TINY, cross_timestep=semantics), Sigmas(SIGMA[:, None], SIGMA[::-1, None])
    own, other = teach(TINY, CLIP.params, sigmas), teach(config, CLIP.params, sigmas)
    assert np.abs(own[0] - other[0]).max() > 1e-3


def test_levels_per_sample_frame_and_token_are_one_when_equal():
    frames, audio = CLIP.frames, CLIP.blocks[-1].audio_end
    expected = teach(TINY, CLIP.params, one_sigma(SIGMA))
    for u_video, u_audio in ((frames, audio), (frames * TOKENS, 1)):
        sigmas = Sigmas(*(jnp.repeat(SIGMA[:, None], u, axis=1) for u in (u_video, u_audio)))
        assert_close(teach(TINY, CLIP.params, sigmas), expected, 2e-6)


def test_a_batch_is_its_samples():
    expected = teach(TINY, CLIP.params, one_sigma(SIGMA))
    text = jax.tree.map(lambda x: x[:, ::-1] if x.ndim == 5 else x[::-1], CLIP.text)
    swapped = CLIP.with_values(latents=jax.tree.map(lambda x: x[::-1], CLIP.latents), text=text)
    out = teach(TINY, CLIP.params, one_sigma(SIGMA[::-1]), swapped)
    assert_close([x[::-1] for x in out], expected, 1e-6)
