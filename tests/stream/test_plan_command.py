"""`omniforcing plan`: planned bytes are those of real arrays, and its counts those of compiled programs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusal import refusal
from tiny_stream import PROMPT, folders, listed

from omniforcing_jax.cli.main import main
from omniforcing_jax.parallel.jaxpr_work import peak_bytes, products, trace
from omniforcing_jax.pipeline.budget import count_bytes
from omniforcing_jax.pipeline.cards import CARDS
from omniforcing_jax.pipeline.presets import LTX2_19B_STREAM
from omniforcing_jax.pipeline.weights_folder import load_pipeline
from omniforcing_jax.stream.on_card import (
    PERFECT,
    Assumptions,
    memory_by_part,
    stream_parts,
    time_by_part,
    trace_programs,
    weights_by_part,
)
from omniforcing_jax.stream.plan import plan_stream, resolve_request
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.start import open_stream

ROWS, WIDTH = 16, 32
X, W = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32), jax.ShapeDtypeStruct((4, WIDTH, WIDTH), jnp.float32)
LAYER = ROWS * WIDTH * 4  # bytes of hidden states


def layers(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def test_products_in_a_loop_count_as_often_as_it_runs():
    (found,) = products(trace(layers, X, W).jaxpr)
    assert (found.flops, found.runs) == (2 * ROWS * WIDTH * WIDTH, 4)
    assert found.nbytes == 2 * LAYER + WIDTH * WIDTH * 4
    assert (found.is_batched, found.is_convolution) == (False, False)


def test_the_flops_of_a_convolution_are_those_of_its_patches():
    image, kernel = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    (found,) = products(trace(convolve, image, kernel).jaxpr)
    assert found.flops == 2 * 64 * 5 * 27


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (lambda x, w: x @ w[0], (X, W), LAYER + WIDTH * WIDTH * 4),  # a slice of the weights, and the result
        (lambda x: jnp.tanh(x) + 1, (X,), LAYER),  # fused: only the result
        (lambda x: jax.lax.dynamic_update_slice(x, jnp.ones((1, WIDTH)), (2, 0)), (X,), WIDTH * 4),  # in place
        (lambda x, w: (x @ w) @ w, (X, jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)), 2 * LAYER),
        (layers, (X, W), 2 * LAYER),  # a product, and what is carried
    ],
)
def test_memory_is_of_what_cannot_be_fused_or_written_in_place(function, shapes, expected):
    assert peak_bytes(trace(function, *shapes).jaxpr, fused_attention=True) == expected


def test_scores_count_only_where_attention_is_not_fused():
    q = jax.ShapeDtypeStruct((1, 64, 2, 8), jnp.float32)

    def attend(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights, v)

    jaxpr, scores = trace(attend, q, q, q).jaxpr, 2 * 64 * 64 * 4
    assert peak_bytes(jaxpr, fused_attention=False) - peak_bytes(jaxpr, fused_attention=True) >= scores
    assert all(each.is_batched for each in products(jaxpr))


@pytest.mark.parametrize("kind", [pytest.param(None, marks=pytest.mark.long), "int8"])
def test_planned_bytes_are_those_of_a_streams_arrays(kind):
    pipeline = load_pipeline(folders() / "student", weights_dtype=kind) if kind else listed()  # as a card has it
    plan = plan_stream(pipeline, StreamRequest(prompt=PROMPT, weights_dtype=kind))
    parts = stream_parts(plan, plan.config.words.tokens)
    found = weights_by_part(parts.pipeline)
    assert sum(found.values()) == sum(count_bytes(tree) for tree, _ in pipeline.parts.values())
    assert found == weights_by_part(pipeline)
    if kind:
        return
    stream = open_stream(pipeline, PROMPT)
    for _ in range(3):
        next(stream)
    state = stream.state
    made = (state.cache, state.prompt, state.history, (state.picture, state.sound))
    for planned, real in zip((parts.cache, parts.prompt, parts.history, parts.carries), made, strict=True):
        assert count_bytes(planned) == count_bytes(real)


@pytest.fixture(scope="module")
def full_size():
    """LTX-2's stream at 512x768 in bfloat16, with a trace of its programs."""
    plan = resolve_request(LTX2_19B_STREAM, StreamRequest(prompt="", dtype=jnp.bfloat16))
    parts = stream_parts(plan, 1024)
    return plan, parts, trace_programs(plan, parts)


@pytest.mark.long
def test_full_size_counts_are_those_of_the_program_that_was_compiled_for_an_h100(full_size):
    """It has 182.4 TFLOP, and decoding 11.8. Denoising has 41.65 GB of arguments."""
    plan, parts, programs = full_size
    network, video = (
        sum(each.runs * each.flops for name in names for each in products(getattr(programs, name).jaxpr))
        for names in (("denoise", "commit"), ("video",))
    )
    assert network == pytest.approx(182.4e12, rel=0.01)
    assert video == pytest.approx(11.8e12, rel=0.01)
    memory, transformer = memory_by_part(plan, parts, programs), parts.pipeline.transformer
    # What is read once for a prompt, and once for the noise levels.
    once = [(s.caption, s.time, s.cross_time, s.cross_gate_time) for s in (transformer.video, transformer.audio)]
    once += [(a.k, a.v, a.k_norm) for a in (each.text_attn for each in transformer.layers.streams)]
    read = ("text keys and values", "modulation of the noise levels", "cache")
    arguments = memory["transformer"] - count_bytes(once) + sum(memory[name] for name in read)
    assert arguments == pytest.approx(41.65e9, rel=0.001)
    assert peak_bytes(programs.video.jaxpr, fused_attention=True) == pytest.approx(0.76e9, rel=0.01)
    assert memory["largest network program, before fusion"] < 0.5e9  # no weight and no past key is copied


@pytest.mark.long
def test_expected_time_is_never_below_the_floor_and_falls_with_a_faster_card(full_size):
    plan, _, programs = full_size
    times = {name: time_by_part(plan, programs, CARDS[name], Assumptions()) for name in ("rtx4090", "h100")}
    floor = time_by_part(plan, programs, CARDS["h100"], PERFECT)
    assert all(times["h100"][name] >= floor[name] for name in floor)
    assert 220 < sum(floor.values()) < sum(times["h100"].values()) < sum(times["rtx4090"].values()) / 4


def test_the_command_prints_memory_and_speed_and_says_whether_it_fits(tmp_path, capsys):
    out = tmp_path / "plan.json"
    flags = ["--weights", str(folders() / "student"), "--device", "l40s", "--weights-dtype", "float8"]
    flags += ["--cache-dtype", "int8"]
    assert main(["plan", *flags, "--json", str(out)]) == 0
    said, figures = capsys.readouterr().out, json.loads(out.read_text())
    assert "64" in said
    assert "48 GB: fits" in said
    assert "large matrices in float8, cached video in int8" in said
    assert figures["expected_ms"]["cache, out of eight bits"] > figures["floor_ms"]["cache, out of eight bits"] > 0
    assert "shares of them that one H200 reached" in said
    assert figures["together"] == sum(figures["memory"].values())
    assert figures["fps"] == pytest.approx(24_000 / sum(figures["expected_ms"].values()))
    assert figures["memory"]["transformer, float8"] > 0
    assert np.isclose(sum(figures["memory"].values()), figures["together"])


@pytest.mark.long
def test_the_command_compares_all_cards(tmp_path, capsys):
    out = tmp_path / "cards.json"
    assert main(["plan", "--preset", "tiny", "--device", "all", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["cards"]
    assert list(rows) == list(CARDS)
    assert [each["weights_dtype"] for each in rows["h100"].values()] == [None, *["float8"] * 3]
    assert [each["weights_dtype"] for each in rows["a100-40"].values()] == [None, *["int8"] * 3]
    assert [each["cache_dtype"] for each in rows["h100"].values()] == [None, None, "int8", "int8"]
    wide, weights, cache, short = (each["together"] for each in rows["h100"].values())
    assert wide > weights > cache > short
    assert "| rtx5090 | 32 | 1.0, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--device", "h1000"], "h1000"),
        (
            ["--device", "h100", "--preset", "ltx3"],
            "preset='ltx3': must be one of ltx2-19b, ltx2-22b, ltx2.5-22b, ltx2-22b-echowm, chime, tiny",
        ),
        (["--device", "h100", "--preset", "chime-teacher"], "'chime-teacher' is a bidirectional teacher"),
        (["--device", "h100", "--preset", "tiny", "--weights", "chime"], "weights='chime': not with --preset"),
        (
            ["--device", "all", "--preset", "tiny", "--window", "2"],
            "device='all': not with --weights-dtype, --cache-dtype or --window",
        ),
        (["--device", "h100", "--text-tokens", "0"], "text-tokens=0"),
        (["--device", "h100", "--preset", "tiny", "--height", "65"], "height=65"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(capsys, flags, named):
    assert named in refusal(capsys, ["plan", *flags])
