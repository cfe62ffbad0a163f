"""What the repository says in words: Markdown files, and the comments and docstrings of Python files."""

import ast
import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Line(NamedTuple):
    """A line of prose and where it is."""

    file: str
    number: int
    text: str


@cache
def tracked_files() -> tuple[str, ...]:
    """Files that git knows, and new ones that it does not ignore; all files where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        found = [name for name in answer.stdout.splitlines() if (ROOT / name).exists()]
    else:
        found = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    return tuple(sorted(found))


def documents() -> tuple[str, ...]:
    """README and what explains it: every Markdown file in the root and in docs/."""
    return tuple(name for name in tracked_files() if re.fullmatch(r"(docs/)?[^/]+\.md", name))


def lines_of(file: str, text: str) -> list[Line]:
    """Return the prose of one file, line by line."""
    if file.endswith(".md"):
        return [Line(file, i, line) for i, line in enumerate(text.splitlines(), 1)]
    return [
        Line(file, start + i, line)
        for start, words in _words_of_python(text)
        for i, line in enumerate(words.split("\n"))
    ]


def _words_of_python(text: str) -> list[tuple[int, str]]:
    comments = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    docstrings = [
        (node.lineno, node.value.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return comments + docstrings


@cache
def lines_by_file() -> dict[str, list[Line]]:
    """Return the prose of the whole repository."""
    files = [name for name in tracked_files() if name.endswith((".md", ".py"))]
    return {name: lines_of(name, (ROOT / name).read_text(encoding="utf-8")) for name in files}
