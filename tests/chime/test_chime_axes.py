"""Latents on one scale: their principal axes become channels, and no picture changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.chime import export_codecs
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.pipeline.presets import TINY_STREAM


@pytest.fixture(scope="module")
def raw():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(3, 500, 8)) @ rng.normal(size=(8, 8)) + rng.normal(size=8), jnp.float32)


def test_channels_are_uncorrelated_and_half_whitened(raw):
    axes, means, scales = (np.asarray(x) for x in export_codecs.principal_axes(raw))
    flat = np.asarray(raw.reshape(-1, 8), np.float64)
    covariance = np.cov(((flat @ axes - means) / scales).T)
    before = np.sort(np.linalg.eigvalsh(np.cov(flat.T)))[::-1]
    variances = np.diag(covariance)
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-3)
    np.testing.assert_allclose(variances / variances[0], np.sqrt(before / before[0]), rtol=1e-2)
    assert variances.mean() == pytest.approx(1, rel=1e-3)


def test_a_turned_codec_is_the_same_codec_in_other_axes(raw):
    vae = VideoVAE(TINY_STREAM.video_vae)
    pixels = jax.random.uniform(jax.random.key(0), (1, 9, 64, 64, 3), minval=-1.0)
    variables = vae.init(jax.random.key(1), pixels)
    axes, _, _ = export_codecs.principal_axes(raw)
    turned = {**variables, "params": export_codecs.turn(variables["params"], axes)}
    moments = jax.jit(lambda v: vae.apply(v, pixels, method="moments")[0])
    before, after = moments(variables), moments(turned)
    np.testing.assert_allclose(before @ axes, after, atol=1e-5)
    decode = jax.jit(lambda v, z: vae.apply(v, z, method="decode"))
    np.testing.assert_allclose(decode(variables, before), decode(turned, after), atol=1e-4)
