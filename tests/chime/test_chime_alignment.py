"""Cutting sound by blocks: what is lost, how far sound runs ahead, and that the measure finds it."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.chime import alignment
from omniforcing_jax.chime import physics
from omniforcing_jax.chime.detect import Event
from omniforcing_jax.layout import PREFIX, latent_frames

BY_NAME = {found.name: found for found in alignment.ALIGNMENTS}
PREFIXED, SINGLE = BY_NAME["prefix, 3 + 25"], BY_NAME["prefix, 1 + 8"]


def test_the_prefix_layout_loses_nothing_and_is_the_block_table():
    blocks = PREFIX.blocks(latent_frames(PREFIX.frames_for(60)))
    np.testing.assert_array_equal(PREFIXED.kept(60), np.arange(blocks[-1].audio_end))
    assert (PREFIXED.first_a, PREFIXED.step_a) == (PREFIX.first_a, PREFIX.step_a)
    assert PREFIXED.offset(0, 60) == 0


@pytest.mark.parametrize(
    ("name", "first", "step", "lost"),
    [("no prefix, 3 + 25", 17, 25, 0), ("prefix, 4 + 33", 1, 33, 12), ("prefix, 2 + 16", 1, 16, 48)],
)
def test_blocks_of_other_lengths_keep_whole_latents_only(name, first, step, lost):
    found = BY_NAME[name]
    assert (found.first_a, found.step_a) == (first, step)
    kept = found.kept(120)
    assert np.all(np.diff(kept) >= 1)
    assert np.sum((kept >= 25 * 12) & (kept < 25 * 60)) == 25 * 48 - lost


def test_sound_of_single_latents_gains_one_latent_a_second():
    gained = [SINGLE.offset(t, t + 1) for t in (10, 11, 40)]
    np.testing.assert_allclose(np.diff(gained), [0.04, 29 * 0.04], atol=1e-9)


def _events():
    """Impacts of two worlds, as seen."""
    scenes = [physics.sample_world([8, i], colours=("red", "blue")) for i in range(2)]
    return [[Event(time=i.time, colour=i.colour, strength=1.0) for i in physics.impacts(s, 20.0)] for s in scenes]


@pytest.mark.parametrize("ahead", [0.0, 0.04, 0.72])
def test_an_offset_is_found_whatever_its_size(ahead):
    heard = _events()
    seen = [[event for event in clip if 8 <= event.time < 12] for clip in heard]
    early = [[dataclasses.replace(event, time=event.time - ahead) for event in clip] for clip in heard]
    assert alignment.offset_between(seen, early) == pytest.approx(ahead, abs=1e-6)


def test_nothing_is_said_about_too_few_events():
    clip = [Event(time=float(i), colour=0, strength=1.0) for i in range(alignment.LEAST - 1)]
    assert alignment.offset_between([clip], [clip]) is None
    assert alignment.between(clip, 1, 3) == clip[1:3]


def test_what_is_measured_is_what_was_cut(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(alignment, "ALIGNMENTS", (PREFIXED, SINGLE))
    asked = alignment.Arguments(prompts=4, seconds=4, json=tmp_path / "a.json", plot=tmp_path / "a.png")
    alignment.main(asked)
    found = json.loads((tmp_path / "a.json").read_text())
    for name, row in found.items():
        last = row["spans"][-1]
        assert last["measured_s"] == pytest.approx(last["exact_s"], abs=0.045), name
    assert found[SINGLE.name]["spans"][-1]["exact_s"] > 0.08
    assert found[PREFIXED.name]["spans"][-1]["sync_recall"] > 0.9
    said = capsys.readouterr().out
    assert all(f"| {name} |" in said for name in found)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_too_short_a_clip_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        alignment.main(alignment.Arguments(seconds=1))
    assert caught.value.code == 2
    assert "--seconds" in capsys.readouterr().err
