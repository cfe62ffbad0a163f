"""Help of every command: groups of flags, a sentence for each, and examples that can be run as they are."""

import ast
import dataclasses
import inspect
import re
import shlex
import textwrap
import typing
from pathlib import Path

import pytest

from converters.cli import main
from converters.cli.dispatch import COMMANDS, USAGE
from converters.cli.options import PROGRAM
from omniforcing_jax.io.arguments import read_command

KINDS = {name: kind for name, (kind, _) in COMMANDS.items()}


def help_of(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_the_help_can_be_pasted(name, capsys):
    told = help_of(capsys, name)
    examples = [line.strip() for line in inspect.getdoc(KINDS[name]).partition("Examples:")[2].splitlines()]
    examples = [line for line in examples if line]
    assert examples
    for example in examples:
        assert example in told
        program, _, rest = example.partition(f" {name} ")
        assert program == ("python -m converters" if name == "bench" else PROGRAM)
        words = [name, *shlex.split(rest)]
        assert isinstance(read_command(PROGRAM, USAGE, KINDS, words), KINDS[name])


def sentences_of(kind):
    """List the texts under the fields of a command's options, groups included."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    told = [each.value.value if isinstance(each, ast.Expr) else None for each in tree.body[1:]]
    fields = [each.target.id for each in tree.body if isinstance(each, ast.AnnAssign)]
    groups = [each for each in typing.get_type_hints(kind).values() if dataclasses.is_dataclass(each)]
    own = [text for text in told if text is not None]
    assert len(own) == len(fields) - len(groups), "a flag without a text"
    return [*own, *(text for group in groups for text in sentences_of(group))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_explained_by_a_sentence(name, capsys):
    told = re.sub(r"[\s│]+", " ", help_of(capsys, name))
    for sentence in sentences_of(KINDS[name]):
        assert re.fullmatch(r"[A-Z].*\.", sentence)
        assert sentence in told


def test_flags_of_a_conversion_are_in_groups(capsys):
    told = help_of(capsys, "convert")
    for title in ("How to read the sources:", "Resolution that the weights were trained at:"):
        assert f"\n{title}\n" in told


def test_the_help_of_all_lists_every_command(capsys):
    told = help_of(capsys)
    for name in COMMANDS:
        assert re.search(rf"\n  {name} +[A-Z]", told)


def test_commands_in_the_guide_can_be_pasted():
    text = (Path(__file__).parents[2] / "docs/weights.md").read_text()
    lines = text.replace("\\\n", " ").splitlines()  # a command may go on in the next line
    examples = [shlex.split(line) for line in lines if line.startswith(f"    {PROGRAM} ")]
    examples = [words[1:] for words in examples if words[1] in COMMANDS]
    assert {words[0] for words in examples} == set(COMMANDS) - {"bench"}
    for words in examples:
        assert isinstance(read_command(PROGRAM, USAGE, KINDS, words), KINDS[words[0]])
