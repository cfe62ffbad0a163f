"""Numbers of a request that are not finite, too large, or would silently mean another request."""

import pytest
from refusal import refusal
from tiny_stream import PROMPT, folders

from omniforcing_jax.guidance import StreamGuidance
from omniforcing_jax.sample.request import ClipRequest
from omniforcing_jax.stream.request import StreamRequest

SAMPLE = ["sample", "--prompt", "a red ball", "--seconds", 1, "--weights", folders() / "teacher"]
STREAM = ["stream", "--prompt", PROMPT, "--seconds", 1, "--weights", folders() / "student"]


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ([*SAMPLE, "--guidance", "nan"], "cfg=nan: must be a finite number"),
        ([*SAMPLE, "--guidance", "inf"], "cfg=inf"),
        ([*SAMPLE, "--guidance", "video.cfg=nan"], "cfg=nan"),
        ([*SAMPLE, "--guidance", "stg=-inf", "layers=1"], "stg=-inf"),
        ([*SAMPLE, "--guidance", "modality=1e999"], "modality=inf"),
        ([*SAMPLE, "--guidance", "rescale=nan"], "rescale=nan"),
        ([*SAMPLE, "--guidance", "3", "layers=" + "9" * 30], "layers="),
        ([*SAMPLE, "--renewal", "inf"], "renewal=inf"),
        ([*SAMPLE, "--renewal", "nan"], "renewal=nan"),
        ([*SAMPLE, "--ancestral", "1.5"], "ancestral=1.5: must be in [0, 1]"),
        ([*SAMPLE, "--ancestral", "1", "--renewal", "1"], "renewal=1.0: must be 0 with an ancestral step"),
        ([*SAMPLE, "--seconds", "nan"], "seconds=nan"),
        ([*SAMPLE, "--seconds", "inf"], "seconds=inf"),
        ([*SAMPLE, "--seconds", "1e18"], "of memory are needed"),
        ([*SAMPLE, "--steps", "10000000000"], "steps=10000000000"),
        ([*SAMPLE, "--height", "0"], "height=0"),
        ([*SAMPLE, "--width", "-32"], "width=-32"),
        ([*SAMPLE, "--seed", "-1"], "seed=-1"),
        ([*SAMPLE, "--seed", str(2**32)], "seed=4294967296"),
        ([*STREAM, "--seed", str(2**32)], "seed=4294967296: must be a whole number from 0 to 4294967295"),
        ([*STREAM, "--seed", str(10**30)], "seed=1000000000000000000000000000000"),
        ([*STREAM, "--seed", "-7"], "seed=-7"),
        ([*STREAM, "--height", "0"], "height=0"),
        ([*STREAM, "--width", "0"], "width=0"),
        ([*STREAM, "--height", str(2**40)], "height=1099511627776"),
        ([*STREAM, "--seconds", "nan"], "seconds=nan"),
        ([*STREAM, "--seconds", "-inf"], "seconds=-inf"),
        ([*STREAM, "--lookahead", str(10**12)], "lookahead=1000000000000"),
        ([*STREAM, "--window", str(10**30)], "window="),
        ([*STREAM, "--fade", str(10**30)], "fade="),
        ([*STREAM, "--recompute", str(10**30)], "history="),
        ([*STREAM, "--prompt-at", "nan", PROMPT], "prompt-at=nan"),
    ],
)
def test_a_number_that_is_out_of_range_is_refused_by_its_flag(capsys, tmp_path, no_work, command, named):
    assert named in refusal(capsys, [*command, "--out", tmp_path / "a.mp4"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["stream", "decode"])
def test_a_benchmark_takes_no_seed_that_would_be_another(capsys, tmp_path, no_work, what):
    command = ["bench", what, "--blocks", 9, "--weights", folders() / "student", "--json", tmp_path / "a.json"]
    assert "seed=4294967296" in refusal(capsys, [*command, "--seed", 2**32])
    assert "height=0" in refusal(capsys, [*command, "--height", 0])


def test_seeds_of_a_batch_are_checked_one_by_one():
    with pytest.raises(ValueError, match="seed=4294967296"):
        StreamRequest(prompt=("a", "b"), seed=2**32 - 1)
    assert StreamRequest(prompt="a", seed=2**32 - 1).seeds == (2**32 - 1,)


def test_seeds_at_both_ends_of_the_range_differ():
    import jax

    from omniforcing_jax.pipeline.checks import LARGEST_SEED

    draws = [float(jax.random.normal(jax.random.key(seed))) for seed in (0, 1, 2**31 - 1, 2**31, LARGEST_SEED)]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("dtype", ["int8", "float64", "complex64", "nothing", "", "U7"])
def test_a_type_that_nothing_is_computed_in_is_refused(dtype):
    with pytest.raises(ValueError, match=f"dtype={dtype!r}: must be one of float32"):
        StreamRequest(prompt="a", dtype=dtype)
    with pytest.raises(ValueError, match=f"dtype={dtype!r}: must be one of float32"):
        ClipRequest(prompts=("a",), seconds=1, dtype=dtype)


def test_strengths_in_python_must_be_finite_too():
    with pytest.raises(ValueError, match="cfg=nan"):
        StreamGuidance(cfg=float("nan"))
    with pytest.raises(ValueError, match="cfg=inf"):
        ClipRequest(prompts=("a",), seconds=1, guidance=float("inf"))
