"""Audio VAE: sizes, causality, and that a stream of blocks is the whole clip."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.codecs.audio_vae import (
    CHIME_AUDIO_VAE,
    LTX2_AUDIO_VAE,
    AudioVAE,
    AudioVAEConfig,
    decode_block,
    encode_block,
)

TINY = AudioVAEConfig(mel_bins=16, base_channels=4, z_channels=3, res_blocks=1)
LATENTS = 12
ROWS = TINY.mel_rows(LATENTS)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def abstract(config):
    mel = jnp.zeros((1, 5, config.mel_bins, config.audio_channels))
    return jax.eval_shape(AudioVAE(config).init, jax.random.key(0), mel)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    """Random everything: kernels of unit gain, biases, statistics."""
    leaves, tree = jax.tree.flatten(abstract(TINY))
    scales = [np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.3 for leaf in leaves]
    drawn = tree.unflatten([normal(i, *x.shape) * s for i, (x, s) in enumerate(zip(leaves, scales, strict=True))])
    return {**drawn, "stats": {**drawn["stats"], "std": 0.5 + jnp.abs(drawn["stats"]["std"])}}


@functools.partial(jax.jit, static_argnames="method")
def whole(variables, x, method):
    return AudioVAE(TINY).apply(variables, x, method=method)


decode_next = jax.jit(functools.partial(decode_block, TINY))
encode_next = jax.jit(functools.partial(encode_block, TINY))


def in_pieces(step, variables, x, sizes):
    carry, start, pieces = None, 0, []
    for size in sizes:
        y, carry = step(variables, x[:, start : start + size], carry)
        pieces.append(y)
        start += size
    assert start == x.shape[1]
    return jnp.concatenate(pieces, axis=1)


def test_the_full_size_has_the_references_parameter_counts():
    params = abstract(LTX2_AUDIO_VAE)["params"]
    assert count(params["encoder"]) == 21_333_008
    assert count(params["decoder"]) == 31_915_138


def test_chime_codes_four_rows_to_64_numbers():
    assert (CHIME_AUDIO_VAE.latent_size, CHIME_AUDIO_VAE.rows_per_latent) == (64, 4)
    assert CHIME_AUDIO_VAE.widths == (16, 32, 64)


def test_one_row_is_one_latent_and_every_four_rows_are_one_more(variables):
    for latents in (1, 2, 7):
        mel = jax.ShapeDtypeStruct((2, TINY.mel_rows(latents), 16, 2), jnp.float32)
        code = jax.eval_shape(lambda x: AudioVAE(TINY).apply(variables, x, method="encode"), mel)
        assert code.shape == (2, latents, TINY.latent_size)
        assert jax.eval_shape(lambda x: AudioVAE(TINY).apply(variables, x, method="decode"), code).shape == mel.shape


@pytest.mark.parametrize("sizes", [(1, 5, 5, 1), (6, 5, 1)])
def test_a_decoded_stream_equals_the_whole_clip(variables, sizes, strict):
    latents = normal(1, 2, LATENTS, TINY.latent_size)
    streamed = in_pieces(decode_next, variables, latents, sizes)
    np.testing.assert_allclose(streamed, whole(variables, latents, "decode"), atol=1e-4)


@pytest.mark.parametrize("sizes", [(1, 20, 20, 4), (21, 20, 4)])
def test_an_encoded_stream_equals_the_whole_clip(variables, sizes, strict):
    mel = normal(2, 2, ROWS, 16, 2)
    streamed = in_pieces(encode_next, variables, mel, sizes)
    np.testing.assert_allclose(streamed, whole(variables, mel, "encode"), atol=1e-4)


@pytest.mark.parametrize(("step", "shape"), [(decode_next, (5, 12)), (encode_next, (20, 16, 2))])
def test_a_carry_keeps_its_shapes_so_a_stream_needs_two_programs(variables, step, shape):
    _, first = jax.eval_shape(step, variables, jnp.zeros((2, 1, *shape[1:])), None)
    _, second = jax.eval_shape(step, variables, jnp.zeros((2, *shape)), first)
    assert first == second


def test_a_later_latent_leaves_earlier_rows_bit_equal(variables):
    latents = normal(4, 1, LATENTS, TINY.latent_size)
    changed = latents.at[:, 7].add(1.0)
    before, after = (whole(variables, x, "decode") for x in (latents, changed))
    first_row = TINY.mel_rows(7)
    np.testing.assert_array_equal(before[:, :first_row], after[:, :first_row])
    assert jnp.all(jnp.any(before[:, first_row : first_row + 4] != after[:, first_row : first_row + 4], axis=(2, 3)))


def test_the_diffusion_model_sees_latents_with_their_statistics_removed(variables):
    mel = normal(5, 1, ROWS, 16, 2)
    moments, stats = whole(variables, mel, "moments"), variables["stats"]
    expected = (moments.mean - stats["mean"][None, None]) / stats["std"][None, None]
    np.testing.assert_allclose(whole(variables, mel, "encode"), expected, atol=1e-5)
    decoded = whole(variables, moments.mean, "decode_raw")
    np.testing.assert_allclose(whole(variables, expected, "decode"), decoded, atol=1e-4)


def test_every_parameter_is_trained_by_reconstruction(variables):
    mel = normal(6, 1, ROWS, 16, 2)

    def loss(params):
        return jnp.sum(jnp.square(AudioVAE(TINY).apply({**variables, "params": params}, mel)))

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    last = gradient["encoder"]["conv_out"]["conv"]
    # The second half of the encoder's last layer is the log-variance, which a decoded mean does not use.
    last["kernel"], last["bias"] = (last[name][..., : TINY.z_channels] for name in ("kernel", "bias"))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_a_clip_with_a_part_of_a_latent_frame_is_refused(variables):
    with pytest.raises(ValueError, match=r"44 rows, expected 1 \+ a multiple of 4"):
        whole(variables, normal(0, 1, 44, 16, 2), "encode")


def test_a_log_mel_with_other_bands_is_refused(variables):
    with pytest.raises(ValueError, match=r"expected \[B, rows, 16, 2\]"):
        whole(variables, normal(0, 1, 5, 64, 2), "encode")


def test_latents_of_another_width_are_refused(variables):
    with pytest.raises(ValueError, match="128 wide, expected 12"):
        whole(variables, normal(0, 1, 5, 128), "decode")


def test_a_config_survives_json_and_unknown_keys_do_not():
    assert AudioVAEConfig.from_json(TINY.to_json()) == TINY
    with pytest.raises(ValueError, match="resolution"):
        AudioVAEConfig.from_json('{"resolution": 256}')


@pytest.mark.parametrize(
    ("change", "culprit"),
    [({"mel_bins": 66}, "mel_bins"), ({"multipliers": ()}, "multipliers"), ({"z_channels": 0}, "z_ch")],
)
def test_a_config_that_makes_no_sense_names_the_field(change, culprit):
    with pytest.raises(ValueError, match=culprit):
        AudioVAEConfig(**change)
