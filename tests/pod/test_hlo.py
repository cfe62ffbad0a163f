"""The reader of compiled programs, on programs that can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from experiments.hlo.text import parse
from experiments.pod import plan
from experiments.pod.hlo import read_cost
from omniforcing_jax.config import ModelConfig, StreamConfig
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import predict, text_kv, transformer_spec
from omniforcing_jax.model.view import bidirectional, one_sigma
from omniforcing_jax.parallel import spec
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.pipeline.presets import LTX2_19B
from omniforcing_jax.streams import Streams

WEIGHTS = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
X = jax.ShapeDtypeStruct((8, 32), jnp.float32)
ONCE = 2 * 8 * 32 * 32


def cost(function, *shapes, **options):
    return read_cost(jax.jit(function).lower(*shapes).compile().as_text(), **options)


def chain(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def test_a_product_in_a_scan_counts_as_often_as_the_scan_turns():
    assert cost(chain, X, WEIGHTS).flops == 5 * ONCE


def test_loops_in_loops_multiply():
    assert cost(lambda x, w: jax.lax.fori_loop(0, 3, lambda i, x: chain(x, w), x), X, WEIGHTS).flops == 15 * ONCE


def test_a_loop_of_unknown_length_counts_as_often_as_one_says():
    def drawn(x, w, n):
        return jax.lax.fori_loop(0, n, lambda i, x: chain(x, w), x)

    found = cost(drawn, X, WEIGHTS, jax.ShapeDtypeStruct((), jnp.int32), unknown_trips=2.5)
    assert (found.flops, found.unknown_loops) == (12.5 * ONCE, 1)


@pytest.mark.parametrize(("stride", "turns"), [(1, 9), (2, 5), (4, 3)])
def test_a_loop_without_a_note_of_its_turns_is_counted_by_its_counters_steps(stride, turns):
    def far(x, w):
        return jax.lax.while_loop(lambda s: s[0] < 9, lambda s: (s[0] + stride, jnp.tanh(s[1] @ w[0])), (0, x))[1]

    text = jax.jit(far).lower(X, WEIGHTS).compile().as_text()
    assert "known_trip_count" in text
    assert read_cost(text.replace("known_trip_count", "unread")).flops == turns * ONCE


def test_a_gradient_is_two_more_products_for_each():
    assert cost(jax.grad(lambda w, x: jnp.sum(chain(x, w)), argnums=(0, 1)), WEIGHTS, X).flops == 15 * ONCE


def test_of_two_branches_the_dearer_one_counts():
    def either(x, w, n):
        return jax.lax.cond(n > 0, lambda: chain(x, w), lambda: jnp.tanh(x @ w[0]))

    assert cost(either, X, WEIGHTS, jax.ShapeDtypeStruct((), jnp.int32)).flops == 5 * ONCE


def test_a_batched_product_counts_its_batch():
    a, b = jax.ShapeDtypeStruct((3, 4, 16), jnp.float32), jax.ShapeDtypeStruct((3, 16, 7), jnp.float32)
    assert cost(jnp.matmul, a, b).flops == 2 * 3 * 4 * 16 * 7


def test_a_convolution_counts_no_padding():
    x, w = jax.ShapeDtypeStruct((2, 10, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 5), jnp.float32)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (2,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"))

    pairs = 2 + 4 * 3  # the first output meets one element of padding
    assert cost(convolve, x, w).flops == 2 * pairs * 3 * 5 * 2


def test_collectives_in_a_scan_are_counted_with_what_a_device_receives():
    mesh = make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])
    whole, cut = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), (None, None, "fsdp")))
    weights = jax.ShapeDtypeStruct(WEIGHTS.shape, WEIGHTS.dtype, sharding=cut)

    def gathered(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ jax.lax.with_sharding_constraint(w, jax.P())), None), x, w)[0]

    with jax.set_mesh(mesh):
        found = cost(gathered, jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=whole), weights)
    assert found.collectives == ((("all-gather", 4), (5.0, 5 * 32 * 32 * 4 * 3 / 4)),)


LINES = """
ENTRY %main (a: bf16[2,256,512], b: bf16[2,384,512]) -> bf16[2,256,512] {
  %a = bf16[2,256,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[2,384,512]{2,1,0:T(8,128)(2,1)} parameter(1)
  %c = bf16[2,256,384]{2,1,0:T(8,128)(2,1)} convolution(%a, %b), window={size=2 lhs_dilate=2}, dim_labels=0bf_0oi->0bf
  %g = (bf16[1,256,512]{2,1,0}, bf16[2,256,512]{2,1,0}) all-gather-start(%a), replica_groups=[4,2]<=[8], dimensions={0}
  %r = f32[8]{0} all-reduce(%n), replica_groups=mesh['x'=1,'y'=4,'z'=2] {'y'}, to_apply=%add
  %s = f32[8]{0} all-to-all(%n), replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}, dimensions={0}
  %n = f32[8]{0} constant({...})
  ROOT %splash_mha_dq_no_residuals.1 = bf16[2,256,512]{2,1,0} custom-call(%a, %b, %b), custom_call_target="k"
}
"""


def test_what_only_a_tpus_text_holds():
    """A batched product as a convolution over a dilated batch, asynchronous gathers, groups by mesh axis, kernels."""
    found = read_cost(LINES)
    product = 2 * 256 * 384 * 512
    assert found.flops == 2 * product + 3 * 2 * product
    sizes = dict(found.collectives)
    assert sizes["all-gather", 2] == (1.0, 2 * 256 * 512 * 2)
    assert sizes["all-reduce", 4] == (1.0, 2 * 32 * 3 / 4)
    assert sizes["all-to-all", 4] == (1.0, 32 * 3 / 4)


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        parse("HloModule nothing")


def text_flops(model, text):
    """FLOPs of a prompt's keys and values of all layers, for one sample."""
    widths, captions = (model.video.width, model.audio.width), model.caption_channels
    return sum(2.0 * text * (captions * width + width**2 + model.layers * 2 * width**2) for width in widths)


def test_flops_of_a_forward_are_those_of_the_closed_formula():
    model = ModelConfig(
        layers=3,
        video=StreamConfig(latent_channels=16, heads=4, head_size=32),
        audio=StreamConfig(latent_channels=16, heads=4, head_size=16),
        caption_channels=48,
    )
    grid, frames, sounds, text = (6, 8), 4, 26, 40
    positions = make_positions(model, clip_block(frames, sounds), grid)
    sizes = [(1, frames * 48, 16), (1, sounds, 16), (1, text, 48), (1, text, 48)]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sizes]

    def forward(params, video, audio, *contexts):
        view = bidirectional(model, rotaries(model, positions), one_sigma(jnp.full(1, 0.5)))
        return predict(params, model, Streams(video, audio), view, text_kv(params, *contexts)).velocity

    found = cost(forward, spec.abstract(transformer_spec(model)), *inputs).flops
    tokens = plan.Tokens(video=frames * 48, audio=sounds)
    wanted = plan.forward_flops(model, tokens, text) + text_flops(model, text)
    assert abs(found / wanted - 1) < 0.02


def test_the_closed_formula_is_that_of_the_published_sizes():
    """194.5 TFLOP for a clip, 36.5 for a block that sees 16 latent frames, 385.9 million weights in a layer."""
    clip = plan.forward_flops(LTX2_19B, plan.Tokens(video=6144, audio=126), 1024)
    late = plan.Tokens(video=1152, audio=25, past_video=13 * 384, past_audio=101)
    assert clip == pytest.approx(194.5e12, rel=2e-3)
    assert plan.forward_flops(LTX2_19B, late, 1024) == pytest.approx(36.5e12, rel=2e-3)
    assert plan.parameter_count(LTX2_19B) / 48 == pytest.approx(385.9e6, rel=1e-3)
