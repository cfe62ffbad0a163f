"""The messages that docs/troubleshooting.md quotes are messages that the code gives."""

import re

import pytest
from prose import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
FILES = [path for room in ("omniforcing_jax", "converters") for path in sorted((ROOT / room).rglob("*.py"))]
CODE = "\n".join(path.read_text(encoding="utf-8") for path in FILES)


def quoted() -> list[str]:
    """Messages in the first column of the tables; `...` stands for what differs from case to case."""
    rows = re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row) if not message.startswith("~")]


def is_said(message: str) -> bool:
    """Whether the code holds every part of a message."""
    parts = [part.strip() for part in message.split("...")]
    return all(part in CODE for part in parts if re.search(r"\w", part))


@pytest.mark.parametrize("message", quoted())
def test_the_code_gives_the_message(message):
    assert is_said(message)


def test_the_page_quotes_messages_and_a_made_up_one_is_found():
    assert len(quoted()) > 20
    assert is_said("at least ... of memory are needed")
    assert not is_said("at least ... of patience are needed")
