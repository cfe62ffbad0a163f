"""What a refused command looks like: exit code 2, nothing on stdout, one line on stderr."""

from omniforcing_jax.cli.main import main


def refusal(capsys, arguments) -> str:
    """Run a command that must be refused; returns its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line
