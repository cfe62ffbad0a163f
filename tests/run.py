"""The converters' commands as a shell gives them, and what a refused one looks like."""

from converters.cli import main


def run(*arguments) -> None:
    """Run a command that must succeed."""
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys, *arguments) -> str:
    """Run a command that must be refused; returns its one line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line
