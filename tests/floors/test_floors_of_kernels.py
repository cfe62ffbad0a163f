"""Kernels of a program for a GPU: runs, traffic, roles and floors, against numbers that are counted by hand."""

import pytest
from gpu_texts import CACHE, LAYERS

from experiments.floors.categories import COPIES, category, floor_seconds, tabulate
from experiments.floors.kernels import read_kernels
from experiments.floors.targets import TARGETS
from experiments.floors.traffic import measure
from experiments.hlo.text import parse

ROLES = {"params": "weights", "cache": "cache"}
H100 = TARGETS["h100"]
WEIGHT, TOKENS, NARROW, BIAS, INDEX = 2 * 256 * 512, 2 * 128 * 512, 2 * 128 * 256, 2 * 256, 4


def kernels(text):
    return {kernel.name: kernel for kernel in read_kernels(text, ROLES)}


def test_a_loop_counts_its_kernels_as_often_as_it_turns():
    found = kernels(LAYERS)
    assert {name: kernel.runs for name, kernel in found.items()} == {"slice-start": 6, "gemm": 6, "z": 6, "j": 6}


def test_a_slice_of_a_stack_reads_the_slice():
    cut = kernels(LAYERS)["slice-start"]
    assert (cut.read, cut.written) == (WEIGHT + INDEX, WEIGHT)
    assert category(cut) == "weights_copied"


def test_a_product_reads_both_sides_and_the_bias_and_writes_no_scratch_memory():
    product = kernels(LAYERS)["gemm"]
    assert (product.read, product.written) == (TOKENS + WEIGHT + BIAS, NARROW)
    assert product.flops == 2 * 128 * 256 * 512


def test_a_product_knows_weights_through_their_copy_and_is_named_by_the_rows_of_the_other_side():
    assert category(kernels(LAYERS)["gemm"]) == "gemm_128_rows"
    assert category(kernels(LAYERS.replace("bf16", "f8e4m3fn"))["gemm"]) == "gemm_128_rows_f8e4m3fn"


def test_what_is_read_twice_in_a_kernel_counts_once():
    gate = kernels(LAYERS)["z"]
    assert (gate.read, gate.written) == (NARROW + TOKENS, TOKENS)
    assert category(gate) == "small"


def test_joining_fresh_keys_to_the_cache_is_a_copy_of_the_cache():
    joined = kernels(CACHE)["all"]
    assert joined.read == joined.written == 2 * 256 * 4 * 64
    assert category(joined) == "cache_copied"


def test_an_update_in_place_writes_the_update_alone():
    kept = kernels(CACHE)["kept"]
    assert (kept.read, kept.written) == (2 * 64 * 4 * 64 + INDEX, 2 * 64 * 4 * 64)
    assert category(kept) == "cache_written"


def test_an_update_of_something_made_in_the_kernel_writes_all():
    text = CACHE.replace("dynamic-update-slice(%past,", "dynamic-update-slice(%copied,")
    copied = "  %zero = s32[] constant(0)\n  %copied = bf16[1,192,4,64]{3,2,1,0} negate(%past)\n  ROOT %new"
    inside = parse(text.replace("  %zero = s32[] constant(0)\n  ROOT %new", copied))[0]["written"]
    found, update, whole = measure(inside), 2 * 64 * 4 * 64, 2 * 192 * 4 * 64
    assert found.written == (whole,)
    assert found.read == {0: whole - update, 1: update, 2: INDEX}


def test_an_attention_is_named_by_its_shape():
    attend = kernels(CACHE)["attend"]
    assert category(attend) == "attention_cudnn_64x256_4x64"
    assert attend.flops == 4 * 4 * 64 * 256 * 64
    assert (attend.read, attend.written) == (2 * 64 * 64 * 4 + 2 * 256 * 4 * 64, 2 * 64 * 64 * 4)


def test_a_floor_is_the_larger_of_work_and_traffic():
    product, cut = (kernels(LAYERS)[name] for name in ("gemm", "slice-start"))
    assert floor_seconds(cut, H100) == (2 * WEIGHT + INDEX) / 3.35232e12
    assert floor_seconds(product, H100) == (TOKENS + WEIGHT + BIAS + NARROW) / 3.35232e12 > product.flops / 989e12
    slow = TARGETS["a6000"]
    assert floor_seconds(product, slow) == (TOKENS + WEIGHT + BIAS + NARROW) / slow.bandwidth


def test_eight_bits_have_twice_the_peak_and_float32_half_or_less():
    assert [H100.peak(kind) for kind in ("bf16", "f16", "f8e4m3fn", "s8", "f32")] == [
        989e12,
        989e12,
        1979e12,
        1979e12,
        494.5e12,
    ]
    assert H100.peak("f32", is_exact=True) == 67e12


def test_a_table_adds_up_and_always_has_the_copies():
    table = tabulate(read_kernels(LAYERS, ROLES), H100)
    assert set(COPIES) <= set(table)
    assert table["cache_copied"] == dict.fromkeys(("runs", "tflop", "read_gb", "written_gb", "floor_ms"), 0)
    copies = table["weights_copied"]
    assert (copies["runs"], copies["read_gb"]) == (6, pytest.approx(6 * (WEIGHT + INDEX) / 1e9))
    assert table["gemm_128_rows"]["tflop"] == pytest.approx(6 * 2 * 128 * 256 * 512 / 1e12)


def test_weights_that_are_made_into_other_weights_count_as_copied():
    """Scales times eight bits, written out wide, are a copy of weights, although something is multiplied."""
    text = """
%widened (w: s8[256,512], s: f32[256]) -> bf16[256,512] {
  %w = s8[256,512]{1,0} parameter(0)
  %s = f32[256]{0} parameter(1)
  %wide = f32[256,512]{1,0} convert(%w)
  %spread = f32[256,512]{1,0} broadcast(%s), dimensions={0}
  %scaled = f32[256,512]{1,0} multiply(%wide, %spread)
  ROOT %made = bf16[256,512]{1,0} convert(%scaled)
}

ENTRY %main (w: s8[256,512], s: f32[256]) -> bf16[256,512] {
  %w = s8[256,512]{1,0} parameter(0), metadata={op_name="params.w.values"}
  %s = f32[256]{0} parameter(1), metadata={op_name="params.w.scales"}
  ROOT %made = bf16[256,512]{1,0} fusion(%w, %s), kind=kLoop, calls=%widened
}
"""
    made = kernels(text)["made"]
    assert category(made) == "weights_copied"
    assert (made.read, made.written) == (256 * 512 + 4 * 256, 2 * 256 * 512)
    beside = text.replace("params.w.scales", "sigmas")
    assert category(kernels(beside)["made"]) == "small"


@pytest.mark.parametrize("name", TARGETS)
def test_a_description_names_the_card_and_its_memory(name):
    target = TARGETS[name]
    text = target.describe()
    assert text.count("{") == text.count("}")
    assert target.name in text
    assert f"device_memory_size: {target.memory_bytes} " in text
