"""The video VAE: its shapes and sizes, its orders, its memory in a stream, its refusals."""

import dataclasses
import itertools

import chex
import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import fill_codec

from omniforcing_jax.codecs import conv
from omniforcing_jax.codecs.folding import fold, patchify, unfold, unpatchify
from omniforcing_jax.codecs.video_config import ALL, TIME, BlockKind, VAEBlock, compress, res
from omniforcing_jax.codecs.video_vae import (
    CHIME_VIDEO_VAE,
    LTX2_VIDEO_VAE,
    LTX23_VIDEO_VAE,
    VideoVAE,
    VideoVAEConfig,
    decode_first,
    decode_next,
    encode_first,
    encode_next,
)

CONFIG = VideoVAEConfig(
    latent_channels=3,
    patch_size=2,
    encoder_base_channels=4,
    decoder_base_channels=1,
    encoder_blocks=(res(1), compress(TIME), compress(ALL, 1)),
    decoder_blocks=(compress(TIME), compress(ALL, 1), res(1)),
    causal_decoder=True,
    decoder_padding=conv.SpatialPadding.ZEROS,
)
FRAMES, LATENTS = 21, 6


SIDE = 2 * CONFIG.spatial_compression
VARIABLES = fill_codec(VideoVAE(CONFIG), jnp.zeros((1, 1, SIDE, SIDE, 3)), (0.5, 1.5))
PIXELS = jax.random.uniform(jax.random.key(1), (2, FRAMES, 8, 12, 3), minval=-1)
RAW = jax.random.normal(jax.random.key(2), (2, LATENTS, 2, 3, 3))


VAE = VideoVAE(CONFIG)
encode = jax.jit(lambda pixels: VAE.apply(VARIABLES, pixels, method="encode"))
moments = jax.jit(lambda pixels: VAE.apply(VARIABLES, pixels, method="moments"))
decode = jax.jit(lambda latents: VAE.apply(VARIABLES, latents, method="decode"))
render = jax.jit(lambda latents: VAE.apply(VARIABLES, latents, method="render"))
encode_start = jax.jit(lambda x: encode_first(CONFIG, VARIABLES, x))
encode_more = jax.jit(lambda x, carry: encode_next(CONFIG, VARIABLES, x, carry))
decode_start = jax.jit(lambda x: decode_first(CONFIG, VARIABLES, x))
decode_more = jax.jit(lambda x, carry: decode_next(CONFIG, VARIABLES, x, carry))


def streamed(start, more, x, sizes):
    pieces = jnp.split(x, np.cumsum(sizes)[:-1], axis=1)
    y, carry = start(pieces[0])
    out = [y]
    for piece in pieces[1:]:
        y, carry = more(piece, carry)
        out.append(y)
    return jnp.concatenate(out, axis=1)


def assert_close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_latents_decoded_in_blocks_give_the_whole_clip(strict):
    assert_close(streamed(decode_start, decode_more, RAW, (2, 1, 1, 2)), decode(RAW))


def test_pixels_encoded_in_blocks_give_the_whole_clip(strict):
    assert_close(streamed(encode_start, encode_more, PIXELS, (1, 4, 8, 8)), encode(PIXELS))


def test_all_later_blocks_are_one_program_with_a_memory_of_constant_shape():
    more = jax.jit(chex.assert_max_traces(decode_next, n=1), static_argnums=0, donate_argnums=3)
    _, carry = decode_start(RAW[:, :2])
    shapes = jax.tree.map(jnp.shape, carry)
    for _ in range(4):
        given = carry
        _, carry = more(CONFIG, VARIABLES, RAW[:, :1], carry)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        assert jax.tree.map(jnp.shape, carry) == shapes


def test_a_later_latent_never_changes_an_earlier_frame():
    changed = decode(RAW.at[:, 3:].add(1.0))
    np.testing.assert_array_equal(changed[:, :9], decode(RAW)[:, :9])
    assert jnp.all(jnp.any(changed[:, 9:] != decode(RAW)[:, 9:], axis=(0, 2, 3, 4)))


def test_a_later_frame_never_changes_an_earlier_latent():
    changed = encode(PIXELS.at[:, 9:].multiply(-1.0))
    np.testing.assert_array_equal(changed[:, :3], encode(PIXELS)[:, :3])


def test_statistics_turn_raw_latents_into_normalised_ones():
    mean, std = (np.asarray(VARIABLES["stats"][name]) for name in ("latents_mean", "latents_std"))
    raw = np.asarray(moments(PIXELS).mean)
    assert_close(encode(PIXELS), (raw - mean) / std)
    assert_close(decode(RAW), render(jnp.asarray(np.asarray(RAW) * std + mean)))


def test_latents_share_one_log_variance_per_position():
    assert moments(PIXELS).mean.shape == (2, 6, 2, 3, 3)
    assert moments(PIXELS).logvar.shape == (2, 6, 2, 3, 1)


def test_bfloat16_pixels_are_computed_in_bfloat16(strict):
    assert encode(PIXELS.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert decode(RAW.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("border", [0, 1])
def test_the_sum_over_taps_is_the_direct_convolution_in_value_and_gradient(border):
    keys = jax.random.split(jax.random.key(3))
    x, kernel = jax.random.normal(keys[0], (2, 5, 6, 4, 3)), jax.random.normal(keys[1], (3, 3, 3, 3, 5))
    cotangent = jnp.ones((2, 3, 4 + 2 * border, 2 + 2 * border, 5)).at[..., 2].set(-1.0)

    def value_and_pullback(form):
        value, pull = jax.vjp(lambda x, kernel: form(x, kernel, border), x, kernel)
        return value, pull(cotangent)

    direct, taps = (jax.jit(value_and_pullback, static_argnums=0)(form) for form in (conv.direct, conv.sum_over_taps))
    chex.assert_trees_all_close(direct, taps, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 3), ("cuda", 1), ("tpu", 1)])
def test_an_accelerator_gets_one_direct_convolution_and_a_cpu_one_per_tap(platform, convolutions):
    x, kernel = jax.ShapeDtypeStruct((2, 5, 6, 4, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 3, 5), jnp.float32)
    traced = jax.jit(lambda x, kernel: conv.convolve(x, kernel, 1)).trace(x, kernel)
    assert traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution") == convolutions


def test_a_border_by_index_is_the_border_by_slices_in_value_and_gradient():
    x = jax.random.normal(jax.random.key(6), (2, 3, 4, 5, 2))
    cotangent = jax.random.normal(jax.random.key(7), (2, 3, 6, 7, 2))

    def value_and_pullback(form):
        value, pull = jax.vjp(form, x)
        return value, pull(cotangent)

    by_index, by_slices = (jax.jit(value_and_pullback, static_argnums=0)(f) for f in (conv.by_index, conv.by_slices))
    chex.assert_trees_all_close(by_index, by_slices, atol=1e-6)


@pytest.mark.parametrize(("platform", "gathers"), [("cpu", 0), ("cuda", 2), ("tpu", 0)])
def test_a_gpu_reads_a_border_by_index_and_keeps_the_scale_of_a_norm_apart(platform, gathers):
    traced = jax.jit(lambda x: conv.reflect(conv.pixel_norm_before_border(x))).trace(
        jax.ShapeDtypeStruct((1, 3, 4, 5, 2), jnp.float32)
    )
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count('"stablehlo.gather"(') == gathers
    assert text.count("optimization_barrier") == (platform == "cuda")


def test_a_whole_clip_repeats_the_first_frame_in_front():
    x = jax.random.normal(jax.random.key(4), (1, 4, 3, 3, 2))
    layer = conv.TemporalConv(2, conv.SpatialPadding.ZEROS)
    variables = layer.init(jax.random.key(5), x)
    longer = jnp.concatenate([x[:, :1], x[:, :1], x], axis=1)
    apply = jax.jit(layer.apply)
    assert_close(apply(variables, longer)[:, 2:], apply(variables, x))


def test_fold_orders_channels_as_the_reference():
    x = jax.random.normal(jax.random.key(6), (2, 4, 6, 8, 3))
    folded = einops.rearrange(x, "b (d p1) (h p2) (w p3) c -> b d h w (c p1 p2 p3)", p1=2, p2=3, p3=4)
    np.testing.assert_array_equal(fold(x, (2, 3, 4)), folded)
    np.testing.assert_array_equal(unfold(folded, (2, 3, 4)), x)


def test_patchify_puts_the_width_offset_before_the_height_offset():
    x = jax.random.normal(jax.random.key(7), (2, 3, 8, 12, 3))
    patches = einops.rearrange(x, "b t (h q) (w r) c -> b t h w (c r q)", q=4, r=4)
    np.testing.assert_array_equal(patchify(x, 4), patches)
    np.testing.assert_array_equal(unpatchify(patches, 4), x)


def test_the_full_size_has_the_reference_s_parameter_counts_and_compression():
    config = LTX2_VIDEO_VAE
    pixels = jax.ShapeDtypeStruct((1, 9, 64, 96, 3), jnp.float32)
    params = jax.eval_shape(VideoVAE(config).init, jax.random.key(0), pixels)["params"]
    counts = {half: sum(leaf.size for leaf in jax.tree.leaves(params[half])) for half in params}
    assert counts == {"encoder": 694_098_881, "decoder": 528_380_720}
    assert (config.temporal_compression, config.spatial_compression) == (8, 32)


def test_the_decoders_reach_is_the_reference_s():
    reaches = [config.decoder_reach for config in (LTX2_VIDEO_VAE, LTX23_VIDEO_VAE, CHIME_VIDEO_VAE)]
    assert reaches == [22, 14, 0]


def test_chime_compresses_8_times_in_time_and_16_times_in_space():
    pixels = jax.ShapeDtypeStruct((1, 25, 64, 64, 3), jnp.float32)
    vae = VideoVAE(CHIME_VIDEO_VAE)
    variables = jax.eval_shape(vae.init, jax.random.key(0), pixels)
    latents = jax.eval_shape(lambda v, x: vae.apply(v, x, method="encode"), variables, pixels)
    assert latents.shape == (1, 4, 4, 4, 32)
    assert (CHIME_VIDEO_VAE.temporal_compression, CHIME_VIDEO_VAE.spatial_compression) == (8, 16)


@pytest.mark.parametrize("config", [CONFIG, LTX2_VIDEO_VAE, LTX23_VIDEO_VAE, CHIME_VIDEO_VAE])
def test_a_config_survives_json(config):
    assert VideoVAEConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 8, 8, 3), "pixels have 8 frames, expected 4k \\+ 1 in a clip"),
        ((1, 5, 10, 8, 3), "pixels have height 10, expected a multiple of 4"),
        ((1, 5, 8, 7, 3), "pixels have width 7, expected a multiple of 4"),
    ],
)
def test_pixels_that_do_not_divide_are_refused_by_number_and_rule(shape, message):
    with pytest.raises(ValueError, match=message):
        encode(jnp.zeros(shape))


def test_a_later_block_with_a_first_frame_is_refused():
    _, carry = encode_start(PIXELS[:, :1])
    with pytest.raises(ValueError, match="pixels have 5 frames, expected a multiple of 4 after the first block"):
        encode_next(CONFIG, VARIABLES, PIXELS[:, :5], carry)


BOTH_WAYS = dataclasses.replace(CONFIG, causal_decoder=False)
LONG = jax.random.normal(jax.random.key(8), (1, 12, 2, 3, 3))
EXACT = BOTH_WAYS.decoder_reach
both_ways = jax.jit(lambda latents: VideoVAE(BOTH_WAYS).apply(VARIABLES, latents, method="decode"))
ahead_first = jax.jit(lambda x, ahead: decode_first(BOTH_WAYS, VARIABLES, x, ahead), static_argnums=1)
ahead_next = jax.jit(lambda x, carry, ahead: decode_next(BOTH_WAYS, VARIABLES, x, carry, ahead), static_argnums=2)


def looking_ahead(latents, ahead):
    """Decode in calls of two new latents each, and the rest as the end of the clip."""
    y, carry = ahead_first(latents[:, : 2 + ahead], ahead)
    out, done = [y], 2
    while done + 2 + ahead < latents.shape[1]:
        y, carry = ahead_next(latents[:, done : done + 2 + ahead], carry, ahead)
        out, done = [*out, y], done + 2
    return jnp.concatenate([*out, ahead_next(latents[:, done:], carry, 0)[0]], axis=1)


def test_a_decoder_that_sees_both_sides_streams_the_whole_clip_once_it_looks_far_enough_ahead(strict):
    assert_close(looking_ahead(LONG, EXACT), both_ways(LONG))


def test_the_error_of_looking_less_far_ahead_shrinks():
    errors = [float(jnp.abs(looking_ahead(LONG, ahead) - both_ways(LONG)).max()) for ahead in (0, 2, EXACT)]
    assert all(more > 4 * less for more, less in itertools.pairwise(errors))
    assert errors[0] > 0.1


def test_what_is_kept_while_looking_ahead_keeps_its_shapes():
    _, carry = ahead_first(LONG[:, :4], 2)
    _, after = ahead_next(LONG[:, 2:6], carry, 2)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry)


def test_a_look_ahead_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="ahead=1: must be 0, a causal decoder has no look-ahead"):
        decode_first(CONFIG, VARIABLES, RAW, 1)
    with pytest.raises(ValueError, match="ahead=2: must be from 0 to 1, fewer than the 2 latent frames given"):
        decode_first(BOTH_WAYS, VARIABLES, RAW[:, :2], 2)


def test_latents_that_cannot_be_decoded_are_refused():
    with pytest.raises(ValueError, match="video latents have 4 channels, expected 3"):
        decode(jnp.zeros((1, 2, 2, 2, 4)))
    reflecting = VideoVAE(dataclasses.replace(CONFIG, decoder_padding=conv.SpatialPadding.REFLECT))
    with pytest.raises(ValueError, match="video latents are 1 x 3, expected at least 2 x 2"):
        reflecting.apply(VARIABLES, jnp.zeros((1, 2, 1, 3, 3)), method="decode")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_blocks": (compress(ALL),)}, "decoder_blocks=.*must expand as much"),
        ({"encoder_base_channels": 3}, "encoder compress_all output width=6: must be a multiple of 8"),
        ({"encoder_blocks": (VAEBlock(kind=BlockKind.ALL),)}, "must expand as much|must be true"),
        ({"patch_size": 0}, "VideoVAEConfig.patch_size=0"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
