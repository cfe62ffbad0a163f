"""The text of `--help`, made from the dataclasses of flags.

A flag's sentence is the docstring under its field, its unit the metavar of `tyro.conf.arg`. Flags are grouped: those of
the command come first, then those of each base and of each field that is a dataclass, under its docstring. The class
docstring of the command is printed as it is, examples included.
"""

import ast
import dataclasses
import inspect
import shutil
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

INDENT, WIDEST = 28, 110  # columns: where sentences begin, and where they end at the latest
MORE = " [...]"  # after the unit of a flag that takes several values
NAMES = {Path: "PATH", str: "TEXT", int: "N", float: "NUMBER"}


class Flag(NamedTuple):
    """One line of the help: how a flag is written, what it means, whether it must be given."""

    spelling: str
    sentence: str
    is_required: bool


def list_commands(program: str, doc: str, groups: Mapping[str, Mapping[str, type | str]]) -> str:
    """Return the help of a program.

    Args:
        program: Its name.
        doc: What the page begins with.
        groups: The commands under the title of their group: the dataclass of each, or its one sentence.
    """
    lines = [doc.strip(), "", f"usage: {program} COMMAND [flags]", f"       {program} COMMAND --help"]
    indent = 4 + max(len(name) for commands in groups.values() for name in commands)
    for title, commands in groups.items():
        lines += ["", f"{title}:"]
        for name, command in commands.items():
            sentence = command if isinstance(command, str) else _summary(command)
            lines += _two_columns(f"  {name}", sentence, indent)
    return "\n".join(lines)


def describe_command(program: str, kind: type) -> str:
    """Return the help of one command: what it does, how it is called, its flags in groups with their defaults."""
    summary, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    groups = {title: flags for title, flags in _groups(kind) if flags}
    required = [flag.spelling for flags in groups.values() for flag in flags if flag.is_required]
    usage = " ".join(["usage:", program, *required, "[flags]"])
    lines = [*textwrap.wrap(" ".join(summary.split()), _width()), "", usage]
    for title, flags in groups.items():
        lines += ["", f"{title}:"]
        for flag in flags:
            lines += _two_columns(f"  {flag.spelling}", flag.sentence, INDENT)
    return "\n".join([*lines, *(["", rest] if rest else [])])


def _summary(kind: type) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())


def _groups(kind: type) -> Iterator[tuple[str, list[Flag]]]:
    """Yield title and flags of each class that declares some, the command's own first."""
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    seen: set[str] = set()
    for owner in kind.__mro__:
        if not dataclasses.is_dataclass(owner):
            continue
        sentences = _sentences(owner)
        own = [name for name in sentences if name in fields and name not in seen]
        seen.update(own)
        nested = [name for name in own if dataclasses.is_dataclass(hints[name])]
        flags = [_flag(fields[name], hints[name], sentences[name]) for name in own if name not in nested]
        title = "Flags" if owner is kind else _summary(owner).rstrip(".")
        yield title, sorted(flags, key=lambda flag: not flag.is_required)
        for name in nested:
            for inner, group in _groups(hints[name]):
                yield _summary(hints[name]).rstrip(".") if inner == "Flags" else inner, group


def _sentences(owner: type) -> dict[str, str]:
    """Read the docstring under each field that a class declares, in order."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    body, found = node.body if isinstance(node, ast.ClassDef) else [], {}
    for line, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            found[line.target.id] = " ".join(str(text.value).split()) if isinstance(text, ast.Constant) else ""
    return found


def _flag(field: "dataclasses.Field[Any]", hint: Any, sentence: str) -> Flag:
    is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    name, unit = f"--{field.name.strip('_').replace('_', '-')}", _unit(hint)
    if _is_positional(hint):
        return Flag(unit, sentence, is_required)
    if unit == "":
        return Flag(f"--no-{name[2:]}" if field.default is True else name, sentence, False)
    is_shown = not is_required and field.default not in (None, ())
    shown = f" (default: {_spell(field.default)})" if is_shown else ""
    return Flag(f"{name} {unit}", f"{sentence}{shown}", is_required)


def _spell(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_positional(hint: Any) -> bool:
    return get_origin(hint) is Annotated and tyro.conf.Positional in get_args(hint)[1:]


def _unit(hint: Any) -> str:
    """Return what stands for a flag's value: its metavar, its choices or its type; nothing for a switch."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        named = [metavar for extra in inner[1:] if (metavar := getattr(extra, "metavar", None))]
        if named:
            return named[0]
        return _unit(inner[0]).removesuffix(MORE if tyro.conf.UseAppendAction in inner[1:] else "")
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return _unit(next(each for each in inner if each is not types.NoneType))
    if origin is tuple:
        units = [_unit(each) for each in inner if each is not Ellipsis]
        return f"{units[0]}{MORE}" if Ellipsis in inner else " ".join(units)
    return "" if hint is bool else NAMES.get(hint, "VALUE")


def _two_columns(left: str, right: str, indent: int) -> list[str]:
    """Lay a sentence beside what it explains, or below where that is too long."""
    margin = " " * indent
    lines = textwrap.wrap(right, _width(), initial_indent=margin, subsequent_indent=margin) or [margin]
    if len(left) < indent:
        return [f"{left:<{indent}}{lines[0][indent:]}".rstrip(), *lines[1:]]
    return [left, *lines]


def _width() -> int:
    return min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
