"""Figures for Prometheus, read from the engine when they are asked for."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from omniforcing_jax.serve.core import READY
from omniforcing_jax.serve.engine import Engine


class _Figures(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        """Yield all figures."""
        engine = self._engine
        with engine.lock:
            sessions = list(engine.sessions.values())
            load, totals = engine.load(), dict(engine.totals)
        streams = GaugeMetricFamily("omniforcing_streams", "Streams by state", labels=["state"])
        for state, count in Counter(each.state for each in sessions).items():
            streams.add_metric([state], count)
        yield streams
        viewers = sum(len(each.viewers) for each in sessions)
        yield GaugeMetricFamily("omniforcing_viewers", "Viewers of all streams", value=viewers)
        yield GaugeMetricFamily("omniforcing_load", "Share of the device's time that is taken", value=load)
        yield GaugeMetricFamily("omniforcing_ready", "Whether all programs are compiled", value=engine.stage == READY)
        yield CounterMetricFamily("omniforcing_work_seconds", "Seconds of work on blocks", value=engine.work_s)
        for name, help_text in (
            ("blocks", "Blocks made"),
            ("fragment_bytes", "Bytes of encoded fragments"),
            ("underruns", "Blocks that a viewer had to wait for"),
            ("streams_created", "Streams made"),
        ):
            yield CounterMetricFamily(f"omniforcing_{name}", help_text, value=totals.get(name, 0))


def render_metrics(engine: Engine) -> bytes:
    """Return the figures of an engine in Prometheus' text form."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # process_cpu_seconds_total, process_resident_memory_bytes; on Linux
    registry.register(_Figures(engine))
    return generate_latest(registry)
