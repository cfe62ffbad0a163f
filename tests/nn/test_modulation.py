import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax.nn.modulation import (
    ScaleShift,
    add_gated,
    add_table,
    embed_time,
    modulate,
    modulated_norm,
    sinusoid,
    time_embedding_spec,
)
from omniforcing_jax.nn.norm import rms_norm
from omniforcing_jax.parallel.spec import init
from tests.rounding import assert_rounded_once


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_the_sinusoid_has_the_references_values(strict):
    e = sinusoid(jnp.array([[700.0]]))[0, 0]
    expected = [-0.8391043, -0.4618004, -0.9884104, 0.9971721, 0.5439705, -0.8869839, 0.0751516]
    np.testing.assert_allclose(e[jnp.array([0, 1, 2, 127, 128, 129, 255])], expected, atol=1e-4)


def test_a_group_of_tokens_shares_its_modulation(strict):
    x, shift, scale = draw(0, 2, 12, 5), draw(1, 2, 4, 5), draw(2, 2, 4, 5)
    per_token = ScaleShift(jnp.repeat(shift, 3, axis=1), jnp.repeat(scale, 3, axis=1))
    np.testing.assert_allclose(modulate(x, ScaleShift(shift, scale)), modulate(x, per_token), atol=1e-6)
    np.testing.assert_allclose(modulate(x, per_token), x * (1 + per_token.scale) + per_token.shift, atol=1e-6)


def test_one_level_serves_a_whole_batch(strict):
    x, shift, scale = draw(0, 2, 12, 5), draw(1, 1, 1, 5), draw(2, 1, 1, 5)
    np.testing.assert_allclose(modulate(x, ScaleShift(shift, scale)), x * (1 + scale) + shift, atol=1e-6)


def test_a_modulated_norm_normalises_first(strict):
    x, m = draw(0, 2, 12, 5), ScaleShift(draw(1, 2, 1, 5), draw(2, 2, 1, 5))
    np.testing.assert_allclose(modulated_norm(x, m), rms_norm(x) * (1 + m.scale) + m.shift, atol=1e-6)


def test_a_gate_scales_what_is_added(strict):
    x, y, gate = draw(0, 2, 12, 5), draw(1, 2, 12, 5), draw(2, 2, 4, 5)
    np.testing.assert_allclose(add_gated(x, y, gate), x + y * jnp.repeat(gate, 3, axis=1), atol=1e-6)
    np.testing.assert_array_equal(add_gated(x, y, None), x + y)


def test_a_layers_table_is_added_to_every_row(strict):
    table, rows = draw(0, 3, 5), draw(1, 2, 4, 3, 5)
    summed = add_table(table, rows)
    for i in range(3):
        np.testing.assert_allclose(summed[:, :, i], rows[:, :, i] + table[i][None, None], atol=1e-7)


def test_modulation_returns_the_type_of_the_tokens(strict):
    x = draw(0, 2, 12, 5).astype(jnp.bfloat16)
    m = ScaleShift(draw(1, 2, 1, 5), draw(2, 2, 1, 5))
    assert modulated_norm(x, m).dtype == add_gated(x, x, m.scale).dtype == jnp.bfloat16


def test_modulation_is_computed_in_float32_and_rounded_once(strict):
    x, y = (draw(seed, 2, 60, 40).astype(jnp.bfloat16) for seed in (0, 3))
    m = ScaleShift(draw(1, 2, 1, 40), draw(2, 2, 1, 40))
    wide, added, shift, scale = (np.asarray(each, np.float64) for each in (x, y, *m))
    norm = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    assert_rounded_once(modulate(x, m), wide * (1 + scale) + shift)
    assert_rounded_once(modulated_norm(x, m), norm * (1 + scale) + shift)
    assert_rounded_once(add_gated(x, y, m.scale), wide + added * scale)


def test_a_noise_level_becomes_a_vector_and_rows_by_two_gated_maps(strict):
    p = jax.tree.map(lambda x: x + 0.2 * draw(x.size, *x.shape), init(time_embedding_spec(5, 3), jax.random.key(0)))
    levels = np.array([[0.0, 300.0], [1000.0, 42.0]])
    angles = levels[..., None] * 10_000.0 ** (-np.arange(128) / 128)
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), p)

    def linear(which, x):
        return x @ which.w.T + which.b

    def silu(x):
        return x / (1 + np.exp(-x))

    first = linear(weights.up, np.concatenate([np.cos(angles), np.sin(angles)], axis=-1))
    vector = linear(weights.down, silu(first))
    found_vector, found_rows = embed_time(p, jnp.asarray(levels, jnp.float32))
    np.testing.assert_allclose(found_vector, vector, atol=1e-3)
    np.testing.assert_allclose(found_rows, linear(weights.rows, silu(vector)).reshape(2, 2, 3, 5), atol=1e-3)
