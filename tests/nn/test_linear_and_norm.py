import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax.nn.linear import Linear, project
from omniforcing_jax.nn.norm import layer_norm, rms_norm
from tests.rounding import assert_rounded_once

RNG = np.random.default_rng(0)


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def test_a_projection_contracts_the_last_axes(strict):
    p, x = Linear(w=draw(5, 7), b=draw(5)), draw(2, 3, 7)
    np.testing.assert_allclose(project(p, x), np.asarray(x) @ np.asarray(p.w).T + np.asarray(p.b), atol=1e-5)


def test_a_projection_without_bias_adds_nothing(strict):
    p, x = Linear(w=draw(5, 7), b=None), draw(3, 7)
    np.testing.assert_allclose(project(p, x), np.asarray(x) @ np.asarray(p.w).T, atol=1e-5)


def test_a_projection_computes_in_the_type_of_its_input(strict):
    p = Linear(w=draw(5, 7), b=draw(5))
    assert project(p, draw(3, 7, dtype=jnp.bfloat16)).dtype == jnp.bfloat16


def test_rms_norm_divides_by_the_root_mean_square(strict):
    x, weight = draw(4, 6), draw(6)
    expected = np.asarray(x) / np.sqrt((np.asarray(x) ** 2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(rms_norm(x), expected, atol=1e-6)
    np.testing.assert_allclose(rms_norm(x, weight), expected * np.asarray(weight), atol=1e-6)


def test_layer_norm_centres_and_scales(strict):
    x = draw(4, 64) + 3
    y = np.asarray(layer_norm(x))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-5)


def test_norms_work_in_float32_inside_low_precision(strict):
    x = (draw(4, 512) * 1e-3).astype(jnp.bfloat16)
    wide = rms_norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(jax.device_get(rms_norm(x)), jax.device_get(wide))


def test_a_norms_weight_multiplies_before_the_result_is_rounded(strict):
    x, weight = draw(4, 512, dtype=jnp.bfloat16), draw(512)
    wide = np.asarray(x, np.float64)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(weight, np.float64)
    assert_rounded_once(rms_norm(x, weight), exact)
