"""Vocoder: sizes, look-ahead, and that a stream of pieces is the whole clip."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.codecs.bandwidth import ExtensionConfig, fourier_basis
from omniforcing_jax.codecs.generator import Activation, Final, GeneratorConfig
from omniforcing_jax.codecs.snake import low_pass
from omniforcing_jax.codecs.vocoder import (
    CHIME_VOCODER,
    LTX2_VOCODER,
    LTX23_VOCODER,
    Vocoder,
    VocoderConfig,
    flush,
    push,
)

TINY = VocoderConfig(
    mel_bins=4,
    channels=(8, 6, 4),
    rates=(3, 2),
    kernels=(7, 6),
    resblock_kernels=(3, 5),
    resblock_dilations=((1, 3), (1,)),
)
SNAKES = {
    "activation": Activation.SNAKE,
    "final_bias": False,
    "resblock_kernels": (3,),
    "resblock_dilations": ((1, 2),),
}
EXTENDED = VocoderConfig(
    mel_bins=4,
    channels=(6, 4),
    rates=(8,),
    kernels=(10,),
    final=Final.CLAMP,
    **SNAKES,
    extension=ExtensionConfig(
        generator=GeneratorConfig(mel_bins=3, channels=(4, 3), rates=(8,), kernels=(12,), final=Final.NONE, **SNAKES),
        window=32,
        hop=4,
    ),
)
ROWS = 40


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def abstract(config):
    mel = jnp.zeros((1, 2, config.mel_bins, config.audio_channels))
    return jax.eval_shape(Vocoder(config).init, jax.random.key(0), mel)


def draw(config):
    leaves, tree = jax.tree.flatten(abstract(config)["params"])
    scales = [np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2 for leaf in leaves]
    return tree.unflatten([normal(i, *x.shape) * s for i, (x, s) in enumerate(zip(leaves, scales, strict=True))])


@pytest.fixture(scope="module")
def variables():
    return {"params": draw(TINY)}


@pytest.fixture(scope="module")
def extended():
    """Variables with random weights beside the filters and bases that belong to them."""
    constants = {
        "forward_basis": fourier_basis(EXTENDED.extension.window),
        "mel_basis": abs(np.random.default_rng(0).normal(size=(3, EXTENDED.extension.window // 2 + 1))),
        **dict.fromkeys(("upsample", "downsample"), low_pass()),
    }
    fill = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(constants[path[-1].key], leaf.dtype), abstract(EXTENDED)["constants"]
    )
    return {"params": draw(EXTENDED), "constants": fill}


whole = jax.jit(Vocoder(TINY).apply)
push_next = jax.jit(functools.partial(push, TINY), donate_argnums=2)
flush_last = jax.jit(functools.partial(flush, TINY))
whole_extended = jax.jit(Vocoder(EXTENDED).apply)
push_extended = jax.jit(functools.partial(push, EXTENDED), donate_argnums=2)
flush_extended = jax.jit(functools.partial(flush, EXTENDED))


def in_pieces(step, variables, mel, sizes, config=TINY, last=flush_last):
    """Stream and return everything that came out, the silence before the start included."""
    carry, start, pieces = None, 0, []
    for size in sizes:
        samples, carry = step(variables, mel[:, start : start + size], carry)
        assert samples.shape[1] == size * config.samples_per_row
        pieces.append(samples)
        start += size
    assert start == mel.shape[1]
    return jnp.concatenate([*pieces, last(variables, carry)], axis=1)


def test_the_full_size_has_the_references_parameter_count():
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(LTX2_VOCODER))) == 55_592_802


def test_the_presets_make_24_and_48_khz_from_100_rows_a_second():
    assert (LTX23_VOCODER.first_rate, LTX23_VOCODER.sample_rate) == (16_000, 48_000)
    assert (LTX2_VOCODER.sample_rate, CHIME_VOCODER.sample_rate) == (24_000, 24_000)


def test_a_stream_of_chimes_lags_by_less_than_40_ms():
    assert (CHIME_VOCODER.delay, CHIME_VOCODER.lookahead_rows) == (845, 4)


def test_a_sample_is_final_once_the_rows_within_its_delay_are_there_and_not_before(variables):
    @jax.jit
    @jax.grad
    def influence(mel, sample):
        return Vocoder(TINY).apply(variables, mel)[0, sample, 0]

    mel, known = normal(1, 1, ROWS, 4, 2), 17
    first_open = known * TINY.samples_per_row - TINY.delay
    reach = [
        int(jnp.flatnonzero(influence(mel, sample).any((0, 2, 3))).max()) for sample in (first_open - 1, first_open)
    ]
    assert reach == [known - 1, known]


@pytest.mark.parametrize("sizes", [(1, 13, 13, 13), (14, 13, 13), (*[1] * 4, 13, 13, *[1] * 10)])
def test_a_stream_equals_the_whole_clip_once_its_delay_is_dropped(variables, sizes, strict):
    mel = normal(2, 1, ROWS, 4, 2)
    streamed = in_pieces(push_next, variables, mel, sizes)
    np.testing.assert_allclose(streamed[:, TINY.delay :], whole(variables, mel), atol=1e-4)


@pytest.mark.parametrize("sizes", [(1, 13, 13, 13), (14, 13, 13)])
def test_an_extended_stream_equals_the_whole_clip_once_its_delay_is_dropped(extended, sizes, strict):
    mel = normal(2, 1, ROWS, 4, 2)
    streamed = in_pieces(push_extended, extended, mel, sizes, EXTENDED, flush_extended)
    expected = whole_extended(extended, mel)
    np.testing.assert_allclose(streamed[:, EXTENDED.delay :], expected, atol=1e-4)
    np.testing.assert_array_equal(streamed[:, : EXTENDED.delay], 0)
    assert jnp.std(expected) > 0.05


def test_an_extended_sample_depends_on_no_row_behind_its_delay(extended):
    known, mel = 20, normal(1, 1, ROWS, 4, 2)
    final = known * EXTENDED.samples_per_row - EXTENDED.delay
    changed = whole_extended(extended, mel.at[:, known:].add(1.0)) != whole_extended(extended, mel)
    assert int(jnp.flatnonzero(changed.any((0, 2))).min()) >= final > 0


def test_a_clip_shorter_than_the_look_ahead_streams_as_well(variables):
    mel = normal(3, 1, 1, 4, 2)
    streamed = in_pieces(push_next, variables, mel, (1,))
    assert TINY.lookahead_rows > 1
    np.testing.assert_allclose(streamed[:, TINY.delay :], whole(variables, mel), atol=1e-4)


def test_samples_before_the_start_are_exact_silence(variables):
    streamed = in_pieces(push_next, variables, normal(4, 1, ROWS, 4, 2), (1, 13, 13, 13))
    np.testing.assert_array_equal(streamed[:, : TINY.delay], 0)
    assert jnp.all(streamed[:, TINY.delay] != 0)


def test_a_carry_keeps_its_shapes_so_a_stream_needs_two_programs(variables):
    _, first = jax.eval_shape(push_next, variables, jnp.zeros((2, 1, 4, 2)), None)
    _, second = jax.eval_shape(push_next, variables, jnp.zeros((2, 13, 4, 2)), first)
    assert first == second


def test_a_carry_is_donated_to_the_next_step(variables):
    mel = normal(6, 1, ROWS, 4, 2)
    carry = push_next(variables, mel[:, :1], None)[1]
    push_next(variables, mel[:, 1:14], carry)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(carry))


def test_a_log_mel_with_other_bands_is_refused(variables):
    with pytest.raises(ValueError, match=r"expected \[B, rows, 4, 2\]"):
        whole(variables, normal(0, 1, 5, 64, 2))


def test_a_config_survives_json():
    for config in (TINY, EXTENDED, LTX23_VOCODER):
        assert VocoderConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"rates": (3, 2, 2)}, "one kernel per rate"),
        ({"kernels": (7, 5)}, "kernel 5 at rate 2"),
        ({"resblock_kernels": (3,)}, "resblock_dilations"),
        ({"resblock_kernels": (3, 4)}, "odd"),
        ({"extension": dataclasses.replace(EXTENDED.extension, hop=8)}, "hop=8: must divide the 6"),
    ],
)
def test_a_config_that_makes_no_sense_names_the_rule(change, rule):
    with pytest.raises(ValueError, match=rule):
        dataclasses.replace(TINY, **change)
