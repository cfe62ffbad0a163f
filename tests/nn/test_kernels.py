import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.config import RotaryKind
from omniforcing_jax.nn import cudnn, kernels, splash
from omniforcing_jax.nn.attention import KV, Past, masked_attention
from omniforcing_jax.nn.kernels import Kernel, dot_product_attention, using
from omniforcing_jax.nn.kv_segments import KVSegment, concat_keys, plain_attention
from omniforcing_jax.nn.mask import HIDDEN, AttentionMask, QueryBand
from omniforcing_jax.nn.rope import Rotary, rotate
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh

ROWS, HEADS, SIZE = 2, 2, 64


def draw(seed, tokens):
    return jax.random.normal(jax.random.key(seed), (ROWS, tokens, HEADS, SIZE))


def shown(keys, *ranges):
    """A mask by key of each row: what lies in its range is seen."""
    index = np.arange(keys)
    return jnp.asarray([np.where((index >= a) & (index < b), 0, HIDDEN) for a, b in ranges], jnp.float32)[:, None, None]


Q = draw(0, 120)
FRESH = KVSegment(draw(1, 120), draw(2, 120))
TEXT = KVSegment(draw(5, 128), draw(6, 128), shown(128, (3, 128), (40, 90)))
PAST = KVSegment(draw(3, 126), draw(4, 126), shown(126, (0, 70)), prefix=True)
UNSEEN = KVSegment(draw(7, 128) * 9, draw(8, 128), shown(128, (0, 0)))
CASES = {
    "one segment": [FRESH],
    "a mask by row": [TEXT],
    "a prefix of the past": [FRESH, PAST],
    "a past that is not seen": [FRESH, UNSEEN],
}


@pytest.fixture
def splash_on_cpu():
    with using(Kernel.SPLASH_INTERPRETED):
        yield


@pytest.mark.parametrize("segments", CASES.values(), ids=CASES)
def test_splash_equals_the_plain_form(segments, splash_on_cpu):
    assert splash.refusal(Q, segments) is None
    np.testing.assert_allclose(dot_product_attention(Q, segments), plain_attention(Q, segments), atol=2e-6)


def test_gradients_of_splash_are_those_of_the_plain_form(splash_on_cpu):
    segments = [FRESH, PAST]

    def gradients(attention):
        def loss(q, kv):
            given = [KVSegment(*pair, segment.bias) for pair, segment in zip(kv, segments, strict=True)]
            return jnp.sum(jnp.sin(attention(q, given)))

        return jax.grad(loss, argnums=(0, 1))(Q, [segment[:2] for segment in segments])

    for a, b in zip(*map(jax.tree.leaves, map(gradients, (dot_product_attention, plain_attention))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_splash_takes_the_key_ranges_of_a_masked_student(splash_on_cpu):
    mask = AttentionMask(bands=(QueryBand((0, 60), ((0, 60),)), QueryBand((60, 120), ((0, 120),), ((10, 70),))))
    past = Past(KV(PAST.k, PAST.v))
    made = masked_attention(Q, KV(FRESH.k, FRESH.v), past, mask)
    with using(Kernel.PLAIN):
        np.testing.assert_allclose(made, masked_attention(Q, KV(FRESH.k, FRESH.v), past, mask), atol=2e-6)


def test_each_device_runs_splash_on_its_own_rows_and_heads(splash_on_cpu):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    segments = [TEXT, PAST]
    with jax.set_mesh(mesh):
        compiled = jax.jit(dot_product_attention).lower(Q, segments).compile()
        made = compiled(Q, segments)
    assert made.sharding.shard_shape(made.shape) == (ROWS // 2, 120, HEADS // 2, SIZE)
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(made, plain_attention(Q, segments), atol=2e-6)


REFUSED = {
    "differs by query": (Q, [KVSegment(FRESH.k, FRESH.v, jnp.zeros((1, 1, 120, 120)))]),
    "heads of 32": (Q[..., :32], [KVSegment(FRESH.k[..., :32], FRESH.v[..., :32])]),
    "times the scores": (Q[:, :25], [FRESH]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_splash_cannot_compute_is_plain_and_logged_once(reason, splash_on_cpu, caplog):
    q, segments = REFUSED[reason]
    kernels._log_once.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            np.testing.assert_array_equal(dot_product_attention(q, segments), plain_attention(q, segments))
    (said,) = [record.getMessage() for record in caplog.records if "attention" in record.getMessage()]
    assert reason in said


def test_the_backend_chooses_and_a_choice_is_traced_anew(monkeypatch):
    assert kernels.chosen() is Kernel.PLAIN
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert kernels.chosen() is Kernel.SPLASH
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kernels.chosen() is Kernel.CUDNN
    traced = []

    @jax.jit
    def trace(x):
        traced.append(kernels.chosen())
        return x

    for kernel in (Kernel.PLAIN, Kernel.SPLASH, Kernel.PLAIN):
        with using(kernel):
            trace(1.0)
    assert traced == [Kernel.PLAIN, Kernel.SPLASH]


@pytest.mark.parametrize("segments", CASES.values(), ids=CASES)
def test_cudnn_gets_the_same_masks(segments):
    k, v = (concat_keys([getattr(segment, name) for segment in segments]) for name in "kv")
    expected = jax.nn.dot_product_attention(Q, k, v, implementation="xla", **cudnn.mask_arguments(Q, segments))
    np.testing.assert_allclose(expected, plain_attention(Q, segments), atol=2e-6)


def test_a_prefix_becomes_lengths_and_no_mask_no_arguments():
    assert cudnn.mask_arguments(Q, [FRESH]) == {}
    np.testing.assert_array_equal(cudnn.mask_arguments(Q, [FRESH, PAST])["key_value_seq_lengths"], [190, 190])
    assert cudnn.mask_arguments(Q, [PAST, FRESH])["mask"].shape == (2, 1, 120, 246)


def test_cudnn_refuses_what_it_cannot_take():
    half = Q.astype(jnp.bfloat16)
    assert cudnn.refusal(half, [FRESH, PAST]) is None
    assert "float32" in str(cudnn.refusal(Q, [FRESH]))
    assert "heads of 12" in str(cudnn.refusal(half[..., :12], [FRESH]))
    assert "differs by query" in str(cudnn.refusal(half, [KVSegment(FRESH.k, FRESH.v, jnp.zeros((1, 1, 120, 120)))]))
    assert cudnn.refusal(half[:, :119], [TEXT]) is None  # under a gradient the plain form is differentiated


def test_cudnn_is_lowered_to_its_flash_kernel(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (Q, FRESH.k, FRESH.v, PAST.k, PAST.v))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def attend(q, k, v, past_k, past_v):
        return dot_product_attention(q, [KVSegment(k, v), KVSegment(past_k, past_v, PAST.bias, prefix=True)])

    text = jax.jit(attend).trace(*half).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax" in text


def turned_by(angle):
    """A rotation, one row."""
    angles = angle * jnp.arange(1, HEADS * SIZE // 2 + 1).reshape(1, 1, HEADS, SIZE // 2) / 20
    return Rotary(jnp.cos(angles), jnp.sin(angles), RotaryKind.SPLIT)


MOVED = [FRESH, PAST, KVSegment(draw(9, 40), draw(10, 40), shift=turned_by(1.3))]
EXACT = [FRESH, PAST, MOVED[2]._replace(k=rotate(MOVED[2].k, MOVED[2].shift), shift=None)]


def test_keys_that_are_seen_moved_score_as_if_they_were(splash_on_cpu):
    expected = plain_attention(Q, EXACT)
    assert np.abs(expected - plain_attention(Q, [*MOVED[:2], MOVED[2]._replace(shift=None)])).max() > 1e-2
    np.testing.assert_allclose(plain_attention(Q, MOVED), expected, atol=2e-6)
    np.testing.assert_allclose(splash.splash_attention(Q, MOVED, interpret=True), expected, atol=2e-6)


def test_under_a_gradient_splash_moves_the_keys_themselves(splash_on_cpu):
    def loss(q, segments):
        return jnp.sum(jnp.sin(dot_product_attention(q, segments)))

    found, expected = (jax.grad(loss)(Q, segments) for segments in (MOVED, EXACT))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def lowered_for_gpu(function, *arguments, monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def test_keys_that_are_seen_moved_are_a_flash_kernel_of_their_own(monkeypatch):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (Q, [s[:2] for s in MOVED]))

    def attend(q, kv):
        return dot_product_attention(q, [s._replace(k=k, v=v) for s, (k, v) in zip(MOVED, kv, strict=True)])

    text = lowered_for_gpu(attend, *half, monkeypatch=monkeypatch)
    assert text.count("custom_call @__cudnn$fmhaSoftmax") == 2
    assert "tensor<2x2x120xf32>" in text  # sums of both, in float32
    of_gradient = lowered_for_gpu(jax.grad(lambda *x: jnp.sum(attend(*x))), *half, monkeypatch=monkeypatch)
    assert of_gradient.count("custom_call @__cudnn$fmhaSoftmax") == 2  # forward and backward of all keys together


@pytest.mark.parametrize("bias", [None, TEXT.bias])
def test_odd_lengths_have_the_plain_form_s_gradient(bias, monkeypatch):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (Q[:, :25], TEXT.k, TEXT.v))

    def attend(q, k, v):
        return jnp.sum(dot_product_attention(q, [KVSegment(k, v, bias)]))

    assert "__cudnn$fmha" in lowered_for_gpu(attend, *half, monkeypatch=monkeypatch)
    assert "__cudnn$fmha" not in lowered_for_gpu(jax.grad(attend), *half, monkeypatch=monkeypatch)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize("segments", [*CASES.values(), MOVED], ids=[*CASES, "moved"])
def test_cudnn_equals_the_plain_form(segments):
    half = [p._replace(k=p.k.astype(jnp.bfloat16), v=p.v.astype(jnp.bfloat16)) for p in segments]
    with using(Kernel.CUDNN):
        made = dot_product_attention(Q.astype(jnp.bfloat16), half)
    np.testing.assert_allclose(made.astype(jnp.float32), plain_attention(Q, segments), atol=2e-2)
