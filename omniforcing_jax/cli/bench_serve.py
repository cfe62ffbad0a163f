"""What a server holds: `bench serve` starts one, lets simulated viewers watch it over real sockets, and writes JSON.

    omniforcing bench serve --json out/serve.json

Each part lasts --blocks seconds, 14 by default; the slow viewers watch four times as long. Viewers run in this process,
on the same machine as the server. The file is written after each part. Parts that fail are in `failed`, with reasons.

    weights                name of the weights
    click_to_playable_s    median and worst of five new streams: from the request to one playable second
    real_time_factor       seconds of stream per second of work, of one stream with one viewer
    interarrival_ms        p50, p95 and max of the time between two fragments of that stream
    underruns, stall_s     of that viewer, if it begins with one second in its buffer
    switch_s               three changes of prompt: from the request to the block that shows it (receipt 1 to 2), and
                           to the moment when the viewer sees it
    sessions               six streams at once, each watched: how many run, how many wait in the queue and at which
                           places, and the under-runs of those that run
    block_ms_by_viewers    mean work on a block with 1, 10 and 50 viewers of one stream, in milliseconds; one viewer is
                           measured before and after the others
    pace_change            share by which 50 viewers make blocks slower than one does
    processor_ms_by_viewers, processor_ms_per_viewer
                           processor time of the whole server per block, and what one more viewer adds to it
    slow                   two viewers at 1 kB/s beside a quick one: what they received and missed, how many were hung
                           up on, and the quick one's under-runs
"""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from omniforcing_jax.cli.options import BenchOptions
from omniforcing_jax.io.atomic_write import check_writable, write_json
from omniforcing_jax.pipeline.shipped import STUDENT
from omniforcing_jax.serve.bench_parts import measure
from omniforcing_jax.stream.remote import RemoteError, RemoteServer
from omniforcing_jax.strict_json import require

SECONDS = 14  # of each part
START_S = 900.0  # that loading and compiling may take
OF_STREAMS = ("height", "width", "window", "steps")  # flags that are asked of each stream
LIMITS = ("--max-sessions", "32", "--per-client", "32")


def prepare_bench(command: BenchOptions) -> Callable[[], None]:
    """Check the request.

    Raises:
        ValueError: In one line, whatever is wrong with it.
    """
    check_writable(command.json)
    seconds = SECONDS if command.blocks is None else command.blocks
    require(5 <= seconds <= 3600, "blocks", command.blocks, "must be from 5 to 3600")
    require(command.preset is None, "preset", command.preset, "a server needs weights: leave it out")
    refused = {"seed": command.seed, "random-weights": command.random_weights, "no-mux": not command.mux}
    for flag, value in refused.items():
        require(not value, flag, value, "is not for a server: leave it out")
    rule = "a server takes weights as they are; convert --quantise writes them in eight bits"
    require(command.weights_dtype is None, "weights-dtype", command.weights_dtype, rule)
    asked = {name: getattr(command, name) for name in OF_STREAMS if getattr(command, name) is not None}

    def work() -> None:
        flags = ["--weights", command.weights or STUDENT, "--dtype", command.dtype]
        flags += ["--cache-dtype", command.cache_dtype] if command.cache_dtype else []
        with running_server(*flags, *LIMITS) as server:
            figures = asyncio.run(measure(server, float(seconds), partial(write_json, command.json), asked))
        print(json.dumps(figures, indent=2))
        if failed := figures.get("failed"):
            raise ValueError(f"{', '.join(failed)}: failed; {command.json} has the reasons and all other figures")

    return work


@contextlib.contextmanager
def running_server(*flags: str) -> Iterator[RemoteServer]:
    """Run a server in a process of its own until the block ends.

    Raises:
        ValueError: It does not start; has its last words.
    """
    command = [sys.executable, "-m", "omniforcing_jax", "serve", "--port", "0", *flags]
    last = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None, "stderr is a pipe"
            for line in process.stderr:
                if found := re.match(r"watch at (\S+)", line):
                    break
                last = line
            else:
                raise ValueError(f"the server does not start: {last.strip()}")
            server = RemoteServer(found[1])
            # a server whose log nobody reads would wait for a reader before long
            threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
            _wait_until_ready(server, process)
            yield server
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(server: RemoteServer, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            server.ask("GET", "/readyz")
            return
        except RemoteError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"the server does not start: {error}") from None
            time.sleep(0.2)
