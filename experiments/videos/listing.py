"""Which videos there are, and what each of them shows: a folder with captions beside its files, or a CSV table."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")
SIDECAR = ".txt"
PATH_COLUMNS = ("path", "video", "file", "file_name")
CAPTION_COLUMNS = ("caption", "prompt", "text")


class Video(NamedTuple):
    """A file and its caption; None where nothing says what it shows."""

    path: Path
    caption: str | None


def list_videos(source: Path, path_column: str | None = None, caption_column: str | None = None) -> list[Video]:
    """List videos in the order of their paths.

    Args:
        source: Folder, searched with all its folders, whose captions lie beside the files as `NAME.txt`; or a CSV
            table with a row for each video. Paths in a table are relative to it.
        path_column: Column of the paths; None takes the one that is called path, video, file or file_name.
        caption_column: Column of the captions; None takes the one that is called caption, prompt or text.

    Raises:
        ValueError: In one line: there is no such folder or table, it lists no video, a video twice or one that is not
            there, or a column is missing.
    """
    videos = _list_folder(source) if source.is_dir() else _list_table(source, path_column, caption_column)
    if not videos:
        raise ValueError(f"{source}: has no videos; expected files that end in {', '.join(ENDINGS)}")
    return sorted(videos, key=lambda video: str(video.path))


def _list_folder(folder: Path) -> list[Video]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    return [Video(path, _read_sidecar(path.with_suffix(SIDECAR))) for path in paths]


def _read_sidecar(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return _clean(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None


def _clean(caption: str | None) -> str | None:
    """Put a caption into one line; an empty one is none."""
    return " ".join((caption or "").split()) or None


def _list_table(source: Path, path_column: str | None, caption_column: str | None) -> list[Video]:
    if not source.is_file():
        raise ValueError(f"{source}: no such folder or CSV table of videos")
    videos = list(_read_rows(source, path_column, caption_column))
    paths = [video.path for video in videos]
    twice = next((path for i, path in enumerate(paths) if path in set(paths[:i])), None)
    if twice is not None:
        raise ValueError(f"{source}: lists {twice} twice")
    return videos


def _read_rows(source: Path, path_column: str | None, caption_column: str | None) -> Iterator[Video]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            where = _find_column(source, columns, "path", path_column, PATH_COLUMNS)
            what = _find_column(source, columns, "caption", caption_column, CAPTION_COLUMNS)
            for row in rows:
                path = source.parent / (row[where] or "")
                if not path.is_file():
                    raise ValueError(f"{source}: line {rows.line_num}: {path}: no such file")
                yield Video(path, _clean(row[what]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source}: no CSV table in UTF-8: {error}") from None


def _find_column(source: Path, columns: list[str], kind: str, named: str | None, usual: tuple[str, ...]) -> str:
    """Find a column by its name, or by the only usual name that is there."""
    found = [name for name in columns if name == named or (named is None and name.lower() in usual)]
    if len(found) != 1:
        wanted = f"'{named}'" if named is not None else f"one of {', '.join(usual)}"
        raise ValueError(f"{source}: has the columns {columns}; expected {wanted}, or --{kind}-column")
    return found[0]
