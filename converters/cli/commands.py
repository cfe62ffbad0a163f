"""The work of each command: from its options to files and a few printed lines."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omniforcing_jax.config import CrossTimestep, EightBitKind, GridPrecision, RotaryKind
from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.io.folder_swap import require_space
from omniforcing_jax.io.plain_text import printable
from omniforcing_jax.pipeline.presets import STUDENTS
from omniforcing_jax.strict_json import require

from .. import bench, convert, diff, export, inspect
from ..check.check_case import check_case, report
from ..check.record.record import record_case
from ..hub.download import find
from ..overrides import Overrides
from .options import BenchOptions, CheckOptions, ConvertOptions, DiffOptions, ExportOptions, InspectOptions

Work = Callable[[], int]
BYTES_PER_LAYER = 850_000_000  # at full width in bfloat16, with a share of the tensors that belong to no layer


def prepare_convert(options: ConvertOptions) -> Work:
    """Open and check all sources. The returned function writes the weights folder.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    network, student = options.network, options.student
    require(network.heads >= 1, "heads", network.heads, "must be at least 1")
    overrides = Overrides(
        release=options.source.release,
        state=options.source.state,
        heads=network.heads,
        rotary=_or_none(RotaryKind, network.rotary),
        grid=_or_none(GridPrecision, network.grid),
        gate_multiplier=network.gate_multiplier,
        timesteps=_or_none(CrossTimestep, network.timesteps),
        camera_heads=network.camera_heads,
        student=student.student,
        layout=student.layout,
        sigmas=student.sigmas,
        horizon_seconds=student.horizon,
    )
    own = convert.RESOLUTION if student.student is None else STUDENTS[student.student].resolution
    sides = zip((options.resolution.height, options.resolution.width), own, strict=True)
    height, width = (own if given is None else given for given, own in sides)
    sources = [find(path) for path in options.from_]
    loras = [(find(path, is_lora=True), strength) for path, strength in options.lora]
    quantise = _or_none(EightBitKind, options.quantise)
    conversion = convert.prepare(
        sources, options.out, overrides, resolution=(height, width), loras=loras, quantise=quantise
    )

    return _write(options.out, conversion.notes, lambda: convert.run(conversion))


def prepare_export(options: ExportOptions) -> Work:
    """Check that the format can express the weights. The returned function writes them.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    content = options.content
    is_size = 0 < content.shard_gigabytes < math.inf
    require(is_size, "shard-gigabytes", content.shard_gigabytes, "must be positive and finite")
    plan = export.prepare(
        options.from_,
        options.to,
        options.out,
        components=content.components,
        rotary=_or_none(RotaryKind, content.rotary),
        fresh_header=content.fresh_header,
        shard_bytes=int(content.shard_gigabytes * 1e9),
    )

    return _write(options.out, plan.notes, lambda: export.run(plan))


def prepare_inspect(options: InspectOptions) -> Work:
    """Read headers and configs. The returned function prints what is there.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    lines = inspect.inspect(options.path, Overrides(state=options.state))
    if not options.verify:
        return _print(lines, 0)
    return _print([*lines, *inspect.verify(options.path)], 0)


def prepare_diff(options: DiffOptions) -> Work:
    """Compare. The returned function prints the differences.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    lines = diff.diff(options.first, options.second, Overrides(state=options.state))
    return _print(lines or ["the same"], 1 if lines else 0)


def prepare_check(options: CheckOptions) -> Work:
    """Record a case, run one, or both. The returned function prints what was recorded, and the error of each output.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    lines, findings = [], []
    if (options.record is None) != (options.from_ is None):
        raise ValueError("--record and --from belong together: a library, and the checkpoint that it runs")
    if options.record is not None and options.from_ is not None:
        lines.append(record_case(options.record, find(options.from_), options.case))
    elif options.weights is None:
        raise ValueError("--weights: give a folder to check, or --record and --from to make a case")
    if options.weights is not None:
        findings, left_out = check_case(options.weights, options.case)
        lines += report(findings, left_out)
    return _print(lines, 0 if all(finding.within for finding in findings) else 1)


def prepare_bench(options: BenchOptions) -> Work:
    """Check that the files fit. The returned function measures.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    config = bench.full_width(options.layers)
    require(options.repeats >= 1, "repeats", options.repeats, "must be at least 1")
    parent = Path(options.folder or tempfile.gettempdir())
    if not parent.is_dir():
        raise ValueError(f"{parent}: no such folder")
    require_space(parent, 2 * BYTES_PER_LAYER * options.layers)

    def work() -> int:
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            figures = bench.measure(Path(folder), config, options.repeats)
        print(figures)
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.json, dataclasses.asdict(figures) | {"share": figures.share})
        return 0

    return work


def _write(out: Path, notes: Sequence[str], write: Callable[[], str]) -> Work:
    def work() -> int:
        print("\n".join(map(printable, notes)))
        print(f"{printable(str(out))}: {write()}")
        return 0

    return work


def _print(lines: Sequence[str], code: int) -> Work:
    def work() -> int:
        print("\n".join(map(printable, lines)))
        return code

    return work


def _or_none(kind: Any, value: str | None) -> Any:
    return None if value is None else kind(value)
