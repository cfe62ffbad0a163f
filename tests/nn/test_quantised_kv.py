"""Keys and values in eight bits: each place by its own scales, near what was written, and written once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.nn.attention import KV, Past, masked_attention, readable
from omniforcing_jax.nn.mask import AttentionMask
from omniforcing_jax.nn.quantised import BY_DTYPE, EIGHTS
from omniforcing_jax.nn.quantised_kv import empty_quantised_kv, widen, write_block

STEP, HEADS, SIZE = 5, 2, 3
write = jax.jit(write_block)
KINDS = pytest.mark.parametrize("eights", EIGHTS.values(), ids=EIGHTS.keys())


def blocks(front, places, seed=0):
    """Random keys and values of each place, with channels and tokens of very different sizes, and where they begin."""
    rng, start, found = np.random.default_rng(seed), 0, []
    for tokens in [front] * (front > 0) + [STEP] * places:
        k, v = (rng.normal(size=(2, tokens, HEADS, SIZE)) for _ in "kv")
        k, v = k * 10.0 ** rng.uniform(-2, 2, (HEADS, SIZE)), v * 10.0 ** rng.uniform(-2, 2, (tokens, 1, 1))
        found.append((jnp.asarray(k, jnp.float32), jnp.asarray(v, jnp.float32), start))
        start += tokens
    return found


def filled(eights, front, places, written):
    slots = front + STEP * places
    kv = empty_quantised_kv((2, slots, HEADS, SIZE), eights, front=front, step=STEP)
    for k, v, start in written:
        kv = write(kv, k, v, start)
    return kv


def largest_error(eights, x, axis):
    """Half a step of whole numbers; of float8, half of the last of four bits and of the smallest step."""
    scale = np.abs(x).max(axis, keepdims=True) / eights.largest
    own = 0.5 * scale if eights.dtype.kind == "i" else np.maximum(np.abs(x) * 2**-4, scale * 2**-10)
    return 1.001 * np.broadcast_to(own, x.shape)


@KINDS
@pytest.mark.parametrize(("front", "places"), [(0, 3), (2, 2), (7, 2), (2, 0)])
def test_every_place_is_as_near_as_its_own_scales_allow(eights, front, places):
    written = blocks(front, places)
    kv = filled(eights, front, places, written)
    assert BY_DTYPE[np.dtype(kv.k.dtype)] is eights
    k, v = widen(kv, jnp.float32)
    for own_k, own_v, start in written:
        here = np.s_[:, start : start + own_k.shape[1]]
        assert (np.abs(k[here] - own_k) <= largest_error(eights, np.asarray(own_k), 1)).all()
        assert (np.abs(v[here] - own_v) <= largest_error(eights, np.asarray(own_v), 3)).all()


@KINDS
@pytest.mark.parametrize("front", [0, 2])
def test_a_block_that_is_written_leaves_the_others_bit_for_bit(eights, front):
    before = filled(eights, front, 3, blocks(front, 3))
    k, v, start = blocks(front, 3, seed=1)[-2]
    old, new = (widen(kv, jnp.float32) for kv in (before, write(before, k, v, start)))
    others = np.delete(np.arange(front + 3 * STEP), np.arange(start, start + STEP))
    for one, other in zip(old, new, strict=True):
        np.testing.assert_array_equal(one[:, others], other[:, others])
        assert not np.array_equal(one, other)


def test_what_is_widened_and_written_again_has_the_same_bits():
    """A scale is of the largest value, which encodes exactly: nothing drifts, however often a block is recomputed."""
    kv = filled(EIGHTS["int8"], 0, 1, blocks(0, 1))
    again = write(kv, *widen(kv, jnp.float32), 0)
    np.testing.assert_array_equal(again.k, kv.k)
    np.testing.assert_array_equal(again.v, kv.v)


@KINDS
def test_attention_reads_the_widened_ring_beside_fresh_and_pinned_keys(eights):
    ring = filled(eights, 2, 2, blocks(2, 2))
    draw = partial(jax.random.normal, jax.random.key(0))
    q, fresh, pinned = draw((2, 4, HEADS, SIZE)), KV(*draw((2, 2, 4, HEADS, SIZE))), KV(*draw((2, 2, 3, HEADS, SIZE)))
    past = Past(ring, pinned)
    wide = Past(KV(*widen(ring, jnp.float32)), pinned)
    expected = masked_attention(q, fresh, wide, AttentionMask())
    np.testing.assert_allclose(masked_attention(q, fresh, past, AttentionMask()), expected, rtol=1e-6, atol=1e-6)
    assert readable(wide, jnp.bfloat16).ring is wide.ring
    assert readable(past, jnp.bfloat16).ring.k.dtype == jnp.bfloat16
