"""A batch beside one stream: both make blocks in turns, and the ratio is that of their frames per second."""

import itertools
import json
import types

import pytest
from tiny_stream import STATIC, student

from experiments.bench import batch


class Slow:
    """A stream whose blocks take so many seconds of a clock that is not the machine's."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.static = clock, seconds, STATIC
        self.state = types.SimpleNamespace(cache=None)

    def __next__(self):
        self.clock.append(self.clock[-1] + self.seconds)


def test_the_ratio_is_that_of_throughputs(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(batch.checks, "load", lambda *_: student())
    monkeypatch.setattr(batch, "open_stream", lambda _, prompt, **how: Slow(clock, 1 if isinstance(prompt, str) else 2))
    monkeypatch.setattr(batch.time, "perf_counter", lambda: clock[-1])
    out = tmp_path / "batch.json"
    batch.main(batch.Arguments(json=out, rows=4, blocks=5))
    figures = json.loads(out.read_text())
    assert (figures["one_fps"], figures["batch_fps"], figures["ratio"]) == (24, 48, 2)
    assert "4 at once: 48.0 together; ratio 2.00" in capsys.readouterr().out


def test_first_calls_are_not_timed(monkeypatch):
    order, ticks = [], itertools.count()
    monkeypatch.setattr(batch.time, "perf_counter", lambda: next(ticks))
    times = batch.time_in_turns(lambda: order.append("one"), lambda: order.append("other"), 3)
    assert order == ["one", "other"] * (batch.UNTIMED + 3)
    assert times == ([1, 1, 1], [1, 1, 1])


@pytest.mark.parametrize(("asked", "named"), [({"rows": 1}, "rows=1: must be"), ({"blocks": 0}, "blocks=0: must be")])
def test_what_cannot_be_is_refused(capsys, asked, named):
    with pytest.raises(SystemExit) as end:
        batch.main(batch.Arguments(**asked))
    assert end.value.code == 2
    assert named in capsys.readouterr().err
