"""What a server holds: `bench serve` starts one, lets simulated viewers watch it over real sockets, and writes JSON.

    omniforcing bench serve --json out/serve.json

Each part lasts --blocks blocks, 20 by default. Viewers run in this process, on the same machine as the server.

    device, weights        accelerator or processor; name of the weights
    click_to_playable_s    median and worst of five new streams: from the request to one playable second
    interarrival_ms        p50, p95 and max of the time between two fragments of one stream with one viewer
    underruns, stall_s     of that viewer, if it begins with one second in its buffer
    switch_s               three changes of prompt: from the request to the block that shows it (receipt 1 to 2), and
                           to the moment when the viewer sees it
    block_ms_by_viewers    mean work on a block with 1, 10 and 50 viewers of one stream, in milliseconds; one viewer is
                           measured before and after the others
    pace_change            share by which 50 viewers make blocks slower than one does
    slow                   two viewers at 1 kB/s beside a quick one: what they missed, and the quick one's under-runs
    sessions               1 to 6 streams at once, each watched: how many run, how many wait in the queue, and the
                           under-runs of those that run
"""

import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from omniforcing_jax.cli.options import BenchOptions
from omniforcing_jax.io.atomic_write import check_writable, write_json
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.pipeline.shipped import STUDENT
from omniforcing_jax.serve.simulated_viewer import SimulatedViewer, play
from omniforcing_jax.stream.remote import RemoteError, RemoteServer, RemoteStream
from omniforcing_jax.strict_json import require

SECONDS = 20  # of each part
BUFFER_S = 1.0  # that a viewer gathers before it plays
CLICKS, SWITCHES, SLOW, SLOW_PARTS, SLOW_BYTES_PER_S = 5, 3, 2, 3, 1000.0
CROWDS = (1, 10, 50)
MOST_SESSIONS = 6
START_S = 900.0  # that loading and compiling may take
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

    def work() -> None:
        flags = ("--weights", command.weights or STUDENT, "--dtype", command.dtype)
        with running_server(*flags, *LIMITS) as server:
            figures = asyncio.run(measure(server, float(seconds)))
        write_json(command.json, figures)
        print(json.dumps(figures, indent=2))

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
            _wait_until_ready(server, process)
            yield server
        finally:
            process.terminate()
            process.communicate()


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


async def measure(server: RemoteServer, seconds: float) -> dict[str, Any]:
    """Measure all figures. See the head of this file."""
    about = server.about()
    prompts = about["suggestions"] or [" ".join(about["words"][:1]) or "a red ball"]
    with Bar("measuring", 5, "parts") as show:
        show(0)
        clicks = [await _click(server, prompts[0]) for _ in range(CLICKS)]
        show(1)
        alone = await _watch_alone(server, prompts, seconds)
        show(2)
        crowd = [await _crowd(server, prompts[0], count, seconds) for count in CROWDS]
        crowd[0] = (crowd[0] + await _crowd(server, prompts[0], CROWDS[0], seconds)) / 2
        show(3)
        slow = await _slow(server, prompts[0], seconds)
        show(4)
        sessions = [await _sessions(server, prompts, count, seconds) for count in range(1, MOST_SESSIONS + 1)]
        show(5)
    return {
        "weights": about["weights"],
        "click_to_playable_s": _rounded({"p50": statistics.median(clicks), "max": max(clicks)}),
        **alone,
        "block_ms_by_viewers": _rounded(dict(zip(map(str, CROWDS), crowd, strict=True))),
        "pace_change": round(crowd[-1] / crowd[0] - 1, 3),
        "slow": slow,
        "sessions": sessions,
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _viewer(stream: RemoteStream, bytes_per_s: float | None = None) -> SimulatedViewer:
    return SimulatedViewer(stream.server.socket_url(f"/v1/streams/{stream.id}/live"), bytes_per_s)


async def _click(server: RemoteServer, prompt: str) -> float:
    """Return the seconds from a request to one playable second of a new stream."""
    began = time.perf_counter()
    stream = await asyncio.to_thread(server.open, prompt)
    viewer = _viewer(stream)
    task = asyncio.create_task(viewer.watch(60.0))
    while not viewer.arrivals or viewer.arrivals[-1].end_s < BUFFER_S:
        await asyncio.sleep(0.005)
    taken = play(viewer.arrivals, began, BUFFER_S).begins_s
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stream.delete()
    return taken


async def _watch_alone(server: RemoteServer, prompts: list[str], seconds: float) -> dict[str, Any]:
    """Watch one stream and change its prompt a few times."""
    stream = await asyncio.to_thread(server.open, prompts[0])
    viewer = _viewer(stream)
    task = asyncio.create_task(viewer.watch(seconds))
    asked: dict[str, float] = {}
    for turn in range(SWITCHES):
        await asyncio.sleep(seconds / (SWITCHES + 1))
        began = time.perf_counter()
        receipt = await asyncio.to_thread(stream.set_prompt, prompts[(turn + 1) % len(prompts)])
        asked[receipt["id"]] = began
    await task
    stream.delete()
    playback = play(viewer.arrivals, viewer.began, BUFFER_S)
    begins = viewer.began + playback.begins_s - viewer.arrivals[0].start_s
    applied = [(when, each) for when, each in viewer.receipts if each["stage"] == "applied"]
    made = [when - asked[each["id"]] for when, each in applied]
    seen = [begins + each["second"] - asked[each["id"]] for _, each in applied]
    gaps = 1000 * np.diff([each.time for each in viewer.arrivals[1:]])
    p50, p95 = (float(np.percentile(gaps, q)) for q in (50, 95))
    return {
        "interarrival_ms": _rounded({"p50": p50, "p95": p95, "max": float(gaps.max())}),
        "underruns": playback.underruns,
        "stall_s": round(playback.stalled_s, 3),
        "switch_s": _rounded({"to_block": max(made, default=float("nan")), "to_eye": max(seen, default=float("nan"))}),
    }


async def _crowd(server: RemoteServer, prompt: str, count: int, seconds: float) -> float:
    """Return the mean milliseconds of work on a block of a stream with so many viewers."""
    stream = await asyncio.to_thread(server.open, prompt)
    watching = [asyncio.create_task(_viewer(stream).watch(seconds)) for _ in range(count)]
    await asyncio.sleep(min(3.0, seconds / 4))
    before = _work(server)
    await asyncio.gather(*watching)
    after = _work(server)
    stream.delete()
    return 1000 * (after[0] - before[0]) / max(1.0, after[1] - before[1])


def _work(server: RemoteServer) -> tuple[float, float]:
    """Return the seconds of work and the blocks since the server's start."""
    text = server.read_text("/metrics")
    found = [re.search(rf"^omniforcing_{name}_total (\S+)", text, re.MULTILINE) for name in ("work_seconds", "blocks")]
    return tuple(float(each[1]) if each else 0.0 for each in found)  # pyright: ignore[reportReturnType]


async def _slow(server: RemoteServer, prompt: str, seconds: float) -> dict[str, Any]:
    """Let viewers at 1 kB/s watch beside a quick one."""
    stream = await asyncio.to_thread(server.open, prompt)
    quick, slow = _viewer(stream), [_viewer(stream, SLOW_BYTES_PER_S) for _ in range(SLOW)]
    await asyncio.gather(*(each.watch(SLOW_PARTS * seconds) for each in (quick, *slow)))
    stream.delete()
    playback = play(quick.arrivals, quick.began, BUFFER_S)
    return {
        "received": [len(each.arrivals) for each in slow],
        "skipped": [each.skipped for each in slow],
        "quick_received": len(quick.arrivals),
        "quick_underruns": playback.underruns,
    }


async def _sessions(server: RemoteServer, prompts: list[str], count: int, seconds: float) -> dict[str, Any]:
    """Open so many streams, each with a viewer of its own."""
    opened = [await asyncio.to_thread(server.open, prompts[i % len(prompts)], seed=i) for i in range(count)]
    watchers = [_viewer(each) for each in opened]
    await asyncio.gather(*(each.watch(seconds) for each in watchers))
    views = [each.view() for each in opened]
    for each in opened:
        each.delete()
    played = [play(each.arrivals, each.began, BUFFER_S) for each in watchers if each.arrivals]
    return {
        "opened": count,
        "running": sum(each["state"] in ("running", "asleep") for each in views),
        "queued": sum(each["state"] == "queued" for each in views),
        "places": [each["place"] for each in views if each["place"]],
        "underruns": sum(each.underruns for each in played),
        "stall_s": round(sum(each.stalled_s for each in played), 3),
    }
