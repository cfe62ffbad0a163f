"""What a refused command looks like: exit code 2, nothing on stdout, one line on stderr."""

import pytest

from omniforcing_jax.cli.main import main


def refusal(capsys, arguments) -> str:
    """Run a command that must be refused; returns its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def recipe_refusal(capsys, recipe, arguments) -> str:
    """Run a recipe that must be refused before it writes anything; returns its one line."""
    with pytest.raises(SystemExit) as caught:
        recipe.main(arguments)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not arguments.folder.exists()
    return message
