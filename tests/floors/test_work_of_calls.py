"""FLOPs of what a GPU's libraries compute, from a line of a program's text."""

import pytest
from gpu_texts import attention, gemm

from experiments.pod.hlo import read_cost

QKV = [f"{name} = bf16[2,64,4,32]{{3,2,1,0}} parameter({i})" for i, name in enumerate("qkv")]


def flops(call, *parameters):
    lines = "\n".join(f"  %{line}" for line in (*parameters, f"call = {call}"))
    return read_cost(f"ENTRY %main () -> f32[] {{\n{lines}\n}}\n").flops


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("__cublas$lt$matmul", "bf16"),
        ("__cublas$gemm", "f32"),
        ("__cublas$lt$matmul", "s8"),
        ("__cublas$lt$matmul$f8", "f8e4m3fn"),
    ],
)
def test_a_product_counts_two_for_each_multiply_add_in_every_type(target, kind):
    x, w = f"x = {kind}[128,512]{{1,0}} parameter(0)", f"w = {kind}[256,512]{{1,0}} parameter(1)"
    assert flops(gemm(target, "x", "w", "f32[128,256]{1,0}"), x, w) == 2 * 128 * 256 * 512


def test_an_epilogue_and_the_scales_of_float8_add_no_products():
    inputs = (
        "x = f8e4m3fn[128,512]{1,0} parameter(0)",
        "w = f8e4m3fn[256,512]{1,0} parameter(1)",
        "one = f32[] parameter(2)",
        "b = bf16[256]{0} parameter(3)",
    )
    call = gemm("__cublas$lt$matmul$f8", "x", "w", "bf16[128,256]{1,0}", "BIAS_GELU", ", %one, %one, %b")
    assert flops(call, *inputs) == 2 * 128 * 256 * 512


def test_a_batched_product_counts_its_batch():
    x, w = "x = bf16[4,128,512]{2,1,0} parameter(0)", "w = bf16[4,512,256]{2,1,0} parameter(1)"
    call = gemm("__cublas$lt$matmul", "x", "w", "bf16[4,128,256]{2,1,0}", sums=(2, 1), batch=(0,))
    assert flops(call, x, w) == 2 * 4 * 128 * 256 * 512


def test_an_attention_is_two_products_and_its_gradient_five():
    one = 2 * 2 * 4 * 64 * 64 * 32
    made, sizes = "bf16[2,4,64,32]{3,1,2,0}", (2, 4, 64, 64)
    for mask in ("Softmax", "ScaleBiasSoftmax", "SoftmaxDropout"):
        assert flops(attention(f"__cudnn$fmha{mask}", "qkv", made, sizes), *QKV) == 2 * one
        assert flops(attention(f"__cudnn$fmha{mask}Backward", "qkv", made, sizes), *QKV) == 5 * one


CONVOLUTION = 'window={{size=3 pad=1_1}}, dim_labels=b0f_0io->b0f, custom_call_target="__cudnn$conv{}"'


@pytest.mark.parametrize(
    ("direction", "operands", "made"),
    [
        ("Forward", "%x, %w", "f32[2,10,5]"),
        ("BiasActivationForward", "%x, %w", "f32[2,10,5]"),
        ("BackwardInput", "%y, %w", "f32[2,10,3]"),
        ("BackwardFilter", "%x, %y", "f32[3,3,5]"),
    ],
)
def test_a_convolution_and_its_gradients_multiply_alike_and_count_no_padding(direction, operands, made):
    inputs = [
        f"{name} = {shape} parameter({i})"
        for i, (name, shape) in enumerate({"x": "f32[2,10,3]", "w": "f32[3,3,5]", "y": "f32[2,10,5]"}.items())
    ]
    call = f"({made}, u8[0]) custom-call({operands}), {CONVOLUTION.format(direction)}"
    assert flops(call, *inputs) == 2 * 2 * (3 * 10 - 2) * 3 * 5


def test_an_unknown_call_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"custom call my\$kernel \(call\): how much it multiplies is not known"):
        flops('f32[4] custom-call(%x), custom_call_target="my$kernel"', "x = f32[4] parameter(0)")


@pytest.mark.parametrize("target", ["annotate_device_placement", "ConcatBitcast", "TopK"])
def test_a_call_that_multiplies_nothing_is_known(target):
    line = f'f32[4] custom-call(%x), custom_call_target="{target}"'
    assert flops(line, "x = f32[4] parameter(0)") == 0
