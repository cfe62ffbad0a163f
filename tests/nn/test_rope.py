import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.rotary_rows import interleaving
from omniforcing_jax.config import GridPrecision, RotaryConfig, RotaryKind
from omniforcing_jax.layout import PREFIX, Block
from omniforcing_jax.model.positions import make_positions, rotaries, shift_phases, shift_rotations
from omniforcing_jax.nn.rope import Rotary, frequencies, rotate, with_identity
from omniforcing_jax.pipeline.presets import TINY
from tests.phases import published_frequencies

KINDS = [RotaryKind.SPLIT, RotaryKind.INTERLEAVED]


def network(kind):
    return dataclasses.replace(TINY, rotary=RotaryConfig(kind=kind))


combined, turned_by = (jax.jit(f, static_argnums=0) for f in (rotaries, shift_rotations))
rotate_all = jax.jit(rotate)


def tables(config, block, grid=(2, 3), **kwargs):
    return combined(config, make_positions(config, block, grid, **kwargs))


def heads_of(seed, tokens, size, batch=2):
    return jax.random.normal(jax.random.key(seed), (batch, tokens, 4, size))


def test_the_video_table_has_the_references_values():
    video = tables(TINY, Block(0, 3, 0, 1), (2, 4)).video
    head_0 = [1, 1, 0.0327190, 0.0735645, 0.0735645, -0.4192453, -0.5196470, -0.5196470]
    head_3 = [0.9999148, 0.9999148, 0.9959713, -0.8494871, -0.8494871, 0.5001438, 0.9239354, 0.9239354]
    np.testing.assert_allclose(video.cos[0, 13, 0], head_0, atol=1e-3)
    np.testing.assert_allclose(video.sin[0, 13, 3], head_3, atol=1e-3)


def test_frequencies_cover_four_decades_from_half_pi():
    grid = frequencies(RotaryConfig(), 3, 4096)
    assert grid.shape == (682,)
    np.testing.assert_allclose(grid[[0, -1]], [1.5707964, 15707.963], rtol=1e-7)


@pytest.mark.parametrize(("axes", "width"), [(3, 4096), (1, 2048)])
def test_frequencies_are_the_float32_numbers_nearest_to_the_formula(axes, width):
    found = frequencies(RotaryConfig(), axes, width)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, published_frequencies(axes, width).astype(np.float64))


def test_the_float32_grid_is_close_to_but_not_the_float64_grid():
    fine, coarse = (frequencies(RotaryConfig(grid=g), 3, 4096) for g in (GridPrecision.FLOAT64, GridPrecision.FLOAT32))
    np.testing.assert_allclose(coarse, fine, rtol=2e-6)
    assert np.abs(coarse - fine).max() > 1e-4


def test_a_width_too_small_for_its_axes_is_refused():
    with pytest.raises(ValueError, match="width=8: leaves 1 frequencies for each of 3 axes"):
        frequencies(RotaryConfig(), 3, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_rotation_turns_each_pair_by_its_angle(kind, strict):
    angle = np.linspace(0, 3, 4 * 4).reshape(1, 1, 4, 4).astype(np.float32)
    x = heads_of(0, 1, 8)
    y = np.asarray(rotate(x, Rotary(jnp.cos(angle), jnp.sin(angle), kind)))
    first, second = (slice(0, 4), slice(4, 8)) if kind is RotaryKind.SPLIT else (slice(0, 8, 2), slice(1, 8, 2))
    pairs = np.asarray(x)[..., first] + 1j * np.asarray(x)[..., second]
    turned = pairs * np.exp(1j * angle)
    np.testing.assert_allclose(y[..., first], turned.real, atol=1e-6)
    np.testing.assert_allclose(y[..., second], turned.imag, atol=1e-6)


def test_interleaved_rows_are_split_rows_reordered():
    rows, angle = interleaving(4, 16), np.linspace(0, 3, 32).reshape(1, 1, 4, 8)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x = heads_of(0, 5, 16)
    reordered = x.reshape(2, 5, 64)[..., rows].reshape(x.shape)
    split = rotate(x, Rotary(cos, sin, RotaryKind.SPLIT)).reshape(2, 5, 64)[..., rows].reshape(x.shape)
    np.testing.assert_allclose(rotate(reordered, Rotary(cos, sin, RotaryKind.INTERLEAVED)), split, atol=1e-6)


def test_a_blocks_tables_are_a_slice_of_the_clips():
    clip, block = tables(TINY, Block(0, 10, 0, 76)), tables(TINY, PREFIX.block(2))
    for name, rows in (("video", slice(24, 42)), ("cross_video", slice(24, 42)), ("audio", slice(26, 51))):
        np.testing.assert_array_equal(getattr(block, name).cos, getattr(clip, name).cos[:, rows])


@pytest.mark.parametrize("kind", KINDS)
def test_hour_two_is_as_exact_as_second_two(kind):
    config = network(kind)
    q, k = heads_of(0, 18, 16), heads_of(1, 18, 16)

    def logits(offset):
        now, before = (tables(config, PREFIX.block(b), offset_seconds=offset).video for b in (3, 1))
        return jnp.einsum("btnh,bsnh->bnts", rotate(q, now), rotate(k, before))

    np.testing.assert_allclose(logits(7200), logits(0), atol=2e-5)


def test_an_unrotated_sink_is_a_token_at_ten_seconds():
    audio = tables(TINY, Block(0, 1, 0, 0), offset_seconds=0).audio
    sink = with_identity(audio, 1)
    latent = (10.0 * 100 + 1) / 4  # the audio latent whose midpoint is at 10 s
    at_ten = tables(TINY, Block(0, 1, 250, 251), offset_seconds=10.0 - (4 * 250 - 1) / 100).audio
    assert abs(latent - 250) < 1
    np.testing.assert_allclose(sink.cos, at_ten.cos, atol=1e-7)
    np.testing.assert_allclose(sink.sin, at_ten.sin, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [3, 7198])
def test_turning_a_rotated_key_is_placing_it_later(kind, seconds, strict):
    config, block = network(kind), PREFIX.block(1)
    here, later = tables(config, block), tables(config, block, offset_seconds=seconds)
    shift = turned_by(config, shift_phases(config, seconds))
    for name, site, tokens, size in (
        ("video", shift.video_self, 18, 16),
        ("audio", shift.audio_self, 25, 8),
        ("cross_audio", shift.a2v, 25, 8),
        ("cross_video", shift.v2a, 18, 8),
    ):
        keys = heads_of(2, tokens, size)
        turned = rotate_all(rotate_all(keys, getattr(here, name)), site)
        np.testing.assert_allclose(turned, rotate_all(keys, getattr(later, name)), atol=2e-6)


def test_turning_by_nothing_is_the_exact_identity():
    keys = heads_of(0, 5, 16)
    np.testing.assert_array_equal(rotate(keys, shift_rotations(TINY, shift_phases(TINY, 0)).video_self), keys)


def test_rotation_works_in_float32_inside_low_precision(strict):
    x = heads_of(0, 18, 16).astype(jnp.bfloat16)
    rotary = tables(TINY, PREFIX.block(1)).video
    wide = rotate(x.astype(jnp.float32), rotary).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(rotate(x, rotary), np.float32), np.asarray(wide, np.float32))
