"""The command `judge`: from media files to figures and a plot."""

import sys
from collections.abc import Callable
from pathlib import Path

from omniforcing_jax.cli.manifest import Case, add_case, check_case, doubts
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
    case = _read_case(command)
    named = {"json": command.json, "plot": command.plot, "manifest": command.manifest}
    outputs = {flag: path for flag, path in named.items() if path is not None}
    if command.plot is not None:
        kinds = (".png", ".pdf", ".svg")
        require(command.plot.suffix.lower() in kinds, "plot", str(command.plot), f"must end in {' or '.join(kinds)}")
        need("matplotlib", extra="judge")
    taken = [path.resolve() for path in files]
    for flag, output in outputs.items():
        refuse_inputs(flag, output, {"FILE": command.file, "reference": command.reference})
        require(output.resolve() not in taken, "output", str(output), "is an input or another output")
        taken.append(output.resolve())
        check_writable(output)
    if case is not None and command.manifest is not None:
        check_case(command.manifest, case)

    def work() -> None:
        media = [_read(file, length) for file, length in zip(files, lengths, strict=True)]
        is_pair = len(media) > 1
        figures = judge_pair(media[0], media[1], blocks) if is_pair else report.judge_media(media[0], blocks)
        judged = [figures["file"], figures["reference"]] if is_pair else [figures]
        if command.manifest is not None:
            rule = "is what can be counted of it; a case of a manifest needs a picture of three frames or more"
            require(judged[0]["media"]["frames"] is not None, f"{command.file}: frames", None, rule)
        write_json(command.json, figures)
        if (page := command.plot) is not None:
            reference = media[1] if is_pair else None
            with replacing(page) as new:
                plot.draw_page(new, page.suffix[1:].lower(), media[0], reference, blocks)
        if case is not None and command.manifest is not None:
            add_case(command.manifest, case, judged[0]["media"]["frames"])
            for doubt in doubts(judged[0]):
                print(f"StreamAV-Bench will not take {command.file}: {doubt}", file=sys.stderr)
        for each in judged:
            print(report.summarise(each))

    return work


def _read_case(command: JudgeOptions) -> Case | None:
    """Return what the manifest is told of the file; None without a manifest.

    Raises:
        ValueError: Flags of the manifest are missing, or are there without one; or as `Case`.
    """
    needed = {"model-id": command.model_id, "case-id": command.case_id}
    times = {"generation-seconds": command.generation_seconds, "first-chunk-seconds": command.first_chunk_seconds}
    for flag, value in {**needed, **times}.items():
        require(value is None or command.manifest is not None, flag, value, "needs --manifest")
        require(flag in times or value is not None or command.manifest is None, flag, None, "--manifest needs it")
    if command.model_id is None or command.case_id is None:
        return None
    return Case(
        model_id=command.model_id,
        case_id=command.case_id,
        video=command.file,
        generation_s=command.generation_seconds,
        first_chunk_s=command.first_chunk_seconds,
    )


def _read(file: Path, seconds: float | None) -> Media:
    """Read a media file and show how far that is."""
    with Bar(f"reading {file.name}", seconds, "s") as show:
        return read_media(file, show)
