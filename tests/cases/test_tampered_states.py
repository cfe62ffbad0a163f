"""Saved streams that somebody changed: refused in one line before weights are loaded, or resumed as they are."""

import json
import shutil

import pytest
from tiny_stream import PROMPT, folders, student

from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import CHECKSUM, STATE, read_saved, save
from omniforcing_jax.stream.start import open_stream


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A stream that was saved before its first block."""
    folder = tmp_path_factory.mktemp("states") / "state"
    save(open_stream(student(), PROMPT, seed=3), folder)
    return folder


@pytest.fixture
def state(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "state")


def change(state, place, value):
    """Change one value of a state's JSON, by its dotted place."""
    values = json.loads((state / STATE).read_text())
    *parents, last = place.split(".")
    inside = values
    for name in parents:
        inside = inside[name]
    inside[last] = value
    (state / STATE).write_text(json.dumps(values))


def refused(state, monkeypatch):
    monkeypatch.setattr("omniforcing_jax.pipeline.checks.load", None)
    with pytest.raises(ValueError) as error:
        resume(state, folders() / "student")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("tensors", "../other/state-1.safetensors", "tensors='../other/state-1.safetensors'"),
        ("tensors", "/etc/passwd", "tensors='/etc/passwd': must be the name of a file in the same folder"),
        ("tensors", "", "tensors=''"),
        ("tensors", "state-\x00.safetensors", "tensors="),
        ("tensors", None, "tensors=None"),
        ("sha256", "0" * 64, "its bytes are not those that were saved"),
        ("sha256", None, "sha256=None"),
        ("request.dtype", "int8", "dtype='int8'"),
        ("request.dtype", "float64", "dtype='float64'"),
        ("request.dtype", "nothing", "dtype='nothing': must be one of float32, bfloat16, float16"),
        ("request.dtype", 3, "request.dtype=3"),
        ("weights_dtype", "int8", "weights_dtype='int8'"),
        ("weights_dtype", "no type", "weights_dtype='no type'"),
        ("key_kind", "rbg", "key_kind='rbg'"),
        ("key_kind", "", "key_kind=''"),
        ("block", -1, "block=-1"),
        ("block", 10**15, "block=1000000000000000"),
        ("left", -1, "left=-1"),
        ("recompute", -1, "recompute=-1"),
        ("recompute", 10**6, "recompute=1000000: must be between 0 and"),
        ("request.history", -1, "history=-1"),
        ("request.history", 10**9, "history=1000000000"),
        ("request.history", 1000, "mis-shaped history/later"),
        ("request.prompt", [], "prompt=()"),
        ("request.prompt", [["a"]], "request.prompt"),
        ("request.prompt", 7, "request.prompt=7"),
        ("request.prompt", ["a red ball"] * 3, "mis-shaped"),
        ("request.seed", 2**32, "seed=4294967296"),
        ("request.seed", -1, "seed=-1"),
        ("request.seed", [1, 2], "seed=(1, 2)"),
        ("request.height", 0, "height=0"),
        ("request.height", 10**9, "height=1000000000"),
        ("request.width", 33, "width=33: must be a positive multiple of"),
        ("request.window", 10**6, "window=1000000"),
        ("request.steps", 0, "steps=0"),
        ("request.lookahead", 10**9, "lookahead=1000000000"),
        ("request.seconds", "1", "request.seconds='1'"),
        ("weights.transformer.rotary.grid", "float16", "rotary.grid='float16'"),
        ("weights.transformer", [], "transformer"),
        ("weights.resolution", [64], "resolution=[64]"),
        ("weights", {}, "belongs to other weights"),
        ("request", {}, "request: has the keys []"),
        ("format", 7.0, "expected format=7"),
    ],
)
def test_a_changed_value_is_refused_by_its_name(state, monkeypatch, place, value, named):
    change(state, place, value)
    assert named in refused(state, monkeypatch)


def test_a_flipped_bit_of_the_tensors_is_found(state, monkeypatch):
    path = state / read_saved(state).header.tensors
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    assert f"{path}: its bytes are not those that were saved" in refused(state, monkeypatch)


def test_a_state_that_names_the_tensors_of_another_one_is_refused(state, tmp_path, monkeypatch):
    """The other file is a whole state: only its hash tells that it is not this one's."""
    other = tmp_path / "other"
    save(open_stream(student(), PROMPT, seed=4), other)
    name = read_saved(other).header.tensors
    shutil.copyfile(other / name, state / name)
    change(state, "tensors", name)
    assert "its bytes are not those that were saved" in refused(state, monkeypatch)


def test_an_untouched_state_goes_on(state):
    assert CHECKSUM in json.loads((state / STATE).read_text())
    assert resume(state, student()).state.block == 0
