import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.config import RotaryKind
from omniforcing_jax.nn.attention import (
    KV,
    Past,
    Site,
    attend,
    attend_to,
    attention_spec,
    join_projections,
    masked_attention,
    project_kv,
    split_projections,
)
from omniforcing_jax.nn.kernels import dot_product_attention
from omniforcing_jax.nn.kv_segments import KVSegment
from omniforcing_jax.nn.mask import HIDDEN, AttentionMask, PastMask, QueryBand
from omniforcing_jax.nn.rope import Rotary
from omniforcing_jax.parallel.spec import init
from tests.by_hand import attention, wide


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


Q, K, V = draw(0, 2, 5, 3, 4), draw(1, 2, 7, 3, 4), draw(2, 2, 7, 3, 4)


def plain(q, k, v, bias=0.0):
    scores = np.einsum("btnh,bsnh->bnts", q, k).astype(np.float64) / 2 + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


def cut(*at):
    edges = [0, *at, 7]
    return [KVSegment(K[:, a:b], V[:, a:b]) for a, b in itertools.pairwise(edges)]


def weights(gated=False, seed=5):
    spec = attention_spec(12, 10, 3, 4, gated=gated)
    params = init(spec, jax.random.key(seed))
    return jax.tree.map(lambda x: x + 0.2 * draw(x.size, *x.shape), params)


@pytest.mark.parametrize("at", [(), (3,), (1, 5)])
def test_keys_in_segments_share_one_softmax(at, strict):
    np.testing.assert_allclose(dot_product_attention(Q, cut(*at)), plain(Q, K, V), atol=1e-6)


def test_gradients_through_segments_are_those_of_the_whole(strict):
    def loss(q, k, v, at):
        edges = [0, *at, 7]
        segments = [KVSegment(k[:, a:b], v[:, a:b]) for a, b in itertools.pairwise(edges)]
        return jnp.sum(jnp.sin(dot_product_attention(q, segments)))

    whole, segments = (jax.grad(loss, argnums=(0, 1, 2))(Q, K, V, at) for at in ((), (2, 3)))
    for a, b in zip(whole, segments, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_hidden_keys_do_not_count(strict):
    bias = jnp.where(jnp.arange(7) < 4, 0.0, HIDDEN)[None, None, None]
    np.testing.assert_array_equal(
        dot_product_attention(Q, [KVSegment(K, V, bias)]),
        dot_product_attention(Q, [KVSegment(K, V.at[:, 4:].set(9.0), bias)]),
    )
    np.testing.assert_allclose(
        dot_product_attention(Q, [KVSegment(K, V, bias)]), plain(Q, K[:, :4], V[:, :4]), atol=1e-6
    )


def test_a_wholly_hidden_past_changes_nothing(strict):
    hidden = KVSegment(draw(8, 2, 6, 3, 4) * 50, draw(9, 2, 6, 3, 4), jnp.full((1, 1, 1, 6), HIDDEN))
    np.testing.assert_allclose(dot_product_attention(Q, [KVSegment(K, V), hidden]), plain(Q, K, V), atol=1e-6)


def test_large_scores_do_not_overflow(strict):
    assert np.isfinite(np.asarray(dot_product_attention(Q * 1e4, cut(2)))).all()


def test_bands_let_each_range_of_queries_see_its_ranges(strict):
    past = KV(draw(3, 2, 4, 3, 4), draw(4, 2, 4, 3, 4))
    mask = AttentionMask(bands=(QueryBand((0, 2), ((0, 3),)), QueryBand((2, 5), ((0, 1), (4, 7)), ((1, 3),))))
    seen_k = np.concatenate([K[:, :1], K[:, 4:], past.k[:, 1:3]], axis=1)
    seen_v = np.concatenate([V[:, :1], V[:, 4:], past.v[:, 1:3]], axis=1)
    y = masked_attention(Q, KV(K, V), Past(past), mask)
    np.testing.assert_allclose(y[:, :2], plain(Q[:, :2], K[:, :3], V[:, :3]), atol=1e-6)
    np.testing.assert_allclose(y[:, 2:], plain(Q[:, 2:], seen_k, seen_v), atol=1e-6)


def test_a_scale_multiplies_the_queries(strict):
    scale = jnp.linspace(0.5, 1, 5)
    y = masked_attention(Q, KV(K, V), None, AttentionMask(scale=scale))
    np.testing.assert_allclose(y, plain(Q * scale[None, :, None, None], K, V), atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_an_attention_is_its_formula_with_rotations_and_a_past(gated, strict):
    p, x_q, x_kv = weights(gated), draw(6, 2, 5, 12), draw(7, 2, 7, 10)
    p = dataclasses.replace(p, q_norm=1 + 0.3 * draw(10, 12), k_norm=1 + 0.3 * draw(11, 12))
    past, seen = KV(draw(3, 2, 4, 3, 4), draw(4, 2, 4, 3, 4)), slice(1, 4)
    angles = [np.random.default_rng(i).uniform(-3, 3, (1, tokens, 3, 2)) for i, tokens in enumerate((5, 7))]
    rotaries = [Rotary(*(jnp.asarray(f(a), jnp.float32) for f in (np.cos, np.sin)), RotaryKind.SPLIT) for a in angles]
    bias = jnp.where(jnp.arange(4) >= seen.start, 0.0, HIDDEN)[None, None, None]
    y, _ = attend(p, x_q, x_kv, Site(*rotaries, AttentionMask(past=PastMask(bias))), Past(past))
    expected = attention(*wide((p, x_q, x_kv)), *(a[0] for a in angles), past=(past.k[:, seen], past.v[:, seen]))
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("prefix", [True, False])
def test_kernels_are_told_of_a_past_what_its_mask_says(prefix, monkeypatch):
    told = []
    monkeypatch.setattr("omniforcing_jax.nn.attention.dot_product_attention", lambda q, parts: told.extend(parts) or q)
    bias, shift = jnp.zeros((1, 1, 1, 7)), Rotary(jnp.ones((1, 1, 3, 2)), jnp.zeros((1, 1, 3, 2)), RotaryKind.SPLIT)
    mask = AttentionMask(past=PastMask(ring=bias, shift=shift, is_prefix=prefix))
    masked_attention(Q, KV(K, V), Past(KV(K + 1, V), KV(K, V)), mask)
    assert [part.prefix for part in told] == [False, prefix, True]
    assert [part.bias is bias for part in told] == [False, True, False]
    assert [part.shift is shift for part in told] == [False, False, True]


def test_a_block_writes_its_keys_into_its_slot_and_reads_them_there(strict):
    p, x_q, x_kv = weights(), draw(6, 2, 5, 12), draw(7, 2, 2, 10)
    ring, apart = (KV(draw(3, 2, slots, 3, 4), draw(4, 2, slots, 3, 4)) for slots in (6, 6))
    seen = jnp.arange(6) < 4  # one other key, two fresh ones, and one more
    bias = jnp.where(seen, 0.0, HIDDEN)[None, None, None]
    mask = AttentionMask(past=PastMask(ring=bias, slot=jnp.int32(1)))
    y, kept = attend(p, x_q, x_kv, Site(mask=mask), Past(ring))
    fresh = project_kv(p, x_kv, None)
    np.testing.assert_array_equal(kept.k, ring.k.at[:, 1:3].set(fresh.k))
    np.testing.assert_array_equal(kept.v, ring.v.at[:, 1:3].set(fresh.v))
    others = jnp.where(jnp.isin(jnp.arange(6), jnp.array([0, 3])), 0.0, HIDDEN)[None, None, None]
    expected, _ = attend(p, x_q, x_kv, Site(mask=AttentionMask(past=PastMask(ring=others))), Past(apart))
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("is_self", [True, False])
def test_joined_projections_are_the_same_attention_and_split_again(is_self, strict):
    p = init(attention_spec(12, 12 if is_self else 10, 3, 4, gated=True), jax.random.key(0))
    x_q, x_kv = draw(6, 2, 5, 12), draw(7, 2, 7, 10)
    x_kv = x_q if is_self else x_kv
    joined = join_projections(p, is_self=is_self)
    y, fresh = attend(p, x_q, x_kv, Site())
    again, kept = attend(joined, x_q, x_kv, Site())
    np.testing.assert_allclose(again, y, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), kept, fresh)
    jax.tree.map(np.testing.assert_array_equal, split_projections(joined), p)


def test_attending_also_returns_the_new_keys_and_values(strict):
    p, x_q, x_kv = weights(), draw(6, 2, 5, 12), draw(7, 2, 7, 10)
    y, fresh = attend(p, x_q, x_kv, Site())
    np.testing.assert_allclose(attend_to(p, x_q, fresh, Site()), y, atol=1e-6)
    assert fresh.k.shape == fresh.v.shape == (2, 7, 3, 4)


def test_keys_are_normalised_over_all_heads_together(strict):
    p, x = weights(), draw(7, 2, 7, 10)
    p = dataclasses.replace(p, k_norm=jnp.ones_like(p.k_norm))
    _, fresh = attend(p, draw(6, 2, 5, 12), x, Site())
    np.testing.assert_allclose(jnp.mean(fresh.k**2, axis=(2, 3)), 1, atol=1e-4)


def test_a_gate_scales_each_head_by_twice_a_sigmoid(strict):
    p, x_q, x_kv = weights(gated=True), draw(6, 2, 5, 12), draw(7, 2, 7, 10)
    shut = dataclasses.replace(p.gate, w=jnp.zeros_like(p.gate.w), b=jnp.array([0.0, -40.0, 0.0]))
    y, fresh = attend(dataclasses.replace(p, gate=shut), x_q, x_kv, Site())
    without = KV(fresh.k, fresh.v.at[:, :, 1].set(0))
    np.testing.assert_allclose(y, attend_to(dataclasses.replace(p, gate=None), x_q, without, Site()), atol=1e-6)


def test_a_sample_whose_mixing_is_off_passes_its_own_values(strict):
    p = init(attention_spec(12, 12, 3, 4, gated=False), jax.random.key(0))
    x = draw(6, 2, 5, 12)
    y, fresh = attend(p, x, x, Site(), mix=jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(y[0], attend(p, x, x, Site())[0][0], atol=1e-6)
    np.testing.assert_allclose(y[1], fresh.v[1].reshape(5, 12) @ p.o.w.T + p.o.b[None], atol=1e-6)
