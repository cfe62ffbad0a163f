"""The parts of `bench serve`: what simulated viewers find at a server. `cli/bench_serve.py` explains the figures.

Each part opens streams of its own and deletes them. One that fails is named, and costs no other part its figures.
"""

import asyncio
import contextlib
import dataclasses
import math
import re
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np

from omniforcing_jax.io.answers import describe
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.serve.simulated_viewer import Playback, SimulatedViewer, play
from omniforcing_jax.stream.remote import RemoteServer, RemoteStream

BUFFER_S = 1.0  # that a viewer gathers before it plays
CLICKS, SWITCHES = 5, 3
CLICK_S = 60.0  # that a stream may take to begin
COMPILING_S = 900.0  # that a first stream of another kind may take
SLOW, SLOW_PARTS, SLOW_BYTES_PER_S = 2, 4, 1000.0  # a slow viewer is told after about 50 s
CROWDS = (1, 10, 50)
SETTLED_S = 3.0  # after which a new stream is as far ahead as it may be
SESSIONS = 6
COUNTERS = ("omniforcing_work_seconds_total", "process_cpu_seconds_total", "omniforcing_blocks_total")

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scene:
    """What all parts share: a server, prompts for it, the seconds of a part, and what else is asked of each stream."""

    server: RemoteServer
    prompts: list[str]
    seconds: float
    asked: dict[str, Any]

    def prompt(self, index: int) -> str:
        """Return one of the prompts."""
        return self.prompts[index % len(self.prompts)]

    @contextlib.asynccontextmanager
    async def streams(self, count: int = 1) -> AsyncIterator[list[RemoteStream]]:
        """Open streams, which are deleted in the end."""
        opened: list[RemoteStream] = []
        try:
            for seed in range(count):
                opened.append(await asyncio.to_thread(self.server.open, self.prompt(seed), seed=seed, **self.asked))
            yield opened
        finally:
            for each in opened:
                await asyncio.to_thread(each.delete)


async def measure(
    server: RemoteServer, seconds: float, keep: Callable[[Figures], None], asked: dict[str, Any] | None = None
) -> Figures:
    """Measure all figures.

    Args:
        server: A server that is ready.
        seconds: Length of each part.
        keep: Takes what is known after each part.
        asked: Fields of `StreamRequestBody` for every stream. A first one, which is not measured, compiles for them.

    Returns:
        The figures; `failed` has the parts that have none, each with the reason.
    """
    about = server.about()
    scene = Scene(server, about["suggestions"] or [" ".join(about["words"][:1]) or "a red ball"], seconds, asked or {})
    figures: Figures = {"weights": about["weights"], **scene.asked}
    if scene.asked:
        await _click(scene, COMPILING_S)
    with Bar("measuring", len(PARTS), "parts") as show:
        for done, (name, part) in enumerate(PARTS.items()):
            show(done, name)
            try:
                figures |= await part(scene)
            except Exception as error:
                figures["failed"] = {**figures.get("failed", {}), name: describe(_first(error))}
            keep(figures)
        show(len(PARTS))
    return figures


def _first(error: Exception) -> Exception:
    """Return the first error of a group of tasks."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _rounded(values: dict[str, float]) -> dict[str, float | None]:
    """Round figures; JSON has no word for one that is not a number."""
    return {name: None if math.isnan(value) else round(value, 3) for name, value in values.items()}


def _viewer(stream: RemoteStream, bytes_per_s: float | None = None) -> SimulatedViewer:
    return SimulatedViewer(stream.server.socket_url(f"/v1/streams/{stream.id}/live"), bytes_per_s)


def _played(viewer: SimulatedViewer) -> Playback:
    """Reckon how a viewer fared.

    Raises:
        ValueError: It was hung up on, or saw nothing.
    """
    if viewer.lost or not viewer.arrivals:
        raise ValueError(f"a viewer received {len(viewer.arrivals)} fragments: {viewer.lost or 'its time was over'}")
    return play(viewer.arrivals, viewer.began, BUFFER_S)


async def clicks(scene: Scene) -> Figures:
    """Measure the seconds from a request to one playable second of a new stream, a few times."""
    found = [await _click(scene) for _ in range(CLICKS)]
    return {"click_to_playable_s": _rounded({"p50": statistics.median(found), "max": max(found)})}


async def _click(scene: Scene, most_s: float = CLICK_S) -> float:
    began = time.perf_counter()
    async with scene.streams() as (stream,):
        viewer = _viewer(stream)
        viewer.began = began
        await viewer.watch(most_s, BUFFER_S)
        return _played(viewer).begins_s


async def alone(scene: Scene) -> Figures:
    """Watch one stream and change its prompt a few times."""
    asked: dict[str, float] = {}
    async with scene.streams() as (stream,), asyncio.TaskGroup() as tasks:
        viewer = _viewer(stream)
        tasks.create_task(viewer.watch(scene.seconds))
        for turn in range(SWITCHES):
            await asyncio.sleep(scene.seconds / (SWITCHES + 1))
            began = time.perf_counter()
            receipt = await asyncio.to_thread(stream.set_prompt, scene.prompt(turn + 1))
            asked[receipt["id"]] = began
    playback = _played(viewer)
    begins = viewer.began + playback.begins_s - viewer.arrivals[0].start_s
    applied = [(when, each) for when, each in viewer.receipts if each["stage"] == "applied"]
    made = [when - asked[each["id"]] for when, each in applied]
    seen = [begins + each["second"] - asked[each["id"]] for _, each in applied]
    gaps = 1000 * np.diff([each.time for each in viewer.arrivals[1:]])
    p50, p95 = (float(np.percentile(gaps, q)) for q in (50, 95))
    return {
        "real_time_factor": viewer.view["real_time_factor"],
        "interarrival_ms": _rounded({"p50": p50, "p95": p95, "max": float(gaps.max())}),
        "underruns": playback.underruns,
        "stall_s": round(playback.stalled_s, 3),
        "switch_s": _rounded({"to_block": max(made, default=float("nan")), "to_eye": max(seen, default=float("nan"))}),
    }


class Work(NamedTuple):
    """Work on a block, in milliseconds: of the device's thread, and processor time of the whole server."""

    block_ms: float
    processor_ms: float


async def crowds(scene: Scene) -> Figures:
    """Measure the work on a block with few and with many viewers."""
    found = [await _crowd(scene, count) for count in CROWDS]
    again = await _crowd(scene, CROWDS[0])
    found[0] = Work(*(statistics.mean(pair) for pair in zip(found[0], again, strict=True)))
    by_viewers = dict(zip(map(str, CROWDS), found, strict=True))
    one, many, more = found[0], found[-1], CROWDS[-1] - CROWDS[0]
    changes = {
        "pace_change": many.block_ms / one.block_ms - 1,
        "processor_ms_per_viewer": (many.processor_ms - one.processor_ms) / more,
    }
    return {
        "block_ms_by_viewers": _rounded({name: each.block_ms for name, each in by_viewers.items()}),
        "processor_ms_by_viewers": _rounded({name: each.processor_ms for name, each in by_viewers.items()}),
        **_rounded(changes),
    }


async def _crowd(scene: Scene, count: int) -> Work:
    async with scene.streams() as (stream,), asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(_viewer(stream).watch(scene.seconds))
        settled_s = min(SETTLED_S, scene.seconds / 4)
        await asyncio.sleep(settled_s)
        before = _count(scene.server)
        await asyncio.sleep(scene.seconds - settled_s)
        after = _count(scene.server)
    work_s, processor_s, blocks = (late - early for early, late in zip(before, after, strict=True))
    return Work(1000 * work_s / max(1.0, blocks), 1000 * processor_s / max(1.0, blocks))


def _count(server: RemoteServer) -> list[float]:
    """Return the server's counters since its start; not a number where the system does not have one."""
    text = server.read_text("/metrics")
    found = [re.search(rf"^{name} (\S+)", text, re.MULTILINE) for name in COUNTERS]
    return [float(each[1]) if each else float("nan") for each in found]


async def slow(scene: Scene) -> Figures:
    """Let viewers that read slowly watch beside a quick one."""
    async with scene.streams() as (stream,):
        quick, slow = _viewer(stream), [_viewer(stream, SLOW_BYTES_PER_S) for _ in range(SLOW)]
        await asyncio.gather(*(each.watch(SLOW_PARTS * scene.seconds) for each in (quick, *slow)))
    figures = {
        "received": [len(each.arrivals) for each in slow],
        "skipped": [each.skipped for each in slow],
        "hung_up_on": sum(bool(each.lost) for each in slow),
        "quick_received": len(quick.arrivals),
        "quick_underruns": _played(quick).underruns,
    }
    return {"slow": figures}


async def sessions(scene: Scene) -> Figures:
    """Open several streams, each with a viewer of its own."""
    async with scene.streams(SESSIONS) as opened:
        watchers = [_viewer(each) for each in opened]
        await asyncio.gather(*(each.watch(scene.seconds) for each in watchers))
        views = [await asyncio.to_thread(each.view) for each in opened]
    played = [_played(each) for each in watchers if each.arrivals]
    figures = {
        "opened": len(opened),
        "running": sum(each["state"] in ("running", "asleep") for each in views),
        "queued": sum(each["state"] == "queued" for each in views),
        "places": [each["place"] for each in views if each["place"]],
        "underruns": sum(each.underruns for each in played),
        "stall_s": round(sum(each.stalled_s for each in played), 3),
    }
    return {"sessions": figures}


PARTS: dict[str, Callable[[Scene], Awaitable[Figures]]] = {
    "clicks": clicks,
    "alone": alone,
    "sessions": sessions,
    "crowds": crowds,
    "slow": slow,
}
