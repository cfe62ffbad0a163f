"""The command that makes a teacher's ODE pairs, at the tiny preset's size."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stream
from test_recipes import NEGATIVE, PROMPTS, write

from experiments import ltx2_recipe, make_pairs
from experiments.ltx2_flags import LAYOUTS
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.trajectory import noise_of_seeds
from omniforcing_jax.layout import PREFIX, audio_latents
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.pipeline.presets import TINY_CLIP
from omniforcing_jax.sample.clip import ClipText, SamplingStep, clip_step
from omniforcing_jax.sample.plan import ClipStaticConfig
from omniforcing_jax.streams import Streams
from omniforcing_jax.train.contexts import contexts_header

FRAMES = 4
GUIDANCE = dataclasses.replace(make_pairs.CONFIG.guidance, stg_layers=(0,))
CONFIG = make_pairs.Config(seconds=1, steps=10, student_steps=(1000, 725, 0), guidance=GUIDANCE)
SIGMAS = make_pairs.ltx2_schedule(10)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    folder, channels = tmp_path_factory.mktemp("contexts"), TINY_CLIP.model.caption_channels
    header = contexts_header(count=3, shards=1, tokens=4, channels=(channels, channels), encoder="e")
    write(folder, header, (PROMPTS[0], NEGATIVE, PROMPTS[1]))
    return folder


@pytest.fixture
def told(contexts, tmp_path):
    known = {"teacher": tiny_stream.folders() / "teacher", "contexts": contexts, "negative": NEGATIVE}
    known |= {"folder": tmp_path / "pairs", "shards": 2, "dtype": "float32", "config": CONFIG}
    return lambda **other: make_pairs.Arguments(**{**known, **other})


def read(folder):
    indices, levels = make_pairs.snap(CONFIG.student_steps, SIGMAS)
    sampler = SamplerConfig(layout=PREFIX, sigmas=levels, horizon_seconds=CONFIG.seconds)
    pairs = ltx2_recipe.open_pairs(folder, dataclasses.replace(TINY_CLIP, sampler=sampler), sampler)
    assert pairs.prompts == list(PROMPTS)
    return indices, [pairs[row] for row in range(len(pairs))]


def walk(contexts, row):
    """Take the same trajectory step by step, as `sample` does."""
    store = ltx2_recipe.open_contexts(contexts, TINY_CLIP.model)
    prompt, negative = (ltx2_recipe.context_of(store, text) for text in (PROMPTS[row], NEGATIVE))
    audio = audio_latents(FRAMES)
    positions = make_positions(TINY_CLIP.model, clip_block(FRAMES, audio), tiny_stream.GRID)
    latents = noise_of_seeds(jnp.array([row]), TINY_CLIP.model, (FRAMES * tiny_stream.TOKENS, audio))
    static = ClipStaticConfig(TINY_CLIP.model, GUIDANCE, jnp.dtype("float32"))
    entries, network = [latents], tiny_stream.teacher().transformer
    for pair in itertools.pairwise(SIGMAS):
        now = Streams(*map(jnp.copy, latents))
        step = SamplingStep(sigmas=np.array(pair, np.float32), fresh=None, share=np.float32(0))
        latents = clip_step(network, now, step, ClipText(prompt, negative), positions, static=static)
        entries.append(latents)
    return entries


def test_pairs_are_what_sampling_passes_through_and_a_mesh_makes_the_same(told, contexts, tmp_path):
    make_pairs.main(told())
    indices, rows = read(told().folder)
    for row, found in enumerate(rows):
        entries = walk(contexts, row)
        for e, index in enumerate(indices):
            for name, expected in zip(("video", "audio"), entries[index], strict=True):
                np.testing.assert_allclose(found[name][e], expected[0], rtol=2e-3, atol=2e-3)  # float16
    assert np.abs(rows[0]["video"][-1] - rows[1]["video"][-1]).max() > 0.1

    on_mesh = told(folder=tmp_path / "mesh", batch=2, mesh="2,1,2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:4])
        make_pairs.main(on_mesh)
    for found, expected in zip(read(on_mesh.folder)[1], rows, strict=True):
        for name in ("video", "audio"):
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, atol=2e-3)


def test_pairs_are_as_long_as_the_students_layout_wants():
    assert [make_pairs.clip_frames(layout, 5) for layout in LAYOUTS.values()] == [(16, 126), (16, 126), (16, 127)]


def test_a_try_says_what_all_clips_take_and_writes_none(told, capsys):
    make_pairs.main(told(try_=1))
    said = capsys.readouterr().out
    entries = 3 * (FRAMES * tiny_stream.TOKENS * TINY_CLIP.model.video.latent_channels + 26 * 8) * 2 + 8
    assert f"s and {entries / 1e6:.2f} MB a clip; 2 clips take 0.00 h in 1 processes" in said
    assert not told().folder.exists()


@pytest.mark.parametrize(
    ("other", "config", "complaint"),
    [
        ({"negative": "a fog"}, CONFIG, "no context of 'a fog'"),
        ({"shards": 3}, CONFIG, "shards=3: must lie between the 1 processes and the 2 prompts"),
        ({"batch": 0}, CONFIG, "batch=0"),
        ({"try_": -1}, CONFIG, "try=-1"),
        ({"mesh": "2,1"}, CONFIG, "--mesh 2,1"),
        ({"batch": 3, "mesh": "2,1,1"}, CONFIG, "--batch 3"),
        ({}, make_pairs.CONFIG, "stg_layers=29: must be below the teacher's"),
        ({"teacher": "student"}, CONFIG, "holds a causal student"),
    ],
)
def test_bad_input_is_one_line_before_weights_are_read(told, capsys, monkeypatch, other, config, complaint):
    monkeypatch.setattr(ltx2_recipe, "load_network", lambda *arguments: pytest.fail("weights were loaded"))
    if "teacher" in other:
        other = {"teacher": tiny_stream.folders() / other["teacher"]}
    with pytest.raises(SystemExit) as caught:
        make_pairs.main(told(**other, config=config))
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert complaint in message
    assert not told().folder.exists()
