"""`--save-state` removes and replaces what a save has written, and nothing else."""

import json
import threading

import jax.numpy as jnp
import pytest
from refusal import refusal
from tiny_stream import PROMPT, folders

from omniforcing_jax.io import lock
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.stream import saved
from omniforcing_jax.stream.state import StreamState


@pytest.fixture
def write(monkeypatch):
    """Write a state of one tensor, without a stream."""

    def save(folder, value):
        monkeypatch.setattr(saved, "_storable", lambda state: {"a": jnp.full((3,), value)})
        values = {"format": saved.FORMAT, "tensors": saved.TENSORS.format(f"{value}" * 8), "value": value}
        saved.write_state(folder, object.__new__(StreamState), values)

    return save


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_state_json_of_somebody_else_is_refused_before_work(capsys, tmp_path, no_work):
    for text in ('{"mine": true}', "not JSON", "[" * 100_000, '{"format": 1, "tensors": "../../a"}'):
        (tmp_path / "state.json").write_text(text)
        flags = ["--seconds", 1, "--out", tmp_path / "a.mp4", "--weights", folders() / "student"]
        line = refusal(capsys, ["stream", "--prompt", PROMPT, *flags, "--save-state", tmp_path])
        assert "state.json: is no saved stream" in line
        assert (tmp_path / "state.json").read_text() == text


def test_foreign_files_stay_and_strays_of_killed_saves_go(tmp_path, write):
    foreign = {"state-of-the-art.safetensors": "precious", ".state.json.mine": "x", "state-1.safetensors": ""}
    for name, text in foreign.items():
        (tmp_path / name).write_text(text)
    write(tmp_path, 1)
    (tmp_path / "state-99.safetensors").write_bytes((tmp_path / "state-11111111.safetensors").read_bytes())
    (tmp_path / ".state.json.0123456789ab").write_text("{")
    write(tmp_path, 2)
    assert names(tmp_path) == sorted([*foreign, "state-22222222.safetensors", "state.json"])
    assert (tmp_path / "state-of-the-art.safetensors").read_text() == "precious"


def test_two_saves_to_one_folder_wait_for_each_other(tmp_path, write):
    with lock.held(tmp_path / lock.NAME, "folder"):
        other = threading.Thread(target=write, args=(tmp_path, 1))
        other.start()
        other.join(0.3)
        assert names(tmp_path) == [lock.NAME]
    other.join()
    write(tmp_path, 2)
    values = json.loads((tmp_path / "state.json").read_text())
    assert values["value"] == 2
    assert open_tensors(tmp_path / values["tensors"]).read("a").tolist() == [2, 2, 2]
