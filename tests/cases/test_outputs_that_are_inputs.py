"""An output that is an input, or nothing that can be replaced: refused before any work, and nothing is changed."""

import contextlib
import os
import socket
import stat
import wave
from pathlib import Path

import pytest
from refusal import refusal
from tiny_stream import PROMPT, folders

from omniforcing_jax.cli.main import main
from omniforcing_jax.io.atomic_write import check_writable, write_json

FLAGS = ("--continue", "--picture", "--sound", "--from-image", "--contexts")


def stream(out, *more):
    return ["stream", "--prompt", PROMPT, "--seconds", 2, "--out", out, "--weights", folders() / "student", *more]


def by_name(path: Path) -> Path:
    return path


def by_link(path: Path) -> Path:
    link = path.with_name("link.mp4")
    link.symlink_to(path.name)
    return link


def by_hard_link(path: Path) -> Path:
    other = path.with_name("other.mp4")
    other.hardlink_to(path)
    return other


@pytest.mark.parametrize("alias", [by_name, by_link, by_hard_link])
@pytest.mark.parametrize("flag", FLAGS)
def test_a_file_that_a_stream_reads_is_not_written(capsys, tmp_path, no_work, flag, alias):
    path = tmp_path / "mine.mp4"
    path.write_bytes(b"precious")
    out = alias(path)
    line = refusal(capsys, stream(out, flag, path))
    assert f"--out {out}: is what {flag} reads" in line
    assert path.read_bytes() == b"precious"


def test_files_of_weights_and_states_are_not_written(capsys, tmp_path, no_work):
    weights, state = folders() / "student", tmp_path / "state"
    state.mkdir()
    (state / "state.json").write_text("{}")
    model = weights / "transformer" / "model.safetensors"
    before = model.read_bytes()
    assert "is a part of --weights" in refusal(capsys, stream(model))
    assert "is a part of --resume" in refusal(capsys, stream(state / "state.json", "--resume", state))
    assert "is what --weights reads" in refusal(capsys, stream(tmp_path / "a.mp4", "--save-state", weights))
    sample = ["sample", "--prompt", PROMPT, "--seconds", 1, "--weights", weights, "--out", model]
    assert "is a part of --weights" in refusal(capsys, sample)
    bench = ["bench", "stream", "--blocks", 3, "--weights", weights, "--json", weights / "config.json"]
    assert "is a part of --weights" in refusal(capsys, bench)
    assert model.read_bytes() == before


def test_prompts_and_judged_files_are_not_written(capsys, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n")
    weights = folders() / "student"
    command = ["contexts", "--prompts", prompts, "--weights", weights, "--out", by_hard_link(prompts)]
    assert "is what --prompts reads" in refusal(capsys, command)
    sound = silence(tmp_path)
    assert "is what FILE reads" in refusal(capsys, ["judge", sound, "--json", by_link(sound)])
    assert prompts.read_text() == "a red ball\n"


def silence(folder: Path) -> Path:
    path = folder / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(64_000))
    return path


def test_devices_and_what_is_open_are_written_into(tmp_path, capfd):
    sound, device, stdout = silence(tmp_path), tmp_path / "null", tmp_path / "stdout"
    stdout.symlink_to("/proc/self/fd/1")
    device.symlink_to("/dev/null")
    with contextlib.suppress(PermissionError):  # what only root may make
        os.mknod(tmp_path / "own", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for path in (device, tmp_path / "own"):
        if path.exists():
            assert main(["judge", str(sound), "--json", str(path)]) == 0
            assert stat.S_ISCHR(path.stat().st_mode)
    os.write(1, b"before\n")
    capfd.readouterr()
    assert main(["judge", str(sound), "--json", str(stdout)]) == 0
    assert stdout.is_symlink()
    assert capfd.readouterr().out.startswith('{\n  "')


def test_a_redirected_stdout_goes_on_where_it_is(tmp_path):
    path = tmp_path / "log"
    with path.open("w") as file:
        file.write("before\n")
        file.flush()
        link = tmp_path / "link"
        link.symlink_to(f"/dev/fd/{file.fileno()}")
        write_json(link, 1)
        file.write("after\n")
    assert path.read_text() == "before\n1\nafter\n"


def test_sockets_and_disks_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(ValueError, match="cannot write socket: is a socket"):
            check_writable("socket")
    try:
        os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    except PermissionError:
        pytest.skip("only root makes a node of a disk")
    with pytest.raises(ValueError, match="cannot write disk: is a block device"):
        check_writable("disk")
