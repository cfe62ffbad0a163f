"""The command `judge`: from media files to figures and a plot."""

import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from omniforcing_jax.cli.options import JudgeOptions
from omniforcing_jax.io.atomic_write import check_writable, write_json
from omniforcing_jax.judge import plot, report
from omniforcing_jax.judge.media import Media, check_readable, read_media
from omniforcing_jax.judge.reference import measure_agreement
from omniforcing_jax.judge.seams import Blocks
from omniforcing_jax.strict_json import require


def prepare_judge(command: JudgeOptions) -> Callable[[], None]:
    """Check that the files can be read and the outputs written.

    Raises:
        ValueError: in one line, whatever is wrong with the request.
    """
    files = [command.file] if command.reference is None else [command.file, command.reference]
    lengths = [check_readable(file) for file in files]
    blocks = Blocks(seconds=command.block_seconds, first_frames=command.first_block_frames)
    outputs = [command.json] if command.plot is None else [command.json, command.plot]
    if command.plot is not None:
        kinds = (".png", ".pdf", ".svg")
        require(command.plot.suffix.lower() in kinds, "plot", str(command.plot), f"must end in {' or '.join(kinds)}")
    taken = [path.resolve() for path in files]
    for output in outputs:
        require(output.resolve() not in taken, "output", str(output), "is an input or another output")
        taken.append(output.resolve())
        check_writable(output)

    def work() -> None:
        media = [_read(file, length) for file, length in zip(files, lengths, strict=True)]
        figures = [report.judge(each, blocks) for each in media]
        answer = figures[0]
        if command.reference is not None:
            answer = {
                "file": figures[0],
                "reference": figures[1],
                "difference": report.subtract(*figures),
                "agreement": measure_agreement(media[0], media[1], command.file, command.reference),
            }
        write_json(command.json, answer)
        if (page := command.plot) is not None:
            reference, partial = (
                media[1] if command.reference is not None else None,
                page.with_name(f".{page.name}.partial"),
            )
            plot.draw(partial, page.suffix[1:].lower(), media[0], reference, blocks)
            os.replace(partial, page)
        for each in figures:
            print(report.summarise(each))

    return work


def _read(file: Path, seconds: float | None) -> Media:
    """Read a media file, with a bar on a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"reading {file.name}", total=seconds)
        return read_media(file, lambda now_s: progress.update(task, completed=now_s))
