"""The table of what of chime's cache can be in eight bits: every choice is judged from the same past."""

import json

import numpy as np
import pytest
from tiny_stream import STATIC, student

from experiments.chime import cache_choice
from omniforcing_jax.model.eight_bits import EightBitCache
from omniforcing_jax.streams import Streams


def test_every_choice_is_held_against_the_wide_cache_and_its_memory_counted(tmp_path, monkeypatch, capsys):
    def blocks(subject, count, past):
        """Blocks whose error is one for each site in eight bits, in hundredths."""
        off = 0 if past is None else 0.01 * len(subject.static.cache.sites)
        truth = Streams(np.array([[-1.0], [1.0]]), np.array([[-1.0], [1.0]]))
        return iter([Streams(truth.video + off, truth.audio + 2 * off)] * count)

    subject = cache_choice.Subject(student(), STATIC, None, np.zeros(2))
    monkeypatch.setattr(cache_choice, "_open", lambda arguments: subject)
    monkeypatch.setattr(cache_choice, "_blocks", blocks)
    out = tmp_path / "choice.json"
    cache_choice.main(cache_choice.Arguments(json=out, blocks=4))
    figures = json.loads(out.read_text())
    assert list(figures) == list(cache_choice.CHOICES)
    for name, choice in cache_choice.CHOICES.items():
        assert figures[name]["video"] == pytest.approx(0.01 * len(choice.sites))
        assert figures[name]["audio"] == pytest.approx(0.02 * len(choice.sites))
    assert EightBitCache(cache_choice.INT8) in cache_choice.CHOICES.values()
    assert figures["int8: everything"]["memory"] < figures["int8: both rings"]["memory"] < 1
    assert "| int8: everything | 4.00% | 8.00% |" in capsys.readouterr().out


def test_a_stream_that_is_too_short_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        cache_choice.main(cache_choice.Arguments(blocks=2))
    assert end.value.code == 2
    assert "blocks=2: must be at least 3" in capsys.readouterr().err
