"""Measure how long sentences are: words a sentence, by file.

    python -m experiments.docs.sentences README.md docs/*.md
    python -m experiments.docs.sentences omniforcing_jax/cli/options.py --longest 5

Of Markdown the running text counts: paragraphs and list items. Headings, tables, code blocks, comments and pictures do
not, and inline code is one word. Of Python the opening docstring counts and the docstrings of fields, which are help
texts. The aim is a median of at most 15 words and nine sentences in ten of at most 30.
"""

import ast
import dataclasses
import itertools
import math
import re
import statistics
import textwrap
from pathlib import Path
from typing import Annotated

import tyro

MEDIAN, NINE_IN_TEN = 15, 30  # words; what the documents are held to
NOT_AN_END = r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bsec)(?<!\bcf)(?<!\bno)"
END = re.compile(rf"{NOT_AN_END}[.!?][)\"'»]*\s+(?=[^a-z\s]|[a-z]+[A-Z])")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Words of each sentence of a text, in its order."""

    words: tuple[int, ...]

    @property
    def median(self) -> float:
        """Median, 0 of no sentence."""
        return statistics.median(self.words) if self.words else 0

    @property
    def nine_in_ten(self) -> int:
        """The smallest number that nine sentences in ten do not exceed."""
        return sorted(self.words)[math.ceil(0.9 * len(self.words)) - 1] if self.words else 0

    @property
    def longest(self) -> int:
        """Words of the longest sentence."""
        return max(self.words, default=0)


def measure(sentences: list[str]) -> Lengths:
    """Count the words of each sentence; what has neither letter nor digit is no word."""
    return Lengths(tuple(sum(any(c.isalnum() for c in word) for word in sentence.split()) for sentence in sentences))


def sentences_of(path: Path) -> list[str]:
    """Read the sentences of a Markdown or Python file."""
    text = path.read_text(encoding="utf-8")
    return of_python(text) if path.suffix == ".py" else of_markdown(text)


def of_markdown(text: str) -> list[str]:
    """Return the sentences of running text."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^ {0,3}```.*?^ {0,3}```[^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [sentence for paragraph in _paragraphs(text) for sentence in split(_plain(paragraph))]


def of_python(text: str) -> list[str]:
    """Return the sentences of a module's docstring and of its fields' docstrings."""
    tree = ast.parse(text)
    docs = [ast.get_docstring(tree) or ""]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            docs += [_help_of(*pair) for pair in itertools.pairwise(node.body)]
    return [sentence for doc in docs for sentence in of_markdown(textwrap.dedent(doc))]


def _help_of(field: ast.stmt, after: ast.stmt) -> str:
    """Return the docstring of a field, empty if it has none."""
    match field, after:
        case ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(text))):
            return text
    return ""


def split(text: str) -> list[str]:
    """Split running text into sentences; an end is followed by a space and no lower-case word."""
    return [sentence.strip() for sentence in END.split(text) if any(c.isalpha() for c in sentence)]


def _paragraphs(text: str) -> list[str]:
    """Return paragraphs and list items, each as one line; other blocks are left out."""
    found: list[list[str]] = [[]]
    in_code = False
    for line in text.splitlines():
        is_item = re.match(r"\s*([-*+]|\d+\.)\s+", line)
        was_blank = not found[-1]
        in_code = not is_item and bool(re.match(r"( {4}|\t)", line)) and (was_blank or in_code)
        if in_code or not line.strip() or re.match(r"\s*(#|\||!\[|---)", line):
            found.append([])
        elif is_item:
            found.append([line[is_item.end() :]])
        else:
            found[-1].append(line)
    return [" ".join(part.strip() for part in lines) for lines in found if lines]


def _plain(text: str) -> str:
    """Take the marks of Markdown off: inline code becomes one word, a link its text."""
    text = re.sub(r"`[^`]+`", "Code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[*_]{1,2}(?=\S)|(?<=\S)[*_]{1,2}", "", text)


def report(paths: list[Path], longest: int = 0) -> str:
    """Write a table of lengths, a row per file and one of all, then the longest sentences."""
    of_file = {path: sentences_of(path) for path in paths}
    everything = [sentence for sentences in of_file.values() for sentence in sentences]
    rows = [(str(path), sentences) for path, sentences in of_file.items()]
    if len(rows) > 1:
        rows.append(("all", everything))
    width = max(len(name) for name, _ in rows)
    lines = [f"{'':{width}}  sentences  median  nine in ten  longest"]
    for name, sentences in rows:
        words = measure(sentences)
        figures = f"{len(sentences):9}  {words.median:6g}  {words.nine_in_ten:11}  {words.longest:7}"
        lines.append(f"{name:{width}}  {figures}")
    ranked = sorted(everything, key=lambda sentence: -measure([sentence]).words[0])
    lines += [f"{measure([sentence]).words[0]:4}  {sentence}" for sentence in ranked[:longest]]
    return "\n".join(lines)


def main(files: Annotated[tuple[Path, ...], tyro.conf.Positional], longest: int = 0) -> None:
    """Print the lengths of the sentences of files.

    Args:
        files: Markdown or Python files.
        longest: How many of the longest sentences to print as well.
    """
    print(report(list(files), longest))


if __name__ == "__main__":
    tyro.cli(main)
