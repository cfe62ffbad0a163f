"""A file that is damaged anywhere is refused in one line, or what is converted is what its bytes say."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import FORCED, draw_network
from run import refused, run
from safetensors.numpy import save_file

from converters.cli import main
from converters.component import LTX2
from converters.native_component import open_weights_folder, rename_tensors

VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=3)
)
KINDS = ("cut", "grown", "length", "byte", "gone", "put", "field", "name", "twice")
MODEL = "transformer/model.safetensors"
many = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def mutations(draw_):
    """Draw a way to damage the length, the header or the size of a file."""
    kind, place = draw_(st.sampled_from(KINDS)), draw_(st.floats(0, 1, exclude_max=True))
    return kind, place, draw_(VALUES), draw_(st.sampled_from(["dtype", "shape", "data_offsets"])), draw_(st.binary())


def mutate(data, kind, place, value, field, some):
    length = int.from_bytes(data[:8], "little")
    spot = 8 + int(place * length)
    if kind == "cut":
        return data[: int(place * len(data))]
    if kind == "grown":
        return data + some + b"\0"
    if kind == "length":
        return (some + data[:8])[:8] + data[8:]
    if kind == "byte":
        return data[:spot] + (some or b"\0")[:1] + data[spot + 1 :]
    if kind == "gone":
        return data[:spot] + data[spot + 1 + len(some) :]
    if kind == "put":
        return data[:spot] + b"\0" + some + data[spot:]
    header = json.loads(data[8 : 8 + length])
    name = sorted(header)[int(place * len(header))]
    text = json.dumps(header)
    if kind == "field":
        header[name][field] = value
        text = json.dumps(header)
    elif kind == "name":
        text = text.replace(json.dumps(name), json.dumps(str(value)), 1)
    else:
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    return len(text).to_bytes(8, "little") + text.encode() + data[8 + length :]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small file, and the bytes that it is converted to."""
    folder = tmp_path_factory.mktemp("good")
    save_file(draw_network(FORCED), folder / "good.safetensors")
    run("convert", "--from", folder / "good.safetensors", "--heads", 2, "--out", folder / "ours")
    return (folder / "good.safetensors").read_bytes(), (folder / "ours" / MODEL).read_bytes()


@pytest.fixture
def convert(tmp_path, capsys):
    """Convert some bytes: gives the folder, or the line of a refusal that left nothing behind."""

    def try_it(data):
        folder = tmp_path / f"case{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        path, out = folder / "bad.safetensors", folder / "ours"
        path.write_bytes(data)
        command = ("convert", "--from", path, "--heads", 2, "--out", out)
        capsys.readouterr()
        if (code := main([str(word) for word in command])) == 0:
            return out
        (line,) = capsys.readouterr().err.splitlines()
        assert (code, list(folder.iterdir())) == (2, [path])
        assert line.startswith(f"error: {path}: ")
        return line

    return try_it


@pytest.mark.long
@settings(many, max_examples=500)
@given(mutation=mutations())
def test_any_mutation_of_length_header_or_size_is_refused_in_one_line_or_does_no_harm(good, convert, mutation):
    source, converted = good
    answer = convert(mutate(source, *mutation))
    if not isinstance(answer, str):
        assert mutation[0] in ("length", "byte", "field", "name")  # all others cannot be right
        assert (answer / MODEL).read_bytes() == converted


def find(data, spot):
    """Return the key and the values of the bfloat16 tensor that a byte belongs to."""
    length = int.from_bytes(data[:8], "little")
    for key, entry in json.loads(data[8 : 8 + length]).items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if begin <= spot < end:
            return key, np.frombuffer(data[begin:end], ml_dtypes.bfloat16).reshape(entry["shape"])
    raise AssertionError(spot)


@pytest.mark.parametrize("count", [30, pytest.param(100, marks=pytest.mark.long)])
def test_a_flip_in_tensor_data_is_copied_exactly_or_refused_as_not_finite(good, convert, count):
    source, converted = good

    @settings(many, max_examples=count)
    @given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), is_exponent=st.booleans())
    def check(place, bit, is_exponent):
        begin = 8 + int.from_bytes(source[:8], "little")
        spot, bit = begin + int(place * (len(source) - begin)), 6 if is_exponent else bit
        spot |= is_exponent  # the byte of a bfloat16 that has the sign and most of the exponent
        data = bytearray(source)
        data[spot] ^= 1 << bit
        answer, (key, after) = convert(bytes(data)), find(bytes(data), spot)
        if not np.isfinite(after.astype(np.float32)).all():
            assert answer.endswith(f"bad.safetensors: {key} has values that are not finite")
            return
        found = np.frombuffer((answer / MODEL).read_bytes(), np.uint8)
        changed = np.flatnonzero(found != np.frombuffer(converted, np.uint8))
        assert found[changed].tolist() == [data[spot]]
        np.testing.assert_array_equal(
            rename_tensors(open_weights_folder(answer)["transformer"], LTX2)[key].load(), after
        )

    check()


def test_what_is_refused_cannot_be_inspected_either(good, tmp_path, capsys):
    source, _ = good
    for number, data in enumerate((source[:-1], source[:4], source + b"x", b"", bytes(8) + source[8:])):
        (tmp_path / f"{number}.safetensors").write_bytes(data)
        assert refused(capsys, "inspect", tmp_path / f"{number}.safetensors").startswith(f"error: {tmp_path}/{number}")
