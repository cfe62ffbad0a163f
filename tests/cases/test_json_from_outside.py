"""JSON that others wrote: every reader refuses what is too deep, too large, twice there or not finite, in one line."""

import json
import math

import numpy as np
import pytest
from refusal import refusal
from safetensors.numpy import save_file
from tiny_stream import folders

from converters.check.recorded_case import compare_output, open_case
from converters.cli import main as convert
from converters.formats import connectors, transformer
from converters.native_component import is_weights_folder, open_weights_folder
from converters.original_keys import read_header_config
from converters.tensor_folder import open_shards
from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.io.weights import read_config
from omniforcing_jax.pipeline.presets import TINY_CLIP
from omniforcing_jax.pipeline.weights_folder import read_pipeline_config
from omniforcing_jax.stream.saved import read_saved
from omniforcing_jax.strict_json import DEEPEST, LARGEST, loads, read_object
from omniforcing_jax.text.store import open_store
from omniforcing_jax.train.store import HEADER, read_header

DEEP = "[" * 100_000 + "]" * 100_000
BAD = {
    "a bomb": (DEEP, "nested deeper"),
    "a bomb of objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested deeper"),
    "too deep for a reader": ("[" * 40 + "]" * 40, "nested deeper"),
    "a name twice": ('{"a": 1, "a": 2}', "'a' occurs twice"),
    "NaN": ('{"a": {"b": [0, NaN]}}', "a.b[1]=nan: must be finite"),
    "infinity": ('{"a": -Infinity}', "a=-inf: must be finite"),
    "infinite by its exponent": ('{"a": 1e999}', "a=inf: must be finite"),
    "beyond 64 bits": ('{"a": [18446744073709551616]}', "a[0]=18446744073709551616: must fit into 64 bits"),
    "ten thousand digits": ('{"a": ' + "9" * 10_000 + "}", "must fit into 64 bits"),
    "half a surrogate pair": (r'{"a": "\ud800"}', "is no Unicode text"),
    "a list": ("[1]", "must be a JSON object"),
    "no JSON": ("{'a': 1}", "not JSON"),
}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def with_metadata(path, **metadata):
    save_file({"0/video": np.zeros((16, 64), np.float32), "0/audio": np.zeros((16, 64), np.float32)}, path, metadata)
    return path


def as_header(path, text):
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode())
    return path


READERS = {
    "a component's config": lambda at, text: read_config(write(at / "config.json", text).parent),
    "a weights folder": lambda at, text: read_pipeline_config(write(at / "config.json", text).parent),
    "a weights folder to be exported": lambda at, text: open_weights_folder(write(at / "config.json", text).parent),
    "a folder to be told": lambda at, text: is_weights_folder(write(at / "config.json", text).parent),
    "a saved state": lambda at, text: read_saved(write(at / "state.json", text).parent),
    "a safetensors header": lambda at, text: open_tensors(as_header(at / "x.safetensors", text)),
    "LTX-2's header": lambda at, text: read_header_config(at / "x.safetensors", {"config": text}),
    "an index of shards": lambda at, text: open_shards(write(at / "x.safetensors.index.json", text)),
    "contexts by prompt": lambda at, text: open_store(with_metadata(at / "c.safetensors", contexts=text)),
    "a store of rows": lambda at, text: read_header(write(at / HEADER, text).parent),
    "a recorded case": lambda at, text: open_case(write(at / "x.json", text).with_suffix("")),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BAD)
def test_bad_json_is_one_line_that_names_file_and_key(tmp_path, reader, kind):
    text, named = BAD[kind]
    with pytest.raises(ValueError) as error:
        READERS[reader](tmp_path, text)
    line = str(error.value)
    assert len(line.splitlines()) == 1
    assert len(line) < 1000
    assert str(tmp_path) in line
    assert named in line


def test_what_is_as_deep_as_allowed_is_read():
    assert loads("[" * DEEPEST + "]" * DEEPEST, "x")
    with pytest.raises(ValueError, match="nested deeper"):
        loads("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "x")


def test_numbers_of_64_bits_are_read():
    values = {"a": [2**63 - 1, -(2**63), 1e308, 5e-324, 0, True, None]}
    assert loads(json.dumps(values), "x") == values
    assert math.copysign(1, loads("-0.0", "x")) == -1


def test_memory_is_bounded_by_the_number_of_brackets():
    with pytest.raises(ValueError, match=r"x: has more than \d+ objects and lists"):
        loads("[" + "[]," * 5_000_000 + "[]]", "x")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_header_in_another_encoding_is_refused(tmp_path, encoding):
    text = "{}".encode(encoding)
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="not JSON"):
        open_tensors(tmp_path / "x")


def test_a_byte_order_mark_before_a_config_is_passed_by(tmp_path):
    (tmp_path / "config.json").write_bytes('{"a": "ä"}'.encode("utf-8-sig"))
    assert read_object(tmp_path / "config.json") == {"a": "ä"}


def test_what_is_no_file_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json: is no file"):
        read_config(tmp_path)


def test_a_file_that_is_far_too_long_is_not_read_whole(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(LARGEST + 10**12)
    with pytest.raises(ValueError, match="too many for JSON"):
        read_config(tmp_path)


TOPS = (
    '{"format": 1, "components": ["a"]}',
    '{"format": 1, "components": "x"}',
    '{"format": 1, "components": {"transformer": 5}}',
    '{"format": 1, "components": {"transformer": null}}',
    '{"format": 1, "components": {"transformer": ""}}',
    '{"format": 1, "components": {"transformer": "a\\u0000"}}',
    '{"format": 1, "name": 7}',
    '{"format": 99}',
    '{"format": null}',
    '{"format": true}',
    '{"format": "1"}',
    DEEP,
)


@pytest.mark.parametrize("top", range(len(TOPS)))
def test_a_weights_folder_of_wrong_types_is_refused_by_every_command(tmp_path, capsys, top):
    ours = tmp_path / "ours"
    write(ours / "config.json", TOPS[top])
    (ours / "transformer").mkdir()
    commands = (
        ["export", "--from", ours, "--to", "ltx2", "--components", "transformer", "--out", tmp_path / "b.safetensors"],
        ["inspect", ours],
        ["convert", "--from", tmp_path / "none.safetensors", "--out", ours],
    )
    for command in commands:
        assert convert([str(argument) for argument in command]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
    out = tmp_path / "a.mp4"
    line = refusal(capsys, ["stream", "--prompt", "x", "--seconds", 1, "--weights", ours, "--out", out])
    assert "config.json" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def test_a_bomb_in_a_component_a_state_and_contexts_is_refused_by_the_commands(tmp_path, capsys):
    ours, state = tmp_path / "ours", tmp_path / "state"
    write(ours / "config.json", (folders() / "student" / "config.json").read_text())
    write(ours / "transformer" / "config.json", DEEP)
    write(state / "state.json", DEEP)
    contexts = with_metadata(tmp_path / "c.safetensors", contexts=DEEP)
    stream = ["stream", "--seconds", 1, "--out", tmp_path / "a.mp4"]
    for more, named in (
        (["--prompt", "x", "--weights", ours], "transformer/config.json: nested deeper"),
        (["--resume", state], "state.json: nested deeper"),
        (["--prompt", "a red ball", "--contexts", contexts], "c.safetensors: metadata 'contexts': nested deeper"),
    ):
        assert named in refusal(capsys, [*stream, *more])


HEADERS = {
    "num_layers": transformer.COMPONENT.namings["ltx2"].table,
    "connector_num_layers": connectors.COMPONENT.namings["ltx2"].table,
}


@pytest.mark.parametrize("key", HEADERS)
@pytest.mark.parametrize("count", [10**9, 2**62, 0, -1, 1.5, "48", [48], None, True])
def test_layers_without_bound_are_refused_before_they_are_laid_out(key, count):
    import dataclasses

    crossed = dataclasses.replace(TINY_CLIP.model, cross_timestep=CrossTimestep.CROSS)
    values = HEADERS["num_layers"].write(crossed)["transformer"] | {key: count}
    with pytest.raises(ValueError, match=r"layers"):
        HEADERS[key].read({"transformer": values})


CASE = {"config": {"variants": {"a": {}}}, "limits": [{"match": "*", "atol": 0.1}], "tensors": {}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tensors": [1]}, "tensors=[1]"),
        ({"tensors": "x"}, "tensors='x'"),
        ({"tensors": {"a": None}}, "tensors.a=None"),
        ({"limits": [{}]}, "limits[0]={}"),
        ({"limits": [None]}, "limits[0]=None"),
        ({"limits": [{"match": "*", "atol": "x"}]}, "limits[0].atol='x'"),
        ({"config": {"variants": {}, "frames": "9"}}, "config.frames='9'"),
        ({"config": {"variants": {}, "grid": [2]}}, "config.grid=[2]"),
        ({"config": {"variants": {}, "blocks": [[1, 2]]}}, "config.blocks[0]"),
        ({"config": {"runs": {"a": 1}}}, "config.runs.a=1"),
        ({"config": {"guidance": {"stg": 1.0}}}, "config.guidance.cfg_video=None"),
        ({"config": {"variants": {}, "inputs": "in.* of x"}}, "whose inputs are those of this case"),
        ({"config": {"variants": {}, "inputs": "in.* of gone"}}, "gone.json: No such file"),
    ],
)
def test_a_damaged_recorded_case_is_refused_by_the_key(tmp_path, change, named):
    save_file({"in.video_latent": np.zeros((1, 2, 3), np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps(CASE | change))
    with pytest.raises(ValueError) as error:
        open_case(tmp_path / "x")
    assert named in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_whole_case_is_opened(tmp_path):
    save_file({"out.a.video_velocity": np.ones((1, 2, 3), np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps(CASE))
    finding = compare_output(open_case(tmp_path / "x"), "out.a.video_velocity", np.ones((1, 2, 3), np.float32))
    assert finding.within


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shards": 10**9, "count": 10**9}, "shards=1000000000"),
        ({"count": 10**12}, "count=1000000000000"),
        ({"arrays": {"a": ["float99", [1]]}}, "arrays.a='float99'"),
        ({"arrays": {"a": ["float16", [-1]]}}, "arrays.a"),
        ({"arrays": {"a": "float16"}}, "arrays.a='float16': must be [dtype, shape]"),
        ({"arrays": []}, "arrays=[]: must be an object"),
        ({"facts": None}, "facts=None: must be an object"),
        ({"kind": 3}, "kind=3"),
        ({"more": 3}, "has the keys"),
    ],
)
def test_a_stores_header_of_wrong_types_is_refused_by_the_key(tmp_path, change, named):
    header = {"format": "omniforcing_jax rows 1", "kind": "x", "count": 2, "shards": 1, "arrays": {}, "facts": {}}
    (tmp_path / HEADER).write_text(json.dumps(header | change))
    with pytest.raises(ValueError) as error:
        read_header(tmp_path)
    assert named in str(error.value)
    assert str(tmp_path / HEADER) in str(error.value)
