"""Nothing cites what is not there: files, modules, links, documents, and sources outside in one form.

A source outside is NAME@VERSION:PATH, such as ltx-core@1.0.0:model/transformer/rope.py. docs/architecture.md lists
names and versions. Where that version is installed, the path must be in it.
"""

import importlib.metadata
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
from prose import ROOT, Line, documents, lines_by_file, lines_of, tracked_files

SOURCE = re.compile(r"\b([A-Za-z][\w-]*)@([\w.]+):([\w./-]*[\w/])")
URL = re.compile(r"\b(?:https?://|github\.com/)\S+")
FILE = re.compile(r"(?<![\w/.*{<-])((?:[\w-]+/)*[\w-]+\.(?:py|md|ipynb|sbatch|sh|toml))\b(?!\()")
MODULE = re.compile(r"(?<![\w./])((?:omniforcing_jax|converters|experiments)(?:\.\w+)+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCUMENT = re.compile(
    r"(?<![\w/$.-])(README|LICENSE|LOG|DESIGN|STYLE|PLAN|SPECS?|NOTES|ROADMAP|REVIEW|CONTRIBUTING|CHANGELOG)\b(?!\.\w|_)"
)
PACKAGES = {"ltx-core": "ltx_core", "lycoris-lora": "lycoris"} | {
    name: name for name in ("diffusers", "transformers", "peft", "gguf", "huggingface_hub")
}
FILES = tracked_files()


@cache
def known_sources() -> set[str]:
    """NAME@VERSION of the table in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("\n## Sources\n")[2]
    return set(re.findall(r"[A-Za-z][\w-]*@[\w.]*\w", page))


def has_file(name: str) -> bool:
    """Whether a path, or the end of one, is a file of the repository."""
    return any(file == name or file.endswith("/" + name) for file in FILES)


def has_module(name: str) -> bool:
    """Whether a dotted name is a module, or a module and a name that this module holds."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = "/".join(parts[:end])
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in FILES:
                return end == len(parts) or holds(file, parts[end])
    return False


def holds(file: str, name: str) -> bool:
    """Whether a name is in the text of a file."""
    return re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")) is not None


def broken(line: Line) -> list[str]:
    """List what a line cites that is not there."""
    faults = [
        f"{name}@{version}" for name, version, path in SOURCE.findall(line.text) if not has_source(name, version, path)
    ]
    text = URL.sub("", SOURCE.sub("", line.text))
    faults += [name for name in FILE.findall(text) if not has_file(name)]
    faults += [name for name in MODULE.findall(text) if not has_module(name)]
    faults += [word for word in DOCUMENT.findall(text) if not any(Path(file).stem == word for file in FILES)]
    if "specs/" in text:
        faults.append("specs/")
    return faults


def has_source(name: str, version: str, path: str) -> bool:
    """Whether a source is one that the page names and, where it is installed, has the path."""
    if f"{name}@{version}" not in known_sources():
        return False
    package = PACKAGES.get(name)
    found = importlib.util.find_spec(package) if package else None
    if found is None or found.origin is None or importlib.metadata.version(name) != version:
        return True
    return (Path(found.origin).parent / path).exists()


@pytest.mark.parametrize("file", lines_by_file())
def test_what_a_file_cites_is_there(file):
    faults = {line.number: broken(line) for line in lines_by_file()[file]}
    assert not {number: names for number, names in faults.items() if names}


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".md")])
def test_links_lead_to_files_and_headings(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, heading = target.partition("#")
        page = (ROOT / file).parent / path if path else ROOT / file
        assert page.exists(), target
        if heading:
            assert heading in headings(page), target


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_tables_of_names_agree_with_the_code():
    """Rows under `<!-- names -->` give a file, and names that it defines."""
    rows = [row for name in documents() for row in rows_of_names((ROOT / name).read_text(encoding="utf-8"))]
    assert rows
    for path, names in rows:
        (file,) = [f for f in FILES if f in (path, f"omniforcing_jax/{path}")]
        for name in names:
            assert re.search(rf"^(?:def|class) {name}\b|^{name}\b", (ROOT / file).read_text(), re.MULTILINE), (
                file,
                name,
            )


def rows_of_names(text: str) -> list[tuple[str, list[str]]]:
    """Read the tables that are marked so."""
    rows = []
    for table in re.findall(r"<!-- names -->\n((?:\|.*\n)+)", text):
        for row in table.splitlines()[2:]:
            path, *names = re.findall(r"`([^`]+)`", row)
            rows.append((path, names))
    return rows


@pytest.mark.parametrize(
    "text",
    [
        '"""Source: specs/ltx2.md 2.5."""',
        "# as DESIGN 6 has it",
        '"""The house style of STYLE.md."""',
        "# see docs/no_such_page.md",
        '"""`stream/no_such_file.py` has it."""',
        '"""Run python -m experiments.no_such_run."""',
        "# Source: OmniForcing@0000000:ltx_distillation/dmd.py",
        "# Source: somebody@1.0:file.py",
    ],
)
def test_a_citation_of_what_is_not_there_is_found(text):
    assert [fault for line in lines_of("page.py", text) for fault in broken(line)]


@pytest.mark.parametrize(
    "text",
    [
        "# layout.py and nn/rope.py, docs/architecture.md",
        '"""Source: OmniForcing@50a271f:ltx_distillation/dmd.py, LTX2DMD.add_noise."""',
        '"""Source: ltx-core@1.0.0:model/transformer/rope.py."""',
        "# https://example.org/no/such/file.py",
        "from omniforcing_jax import no_such_thing",
        '"""python -m experiments.docs.sentences README.md"""',
    ],
)
def test_what_is_there_may_be_cited(text):
    assert not [fault for line in lines_of("page.py", text) for fault in broken(line)]


def test_a_path_that_an_installed_source_lacks_is_found():
    if importlib.util.find_spec("ltx_core") is None:
        pytest.skip("ltx-core is not installed")
    assert not has_source("ltx-core", "1.0.0", "model/no_such_file.py")
