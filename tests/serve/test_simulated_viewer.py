"""How a player fares with fragments that come when they come."""

import asyncio
import contextlib

import pytest
from live_server import make_context, serving

from omniforcing_jax.cli import bench_serve
from omniforcing_jax.cli.main import main
from omniforcing_jax.serve import bench_parts
from omniforcing_jax.serve.bench_parts import measure
from omniforcing_jax.serve.simulated_viewer import Arrival, play
from omniforcing_jax.stream.remote import connect


def arrivals(*times):
    return [Arrival(float(time), float(i), i + 1.0) for i, time in enumerate(times)]


def test_fragments_in_time_are_played_without_a_stall():
    assert play(arrivals(100.5, 101, 102, 103), 100.0, 1.0) == (0.5, 0, 0.0)


def test_a_late_fragment_is_waited_for_and_shifts_the_rest():
    playback = play(arrivals(100, 100.2, 103, 103.5, 104.9), 99.0, 1.0)
    assert (playback.begins_s, playback.underruns) == (1.0, 1)
    assert playback.stalled_s == pytest.approx(1.0)


def test_a_larger_buffer_begins_later_and_bears_more():
    times = (100, 100.2, 103, 103.5)
    playback = play(arrivals(*times), 100.0, 2.0)
    assert playback.begins_s == pytest.approx(0.2)
    assert playback.stalled_s == pytest.approx(0.8)


def test_the_bench_refuses_what_it_cannot_measure(capsys, tmp_path):
    path = str(tmp_path / "a.json")
    refused = {
        ("--blocks", "2"): "blocks=2: must be from 5",
        ("--preset", "tiny"): "preset='tiny'",
        ("--seed", "3"): "seed=3: is not for a server",
        ("--random-weights",): "random-weights=True: is not for a server",
        ("--no-mux",): "no-mux=True: is not for a server",
        ("--weights-dtype", "int8"): "weights-dtype='int8': a server takes weights as they are",
    }
    for flags, words in refused.items():
        assert main(["bench", "serve", "--json", path, *flags]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.long
def test_the_bench_measures_all_its_figures():
    kept = []
    with serving(make_context(max_sessions=32, per_client=32, requests_per_s=100.0)) as url:
        figures = asyncio.run(measure(connect(url), 1.5, lambda found: kept.append(dict(found))))
    assert (kept[-1], len(kept)) == (figures, len(bench_parts.PARTS))
    assert "failed" not in figures
    assert figures["click_to_playable_s"]["p50"] < 3
    assert figures["underruns"] == 0
    assert figures["slow"]["hung_up_on"] == 0
    assert figures["switch_s"]["to_block"] < figures["switch_s"]["to_eye"] < 6
    assert figures["block_ms_by_viewers"].keys() == {"1", "10", "50"}
    assert figures["processor_ms_by_viewers"].keys() == {"1", "10", "50"}
    assert (figures["sessions"]["opened"], figures["sessions"]["running"]) == (6, 6)


def test_the_bench_asks_for_the_streams_that_its_flags_describe(monkeypatch, tmp_path):
    asked = []

    @contextlib.contextmanager
    def server(*flags):
        asked.append(flags)
        yield None

    async def note(server, seconds, keep, given):
        asked.append(given)
        return {}

    monkeypatch.setattr(bench_serve, "running_server", server)
    monkeypatch.setattr(bench_serve, "measure", note)
    flags = ["--steps", "2", "--window", "3", "--height", "64", "--width", "96", "--cache-dtype", "int8"]
    assert main(["bench", "serve", "--json", str(tmp_path / "a.json"), *flags]) == 0
    assert asked[0][-len(bench_serve.LIMITS) - 2 :] == ("--cache-dtype", "int8", *bench_serve.LIMITS)
    assert asked[1] == {"steps": 2, "window": 3, "height": 64, "width": 96}


def test_a_part_of_the_bench_that_fails_costs_no_other_part_its_figures(monkeypatch):
    async def lost(scene):
        async with scene.streams() as (stream,), asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(stream.set_prompt, ""))

    monkeypatch.setattr(bench_parts, "PARTS", {"one": lost, "clicks": bench_parts.clicks})
    kept = []
    with serving(make_context()) as url:
        server = connect(url)
        figures = asyncio.run(measure(server, 1.0, lambda found: kept.append(dict(found))))
        assert not server.ask("GET", "/v1/streams")["streams"]
    assert "prompt=''" in figures["failed"]["one"]
    assert "click_to_playable_s" in figures
    assert [set(each) - {"weights"} for each in kept] == [{"failed"}, {"failed", "click_to_playable_s"}]


def test_all_viewers_are_woken_by_one_call_into_their_loop():
    async def run():
        context, loop = make_context(), asyncio.get_running_loop()
        events, wakes = zip(*(context.waker() for _ in range(50)), strict=True)
        calls, into = [], loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *values: (calls.append(values), into(*values))
        for wake in wakes:
            wake()
        await asyncio.gather(*(asyncio.wait_for(each.wait(), 5) for each in events))
        loop.call_soon_threadsafe = into
        context.engine.stop()
        return len(calls)

    assert asyncio.run(run()) == 1
