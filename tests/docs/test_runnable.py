"""What the documents tell a reader to run does run: blocks that are marked, and the flags of all others."""

import os
import re
from pathlib import Path

import pytest
from prose import ROOT, documents
from runnable import blocks_of, commands_of, run_block, run_command

from omniforcing_jax.cli.main import parse

TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in documents()}
BLOCKS = {name: blocks for name, text in TEXTS.items() if (blocks := blocks_of(name, text))}
LONG = {"docs/chime.md", "docs/steering.md", "docs/stream.md"}  # programs of their own
COMMAND = re.compile(r"^(?: {4})?(omniforcing [a-z](?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in BLOCKS])
def test_marked_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in BLOCKS[name]:
        run_block(block, tmp_path, namespace)


def command_lines() -> list[tuple[str, str]]:
    """Every command line of the documents, marked or not."""
    return [(name, command) for name, text in TEXTS.items() for command in COMMAND.findall(text)]


@pytest.mark.parametrize(("name", "command"), command_lines())
def test_flags_of_every_command_line_exist(name, command):
    ((_, *arguments),) = commands_of(command)
    parse(arguments)


PAGE = """Text.

<!-- runnable -->
```sh
omniforcing stream --prompt "a red ball" \\
    --seconds 1 --out a.mp4     # a comment
```

<!-- runnable: tiny -->
```python
made = 1 + 1
```
"""


def test_marked_blocks_are_found_with_their_place():
    shell, python = blocks_of("page.md", PAGE)
    assert (shell.where, shell.weights) == ("page.md:3", "")
    assert commands_of(shell.text) == [
        ["omniforcing", "stream", "--prompt", "a red ball", "--seconds", "1", "--out", "a.mp4"]
    ]
    assert (python.where, python.language, python.weights) == ("page.md:9", "python", "tiny")


@pytest.mark.parametrize(
    "bad", [PAGE.replace("tiny", "large"), PAGE.replace("```python", "```rust"), "<!-- runnable -->\ntext"]
)
def test_a_mark_that_marks_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="a mark is"):
        blocks_of("page.md", bad)


def test_a_python_block_shares_its_namespace_with_the_next(tmp_path):
    namespace = {}
    run_block(blocks_of("page.md", PAGE)[1], tmp_path, namespace)
    assert namespace["made"] == 2


def test_a_command_that_fails_is_named(tmp_path, capsys):
    block = blocks_of("page.md", PAGE.replace("--seconds", "--second"))[0]
    with pytest.raises(AssertionError, match=r"page\.md:3: exit code 2 of omniforcing stream"):
        run_block(block, tmp_path, {})
    assert "unknown flag --second" in capsys.readouterr().err


def test_only_our_own_commands_can_be_marked():
    with pytest.raises(ValueError, match="rm -r"):
        run_command(["rm", "-r", "out"])


def test_a_module_runs_as_python_does(capsys):
    page = os.path.relpath(ROOT / "docs" / "architecture.md", Path.cwd())
    assert run_command(["python", "-m", "experiments.docs.sentences", page]) == 0
    assert "median" in capsys.readouterr().out
