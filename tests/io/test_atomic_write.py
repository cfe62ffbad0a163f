"""Outputs: replaced in one step or written directly, and refused before any work where they cannot be written."""

import json
import os
import stat
import threading

import pytest

from omniforcing_jax.io.atomic_write import check_folder_writable, check_writable, make_parents, replacing, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_once_its_new_content_is_complete(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def write_half(path):
    with replacing(path) as new:
        new.write_text("half")
        raise ZeroDivisionError


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_missing_parents_are_made_when_the_file_is_written(tmp_path):
    write_json(tmp_path / "b" / "c" / "a.json", [1])
    assert json.loads((tmp_path / "b" / "c" / "a.json").read_text()) == [1]
    make_parents(tmp_path / "d" / "e" / "a.mp4")
    assert (tmp_path / "d" / "e").is_dir()


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path):
    target, link = tmp_path / "files" / "target.json", tmp_path / "link.json"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    write_json(link, 1)
    assert link.is_symlink()
    assert target.read_text() == "1\n"
    assert names(target.parent) == ["target.json"]


def test_a_link_to_a_file_that_is_not_there_makes_the_file(tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "target.json")
    check_writable(link)
    write_json(link, 1)
    assert link.is_symlink()
    assert (tmp_path / "target.json").read_text() == "1\n"


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_writable(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_json(pipe, {"a": 1})
    reader.join(timeout=10)
    assert json.loads(read[0]) == {"a": 1}
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_a_device_is_written_to_and_stays_a_device():
    check_writable("/dev/null")
    write_json("/dev/null", 1)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_what_a_process_has_open_is_not_renamed_over(tmp_path):
    path = tmp_path / "open.json"
    with path.open("w") as file:
        write_json(f"/proc/self/fd/{file.fileno()}", 1)
        inode = os.fstat(file.fileno()).st_ino
    assert path.stat().st_ino == inode
    assert path.read_text() == "1\n"


@pytest.mark.parametrize(
    ("path", "reason"),
    [(".", "is a directory"), ("file/a.mp4", "file is not a directory"), ("a" * 300, "file name too long")],
)
def test_an_output_that_cannot_be_written_is_refused_by_name(tmp_path, path, reason):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=str(tmp_path / path)) as refusal:
        check_writable(tmp_path / path)
    assert reason in str(refusal.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_an_output_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    for path in ("a.json", "b/a.json"):
        with pytest.raises(ValueError, match="permission denied in"):
            check_writable(tmp_path / path)
    with pytest.raises(ValueError, match="permission denied in"):
        check_folder_writable(tmp_path / "state")


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/state"):
        with pytest.raises(ValueError, match="not a directory"):
            check_folder_writable(tmp_path / path)


def test_checking_outputs_leaves_nothing_behind(tmp_path):
    for path in ("a.mp4", "b/c/a.mp4"):
        check_writable(tmp_path / path)
    check_folder_writable(tmp_path / "state")
    assert names(tmp_path) == []
