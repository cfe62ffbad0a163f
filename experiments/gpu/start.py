"""How long a viewer waits: new processes until the first chunk, programs by name, and each decoder by itself.

The first process finds an empty cache of compiled programs, unless a stream ran with the same cache before. The next
one finds them all. A start is repeated until nothing is compiled, three times at most. Seconds count from the start of
the process: imports, weights drawn, first chunk, and a second of picture and sound that can be played.

    python -m experiments.gpu.start --json out/start.json
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.cli_errors import refusing
from experiments.gpu import compiled
from experiments.gpu.decoders import Decoder, random_decoders
from experiments.gpu.sheet import Figures, Sheet, markdown
from experiments.gpu.subject import student_preset
from experiments.script import read_flags, start_logging
from omniforcing_jax.cli.bench_stream import is_second_playable, load_subject
from omniforcing_jax.cli.options import BenchOptions, DType
from omniforcing_jax.io import machine
from omniforcing_jax.pipeline.random_weights import random_pipeline

STARTS = 3
DECODED = 12  # later blocks
START_COLUMNS = ("start", "compiled", "imports_s", "weights_s", "first_chunk_s", "playable_s")
DECODE_COLUMNS = ("decoder", "first_block_ms", "ms", "copy_ms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure starts and decoders."""

    json: Path
    """JSON file for the figures."""
    preset: str = "ltx2-19b"
    """Preset whose sizes network and codecs have."""
    dtype: DType = "bfloat16"
    """Type to compute in."""
    minutes: float | None = None
    """Begin no row that would end after so many minutes (default: no bound)."""
    once: bool = False
    """Start one stream in this process, and print what it took, a line of JSON each."""


def run(arguments: Arguments) -> Figures:
    """Start processes, then time the decoders in this one; returns what the JSON file holds."""
    sheet = Sheet(arguments.json, arguments.minutes, preset=arguments.preset, dtype=arguments.dtype)
    for number in range(STARTS):
        sheet.measure("starts", {"start": number}, partial(_start_process, arguments, sheet, number))
        if sheet.figures["starts"][-1].get("compiled") == 0:
            break
    _decode(arguments, sheet)  # last, because from here on this process holds the device
    return sheet.finish()


def _start_process(arguments: Arguments, sheet: Sheet, number: int) -> Figures:
    """Run `start_once` in a new process.

    Raises:
        RuntimeError: if it fails.
    """
    flags = ("--json", str(arguments.json), "--preset", arguments.preset, "--dtype", arguments.dtype, "--once")
    command = [sys.executable, "-m", "experiments.gpu.start", *flags]
    figures: Figures = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout or ():
            said = json.loads(line)
            if "program" in said:
                sheet.add("compiled", {"start": number, **said})
            else:
                figures |= said
    if child.returncode:
        raise RuntimeError(f"the new process ended with code {child.returncode}; the log has its words")
    return figures


def start_once(arguments: Arguments) -> None:
    """Stream until a whole second can be played. Prints programs as they are ready, and the seconds until then."""
    seconds = {"imports_s": machine.process_seconds()}
    command = BenchOptions(
        what="stream", json=arguments.json, preset=arguments.preset, random_weights=True, dtype=arguments.dtype
    )
    with compiled.CompiledPrograms(_say) as programs:
        subject = load_subject(command)
        jax.block_until_ready(subject.pipeline.transformer)
        seconds["weights_s"] = machine.process_seconds()
        for chunk in subject.open():
            seconds.setdefault("first_chunk_s", machine.process_seconds())
            if is_second_playable(chunk):
                break
        seconds["playable_s"] = machine.process_seconds()
    _say({"compiled": programs.compiled, **{name: round(value, 2) for name, value in seconds.items()}})


def _say(figures: Figures) -> None:
    print(json.dumps(figures), flush=True)


def _decode(arguments: Arguments, sheet: Sheet) -> None:
    preset = student_preset(arguments.preset)
    shallow = dataclasses.replace(preset, model=dataclasses.replace(preset.model, layers=1))
    codecs = random_pipeline(shallow, 0, arguments.dtype).codecs
    sheet.put(device=jax.devices()[0].device_kind)
    for name, decoder in random_decoders(preset, codecs, jax.numpy.dtype(arguments.dtype)).items():
        sheet.measure("decode", {"decoder": name}, partial(_time_decoder, decoder))


def _time_decoder(decoder: Decoder) -> Figures:
    """Decode block after block, each waited for; the first two compile."""
    carry, decoding, copying = None, [], []
    for k in range(2 + DECODED):
        begun = time.perf_counter()
        out, carry = jax.block_until_ready(decoder(k, carry))
        decoding.append(1000 * (time.perf_counter() - begun))
        begun = time.perf_counter()
        np.asarray(out)
        copying.append(1000 * (time.perf_counter() - begun))
    first, later = decoding[0], statistics.median(decoding[2:])
    return {
        "first_block_ms": round(first, 1),
        "ms": round(later, 3),
        "copy_ms": round(statistics.median(copying[2:]), 3),
    }


def table(figures: Figures) -> str:
    """Write starts, programs and decoders as Markdown tables."""
    starts = markdown(START_COLUMNS, figures.get("starts", []))
    return "\n\n".join([starts, compiled.table(figures), markdown(DECODE_COLUMNS, figures.get("decode", []))])


def main(arguments: Arguments) -> None:
    """Print the tables and write the figures; bad input is one line on stderr and exit code 2."""
    start_logging()
    machine.use_compilation_cache()
    if arguments.once:
        start_once(arguments)
        return
    with refusing(arguments.json):
        student_preset(arguments.preset)
        print(table(run(arguments)))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
