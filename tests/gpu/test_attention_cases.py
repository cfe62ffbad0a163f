"""Attention by itself: the shapes of a stream, and the forms that are measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gpu import kernels
from experiments.gpu.kernels import Case
from omniforcing_jax.nn.kv_segments import plain_attention
from omniforcing_jax.pipeline.presets import LTX2_19B_STREAM, TINY_STREAM

LATER = Case("video_self", "later", 0, heads=2, head=8, queries=6, fresh=6, past=10)


def test_the_shapes_of_the_full_size_are_those_of_its_stream():
    found = {
        (case.site, case.block, case.window, case.masked): (case.queries, case.fresh, case.past)
        for case in kernels.cases(LTX2_19B_STREAM, (0, 2))
    }
    assert found["video_self", "later", 0, False] == (1152, 1152, 1536 + 3 * 1152)
    assert found["video_self", "later", 2, False] == (1152, 1152, 1536 + 1152)
    assert found["a2v", "later", 0, False] == (1152, 25, 26 + 3 * 25)
    assert found["video_self", "first", None, False] == (1536, 1536, 0)
    assert found["audio_text", "later", None, True] == (25, 1024, 0)
    assert len(found) == 4 * 2 + 4 + 8


def test_merging_by_log_sum_exp_equals_one_softmax():
    q, arrays = LATER.draw(jnp.float32)
    segments = LATER.segments(arrays)
    np.testing.assert_allclose(kernels.merged(q, segments), plain_attention(q, segments), atol=1e-6)


def test_the_merged_form_is_lowered_to_two_flash_kernels_with_float32_sums(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    form = jax.jit(lambda q, held: kernels.merged(q, LATER.segments(held)))
    text = form.trace(*LATER.draw(jnp.bfloat16)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count('custom_call @"__cudnn$fmhaSoftmax') + text.count("custom_call @__cudnn$fmhaSoftmax") == 2
    assert "tensor<1x2x6xf32>" in text


@pytest.mark.parametrize("case", [LATER, Case("audio_text", "first", None, 2, 8, queries=3, fresh=8, masked=True)])
def test_every_form_has_an_error_and_a_time(case):
    rows = kernels.measure_case(case, kernels.prepare(case), chain_ms=0.1)
    assert [row["form"] for row in rows] == (["plain", "merged"] if case.past else ["plain"])
    assert all(0 < row["error"] < 1e-2 and row["ms"] > 0 and row["tflops"] > 0 for row in rows)


def test_a_form_that_fails_costs_no_other_form_its_row(monkeypatch):
    monkeypatch.setattr(kernels, "_plain_with_sums", lambda q, segment: 1 / 0)
    ((case, prepared),) = kernels.prepare_all([LATER]).items()
    plain, merged = kernels.measure_case(case, prepared, chain_ms=0.1)
    assert plain["ms"] > 0
    assert merged["error"].startswith("ZeroDivisionError")


def test_a_case_that_cannot_be_drawn_is_a_row_with_an_error():
    ((case, prepared),) = kernels.prepare_all([LATER._replace(heads=-1)]).items()
    (row,) = kernels.measure_case(case, prepared, chain_ms=0.1)
    assert row["site"] == LATER.site
    assert "error" in row


def test_tiny_cases_cover_every_site():
    assert {case.site for case in kernels.cases(TINY_STREAM, (0,))} == {
        *("video_self", "audio_self", "a2v", "v2a", "video_text", "audio_text")
    }
