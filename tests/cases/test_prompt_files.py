"""Files of prompts from any editor: byte-order marks, line ends of three systems, separators that are no line ends."""

import pytest
from refusal import refusal
from tiny_stream import folders

from experiments.chime.judge import sources
from omniforcing_jax.cli.contexts import read_prompts
from omniforcing_jax.cli.main import main
from omniforcing_jax.text.store import open_store

TWO = ["a red ball", "a blue ball"]
FILES = {
    "a byte-order mark": ("\ufeffa red ball\na blue ball\n".encode(), TWO),
    "CRLF": (b"a red ball\r\na blue ball\r\n", TWO),
    "old Mac": (b"a red ball\ra blue ball", TWO),
    "both": ("\ufeffa red ball\r\n\r\na blue ball".encode(), TWO),
    "U+2028 within a line": ("a red\u2028ball\na blue ball".encode(), ["a red\u2028ball", "a blue ball"]),
    "other separators": ("a\u2029b\x0bc\x0cd\x1ce\x85f\n".encode(), ["a\u2029b\x0bc\x0cd\x1ce\x85f"]),
    "white space": (b"  a red ball \t\n \n\n\ta blue ball\n", TWO),
}


@pytest.mark.parametrize("kind", FILES)
def test_each_line_is_one_prompt(tmp_path, kind):
    data, expected = FILES[kind]
    (tmp_path / "prompts.txt").write_bytes(data)
    assert list(read_prompts(tmp_path / "prompts.txt")) == [*expected, ""]
    assert sources.read_prompts(str(tmp_path / "prompts.txt"), 0) == expected


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("a red ball\n".encode("utf-16"), "not UTF-8 text"),
        ("a red ball\n".encode("utf-16-le"), "has a zero character"),
        ("a r\xe9d ball\n".encode("latin-1"), "not UTF-8 text"),
        ("\ufeff\r\n \n".encode(), "must have a prompt per line"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, capsys, data, named):
    (tmp_path / "prompts.txt").write_bytes(data)
    command = ["contexts", "--prompts", tmp_path / "prompts.txt", "--weights", folders() / "student"]
    line = refusal(capsys, [*command, "--out", tmp_path / "c.safetensors"])
    assert "prompts.txt" in line
    assert named in line


def test_a_file_from_windows_gives_the_contexts_of_its_prompts(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa red ball\r\na blue ball\r\n".encode())
    command = ["contexts", "--prompts", tmp_path / "prompts.txt", "--weights", folders() / "student"]
    assert main([str(each) for each in [*command, "--out", tmp_path / "c.safetensors"]]) == 0
    assert open_store(tmp_path / "c.safetensors").prompts == (*TWO, "")
