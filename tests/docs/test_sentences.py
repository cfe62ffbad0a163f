"""Plain English, measured: how long the documents' sentences are, and that the measure itself is right."""

from pathlib import Path

import pytest

from experiments.docs import sentences
from experiments.docs.sentences import MEDIAN, NINE_IN_TEN, measure, of_markdown, of_python, report

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]

PAGE = """# A heading. With a stop.

One two three. Four `a b c.d` six, 24.5 seven! Is it e.g. this?
It goes on here: so it is one
sentence.

| a table | of. many. words |
|---|---|

- An item. And another.
- `Code` begins this one.
  It goes on.

    an indented block. of code

```
a fenced block. of code
```
<!-- a comment.
of two lines. -->
![a picture. with words](file.svg)
A [link with words](docs/page.md#a.b) counts.
"""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_sentences_are_short(name):
    lengths = measure(sentences.sentences_of(ROOT / name))
    assert lengths.words, "no running text"
    assert lengths.median <= MEDIAN
    assert lengths.nine_in_ten <= NINE_IN_TEN


def test_running_text_counts_and_nothing_else():
    assert of_markdown(PAGE) == [
        "One two three",
        "Four Code six, 24.5 seven",
        "Is it e.g. this",
        "It goes on here: so it is one sentence.",
        "An item",
        "And another.",
        "Code begins this one",
        "It goes on.",
        "A link with words counts.",
    ]


def test_of_a_module_its_docstring_and_its_help_texts_count():
    docstring = '"""First.\n\n    code here\n\nSecond one."""\n'
    module = docstring + 'class C:\n    """Not this."""\n    a: int\n    """Help of a."""\n'
    assert of_python(module) == ["First.", "Second one.", "Help of a."]


def test_nine_in_ten_is_a_length_that_nine_in_ten_do_not_exceed():
    assert measure(["a"] * 9 + ["a b c"]).nine_in_ten == 1
    assert measure(["a"] * 8 + ["a b c"] * 2).nine_in_ten == 3
    assert measure([]).nine_in_ten == 0


def test_dashes_are_no_words():
    assert measure(["one - two = three"]).words == (3,)


def test_the_report_has_a_row_for_each_file_and_one_for_all(tmp_path):
    for name, text in (("a.md", "One two. Three."), ("b.md", "One two three four.")):
        (tmp_path / name).write_text(text)
    lines = report([tmp_path / "a.md", tmp_path / "b.md"], longest=1).splitlines()
    assert [line.split()[1:] for line in lines[1:4]] == [
        ["2", "1.5", "2", "2"],
        ["1", "4", "4", "4"],
        ["3", "2", "4", "4"],
    ]
    assert lines[4].split(maxsplit=1) == ["4", "One two three four."]
