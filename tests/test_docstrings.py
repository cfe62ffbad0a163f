"""Docstring sections have one form: entries are indented by four, begin with a capital letter, end with a full stop."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "omniforcing_jax"
FILES = sorted(ROOT.rglob("*.py"))

HEADERS = {"Args:", "Attributes:", "Returns:", "Raises:", "Yields:"}
NAMED = re.compile(r"\*{0,2}[A-Za-z_][\w.]*: (.*)")  # an entry; one name each
SYMBOLS = re.compile(r"[a-z_]+[(_.=]\w|[a-z]\b|u?int\d|float\d")  # code that begins an entry as it is spelled


def docstrings(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield getattr(node, "name", path.stem), ast.get_docstring(node) or ""


def entries(text: str):
    """Yield (header, entry) of every section; an entry is the list of its lines."""
    header, entry = None, []
    for line in [*text.split("\n"), "end"]:
        if line in HEADERS or not line.startswith(" "):
            if entry:
                yield header, entry
            header, entry = line if line in HEADERS else None, []
        elif header and re.match(r" {4}\S", line) and header not in ("Returns:", "Yields:"):
            if entry:
                yield header, entry
            entry = [line]
        elif header:
            entry.append(line)


def faults(text: str):
    for header, lines in entries(text):
        body = " ".join(line.strip() for line in lines)
        found = NAMED.fullmatch(body)
        is_named = header not in ("Returns:", "Yields:")
        if is_named and found is None:
            yield f"{header} {body[:60]!r}: not one name and its text"
            continue
        said = found[1] if is_named and found else body
        if not re.match(r" {4}\S", lines[0]) or any(not re.match(r" {4,8}\S", line) for line in lines):
            yield f"{header} {body[:60]!r}: indentation"
        if said[:1].islower() and not SYMBOLS.match(said):
            yield f"{header} {body[:60]!r}: no capital letter"
        if not re.search(r"[.!?:]$", said):
            yield f"{header} {body[:60]!r}: no full stop"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sections_have_one_form(path):
    found = [f"{name}: {fault}" for name, text in docstrings(path) for fault in faults(text)]
    assert not found, "\n".join(found)
