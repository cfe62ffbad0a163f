"""Conversions and exports that were killed, or run side by side: nothing old is lost, nothing partial is taken.

A forked process is killed at its n-th change of a name in the folder, for every n: between any two of these moments
the folder is the same.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from published import SMALL, draw_network, save_ltx2, text_path
from run import refused, run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from converters import convert
from converters.formats import connectors
from omniforcing_jax.io import folder_swap, lock, manifest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two LTX-2 files of the same header and shapes, and other values."""
    folder = tmp_path_factory.mktemp("sources")
    tensors = draw_network(SMALL) | draw_network(text_path(SMALL), component=connectors.COMPONENT)
    save_ltx2(folder / "old.safetensors", tensors=tensors)
    with safe_open(folder / "old.safetensors", "np") as file:
        metadata = file.metadata()
    doubled = {
        key: (value.astype(np.float32) * 2).astype(value.dtype)
        for key, value in load_file(folder / "old.safetensors").items()
    }
    save_file(doubled, folder / "new.safetensors", metadata)
    return folder


@pytest.fixture(scope="module")
def converted(sources):
    for name in ("old", "new"):
        run("convert", "--from", sources / f"{name}.safetensors", "--out", sources / name)
    return sources


def content(folder):
    """Read all files but the manifests' and sources' names, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "source.json"}


KILLED = """
import os, signal, sys
from converters.cli import main

*arguments, folder = sys.argv[1:]


def die_at(call):
    # Ends this process before its n-th change of a name in the folder.
    def watch(event, arguments):
        global calls
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree") and folder in str(arguments[0]):
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


calls = 0
for call in range(int(os.environ["FROM"]), int(os.environ["TO"])):
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w")
        die_at(call)
        os._exit(main(arguments))
    _, status = os.waitpid(child, 0)
    print(call, os.WTERMSIG(status), flush=True)
    sys.stdin.readline()
"""


def killed_ones(command, folder):
    """Run a command again and again, killed ever later; yields after each kill, and ends once it went through."""
    numbers = {"FROM": "1", "TO": "200", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", KILLED, *map(str, command), str(folder)]
    with subprocess.Popen(
        program, env=os.environ | numbers, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        for line in process.stdout:
            if int(line.split()[1]) == 0:
                break
            yield
            process.stdin.write("\n")
            process.stdin.flush()
        process.kill()


@pytest.mark.long
def test_a_conversion_killed_anywhere_leaves_the_old_folder_or_says_what_it_is(converted, tmp_path, capsys):
    shutil.copytree(converted / "old", tmp_path / "ours")
    command = ["convert", "--from", converted / "new.safetensors", "--out", tmp_path / "ours"]
    old, new, seen = content(converted / "old"), content(converted / "new"), set()
    for _ in killed_ones(command, tmp_path / "ours"):
        found = content(tmp_path / "ours")
        parts = {name: value for name, value in found.items() if not name.startswith(".")}
        if parts not in (old, new):
            line = refused(capsys, "inspect", tmp_path / "ours")
            assert "is under way, or was interrupted: run it again" in line
            seen.add("mixed")
        folder_swap.recover(tmp_path / "ours")
        back = content(tmp_path / "ours")
        back.pop(lock.NAME, None)
        assert back in (old, new)
        seen.add("old" if back == old else "new")
        shutil.rmtree(tmp_path / "ours")
        shutil.copytree(converted / "old", tmp_path / "ours")
    assert seen == {"mixed", "old", "new"}
    assert content(tmp_path / "ours") == new
    assert [path.name for path in (tmp_path / "ours").iterdir() if path.name.startswith(".")] == []


@pytest.mark.long
def test_a_first_conversion_killed_anywhere_does_not_block_the_next(converted, tmp_path):
    command = ["convert", "--from", converted / "new.safetensors", "--out", tmp_path / "ours"]
    count = sum(1 for _ in killed_ones(command, tmp_path / "ours"))
    assert count > 10
    assert content(tmp_path / "ours") == content(converted / "new")


@pytest.mark.long
@pytest.mark.parametrize(("to", "out"), [("diffusers", "folder"), ("ltx2", "back.safetensors")])
def test_an_export_killed_anywhere_does_not_block_the_next(converted, tmp_path, to, out):
    command = ["export", "--from", converted / "new", "--to", to, "--out", tmp_path / "a" / out]
    whole = tmp_path / "whole" / out
    run("export", "--from", converted / "new", "--to", to, "--out", whole)
    for _ in killed_ones(command, tmp_path / "a"):
        index = tmp_path / "a" / out / "model_index.json"
        assert not index.exists() or content(index.parent).items() >= content(whole).items()
        if (tmp_path / "a" / "back.safetensors").exists():
            assert (tmp_path / "a" / "back.safetensors").read_bytes() == whole.read_bytes()
            break  # a rerun is refused: the file exists already
        if index.exists():
            break
    expected = content(whole.parent)
    folder_swap.recover(tmp_path / "a" / out)
    folder_swap.recover(tmp_path / "a")
    assert {name: data for name, data in content(tmp_path / "a").items() if "/." not in f"/{name}"} == expected


SWAPPED = """
import os, shutil, signal, sys
from pathlib import Path
from omniforcing_jax.io import folder_swap

folder, unfinished = Path(sys.argv[1]), {"a": "-", "b": None}[sys.argv[2]]
old, new = ({"x/1": n, "y/1": n, "z": n, **more} for n, more in (("old", {"x/2": "old"}), ("new", {"w/1": "new"})))


def write(place, content):
    for name, text in content.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)


def read():
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def kill(work, call):
    child = os.fork()
    if not child:
        calls = iter(range(1, 1000))

        def watch(event, arguments):
            if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "open") and str(folder) in str(arguments[0]):
                if next(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        work()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def swap():
    with folder_swap.swapping_in(folder, ["z"], unfinished) as stage:
        write(stage, new)


def recover():
    folder_swap.recover(folder)


for begin in ({}, old):
    for call in range(1, 300):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write(folder, begin)
        killed = kill(swap, call)
        seen = {name: text for name, text in read().items() if not name.startswith(".")}
        after = {**begin, **new} if begin == {} else {**new}
        if seen not in (begin, after) and unfinished:
            assert seen.get("z") == unfinished, seen
        kill(recover, 1 + call % 9)
        recover()
        found = {name: text for name, text in read().items() if name != ".omniforcing.lock"}
        assert found in (begin, after), (call, found)
        if not killed:
            assert found == after
            break
    print(call)
"""


@pytest.mark.parametrize("unfinished", ["a", "b"])
def test_an_exchange_killed_at_any_call_leaves_all_old_or_all_new(tmp_path, unfinished):
    """Also if the process that puts things back is killed."""
    program = [sys.executable, "-c", SWAPPED, str(tmp_path / "folder"), unfinished]
    output = subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert all(int(calls) > 20 for calls in output.split())


def test_a_conversion_that_fails_half_way_through_its_moves_puts_the_old_back(converted, tmp_path, capsys, monkeypatch):
    shutil.copytree(converted / "old", tmp_path / "ours")
    before, replace = content(tmp_path / "ours"), os.replace

    def fail_at_the_config(source, place):
        if Path(place) == tmp_path / "ours" / "config.json" and folder_swap.NEW in Path(source).parts:
            raise OSError(5, "Input/output error", str(place))
        replace(source, place)

    monkeypatch.setattr(os, "replace", fail_at_the_config)
    command = ["convert", "--from", converted / "new.safetensors", "--out", tmp_path / "ours"]
    assert "Input/output error" in refused(capsys, *command)
    assert content(tmp_path / "ours") == before


def test_a_second_conversion_into_a_folder_is_refused_while_the_first_runs(converted, tmp_path, capsys):
    (tmp_path / "ours").mkdir()
    command = ["convert", "--from", converted / "new.safetensors", "--out", tmp_path / "ours"]
    with lock.held(tmp_path / "ours" / lock.NAME, "ours"):
        line = refused(capsys, *command)
    assert re.search(r"ours is in use by process \d+ on .*; wait for its end, or choose another folder", line)
    run(*command)


def test_the_stage_of_a_live_export_survives_another_one(converted, tmp_path):
    with folder_swap.staging(tmp_path) as stage:
        (stage / "half").write_text("x")
        run("export", "--from", converted / "new", "--to", "ltx2", "--out", tmp_path / "b.safetensors")
        assert (stage / "half").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


def test_a_copied_part_of_another_conversion_is_noticed(converted, tmp_path, capsys):
    shutil.copytree(converted / "old", tmp_path / "ours")
    shutil.copyfile(
        converted / "new" / "transformer" / "model.safetensors",
        model := tmp_path / "ours/transformer/model.safetensors",
    )
    assert f"{model}: is not the file that manifest.json lists" in refused(capsys, "inspect", tmp_path / "ours")
    model.unlink()
    command = ["export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", tmp_path / "a.safetensors"]
    assert "holds neither model.safetensors nor passed.safetensors" in refused(capsys, *command)


def test_a_flipped_bit_is_found_by_verify(converted, tmp_path, capsys):
    shutil.copytree(converted / "new", tmp_path / "ours")
    run("inspect", tmp_path / "ours", "--verify")
    assert "files as manifest.json lists them" in capsys.readouterr().out
    path = tmp_path / "ours" / "transformer" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    listed = manifest.read(tmp_path / "ours")
    listed["transformer"]["model.safetensors"]["probe"] = manifest.probe(path)  # as where no sample meets the bit
    manifest.write(tmp_path / "ours", listed)
    assert "damaged: its sha256 is" in refused(capsys, "inspect", tmp_path / "ours", "--verify")


def test_a_folder_without_a_manifest_gets_a_line_and_its_next_conversion_one(converted, tmp_path, caplog):
    shutil.copytree(converted / "old", tmp_path / "ours")
    (tmp_path / "ours" / "manifest.json").unlink()
    run("inspect", tmp_path / "ours")
    assert caplog.messages == [
        f"{tmp_path}/ours: has no manifest.json, so nothing tells whether its parts belong together"
    ]
    run("convert", "--from", converted / "new.safetensors", "--out", tmp_path / "ours")
    assert manifest.read(tmp_path / "ours") == manifest.read(converted / "new")


def test_foreign_files_and_links_in_a_component_are_not_removed(converted, tmp_path, capsys):
    shutil.copytree(converted / "old", tmp_path / "ours")
    command = ["convert", "--from", converted / "new.safetensors", "--out", tmp_path / "ours"]
    notes = tmp_path / "ours" / "transformer" / "notes.txt"
    notes.write_text("mine")
    assert f"{notes}: is of no conversion, and would be removed" in refused(capsys, *command)
    notes.unlink()
    (tmp_path / "ours" / "transformer").rename(tmp_path / "elsewhere")
    (tmp_path / "ours" / "transformer").symlink_to(tmp_path / "elsewhere")
    assert "transformer: is a link or a file, and would be replaced" in refused(capsys, *command)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing.safetensors")
    command = ["export", "--from", converted / "new", "--to", "omniforcing", "--out", tmp_path / "nowhere"]
    assert "exists already" in refused(capsys, *command)


def test_a_conversion_that_is_told_to_stop_leaves_nothing(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_write_component", lambda *_: signal.raise_signal(signal.SIGTERM))
    arguments = ["convert", "--from", str(converted / "new.safetensors"), "--out", str(tmp_path / "a" / "ours")]
    from converters.cli import main

    assert main(arguments) == 143
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_neither_stage_nor_new_folders(tmp_path):
    def fail(stage):
        (stage / "half").write_text("x")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), folder_swap.swapping_in(tmp_path / "a" / "b") as stage:
        fail(stage)
    assert not list(tmp_path.iterdir())


def test_what_a_dead_process_was_exchanging_is_never_taken_beyond_the_folder(tmp_path):
    """A stage is a file from outside, too: its names are of entries in the folder."""
    folder, stage = tmp_path / "weights", tmp_path / "weights/.new.0123456789ab"
    (stage / "new").mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    (stage / "moves.json").write_text(json.dumps({"names": ["../precious"], "unfinished": None}))
    for _ in range(2):  # the second time the lock of the first must be free
        with pytest.raises(ValueError, match=r"moves\.json: names='\.\./precious': must be an entry"):
            folder_swap.recover(folder)
    assert (tmp_path / "precious").read_text() == "mine"
