"""The command `serve`: what it refuses before it listens, and what it logs."""

import contextlib
import json
import logging
import socket

import pytest

from omniforcing_jax.cli.main import main
from omniforcing_jax.cli.options import ServeOptions
from omniforcing_jax.cli.serve import address_of, check_token, is_loopback
from omniforcing_jax.serve.server import JsonLines, listen


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "host='0.0.0.0': others can reach this address: give --token"),
        (["--token", "short"], "token='...': must be at least 8 letters and digits"),
        (["--ahead", "1.5"], "ahead=1.5: must be at least two blocks, 2 s"),
        (["--ahead", "0"], "ahead=0.0: must be from 1 to 60 seconds"),
        (["--seats", "0"], "seats=0: must be at least 1"),
        (["--max-sessions", "0"], "max-sessions=0: must be from 1 to 1000"),
        (["--state", "/proc/no"], "/proc"),
        (["--state-gb", "0"], "state-gb=0.0: must be above 0"),
        (["--state-gb", "nan"], "state-gb=nan: must be above 0 and at most 1000000"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(flags, words, capsys, monkeypatch):
    monkeypatch.delenv("OMNIFORCING_TOKEN", raising=False)
    assert main(["serve", "--mock", "--port", "0", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_port_that_is_taken_is_named(capsys):
    with contextlib.closing(listen("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--mock", "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_the_token_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("OMNIFORCING_TOKEN", "fromoutside1")
    assert check_token(ServeOptions(host="0.0.0.0")) == "fromoutside1"
    assert check_token(ServeOptions(host="0.0.0.0", token="given1234")) == "given1234"


def test_loopback_is_known_by_its_addresses():
    assert [is_loopback(each) for each in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(each) for each in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4


def test_the_address_of_the_page_can_be_clicked():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert address_of("0.0.0.0", listener, "abc") == f"http://localhost:{port}/?token=abc"
        assert address_of("::1", listener, None) == f"http://[::1]:{port}"


def test_log_lines_are_json():
    record = logging.LogRecord("a.b", logging.WARNING, "", 0, "stream %s\nfailed", ("x",), None)
    line = JsonLines().format(record)
    assert "\n" not in line
    values = json.loads(line)
    assert (values["level"], values["logger"], values["message"]) == ("warning", "a.b", "stream x\nfailed")
