"""The command `judge`: from media files to figures and a plot."""

from collections.abc import Callable
from pathlib import Path

from omniforcing_jax.cli.options import JudgeOptions
from omniforcing_jax.io.atomic_write import check_writable, replacing, write_json
from omniforcing_jax.io.extras import need
from omniforcing_jax.io.inputs import refuse_inputs
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.judge import plot, report
from omniforcing_jax.judge.judge_file import judge_pair
from omniforcing_jax.judge.media import Media, check_readable, read_media
from omniforcing_jax.judge.seams import Blocks
from omniforcing_jax.strict_json import require


def prepare_judge(command: JudgeOptions) -> Callable[[], None]:
    """Check that the files can be read and the outputs written.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    files = [command.file] if command.reference is None else [command.file, command.reference]
    lengths = [check_readable(file) for file in files]
    blocks = Blocks(seconds=command.block_seconds, first_frames=command.first_block_frames)
    outputs = [command.json] if command.plot is None else [command.json, command.plot]
    if command.plot is not None:
        kinds = (".png", ".pdf", ".svg")
        require(command.plot.suffix.lower() in kinds, "plot", str(command.plot), f"must end in {' or '.join(kinds)}")
        need("matplotlib", extra="judge")
    taken = [path.resolve() for path in files]
    for output in outputs:
        refuse_inputs(
            "json" if output is command.json else "plot", output, {"FILE": command.file, "reference": command.reference}
        )
        require(output.resolve() not in taken, "output", str(output), "is an input or another output")
        taken.append(output.resolve())
        check_writable(output)

    def work() -> None:
        media = [_read(file, length) for file, length in zip(files, lengths, strict=True)]
        is_pair = len(media) > 1
        figures = judge_pair(media[0], media[1], blocks) if is_pair else report.judge_media(media[0], blocks)
        write_json(command.json, figures)
        if (page := command.plot) is not None:
            reference = media[1] if is_pair else None
            with replacing(page) as new:
                plot.draw_page(new, page.suffix[1:].lower(), media[0], reference, blocks)
        for each in [figures["file"], figures["reference"]] if is_pair else [figures]:
            print(report.summarise(each))

    return work


def _read(file: Path, seconds: float | None) -> Media:
    """Read a media file and show how far that is."""
    with Bar(f"reading {file.name}", seconds, "s") as show:
        return read_media(file, show)
