"""The recipes on a tiny LTX-2.3: they need one noise level for its text, and are resumed and spread as any other.

The long tests train every stage for 20 steps, whole and cut and resumed; stage 2 on eight devices, too.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stream
from random_weights import fill
from refusal import recipe_refusal as refusal
from test_recipes import write
from tiny import MODERN

from experiments import causal_dmd, ltx2_flags, ltx2_recipe, stage1_dmd, stage2_ode, stage3_self_forcing
from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.layout import PREFIX2
from omniforcing_jax.pipeline.pipeline import abstract_pipeline
from omniforcing_jax.pipeline.presets import TINY_CLIP
from omniforcing_jax.pipeline.weights_folder import save_pipeline
from omniforcing_jax.train import loop
from omniforcing_jax.train.contexts import contexts_header
from omniforcing_jax.train.pairs import pairs_header

NEGATIVE, PROMPTS = "a blur", ("a red ball", "a blue ball", "a green ball", "two balls")
NEWER = dataclasses.replace(MODERN, cross_timestep=CrossTimestep.CROSS)
TEACHER = dataclasses.replace(TINY_CLIP, model=NEWER, words=None)
HELD = {"cross_timestep": CrossTimestep.CROSS, "scalar_sigma": 1.0}
STEPS, CUT, SECONDS = 20, 8, 1


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Teacher and student as weights folders, contexts, and pairs of one second with two audio latents in block 0."""
    root, shared = tmp_path_factory.mktemp("ltx23"), tiny_stream.folders() / "student"
    places = {name: str(shared / name) for name in ("video_vae", "audio_vae", "vocoder")}
    sampler = ltx2_flags.CausalConfig(**HELD).sampler(PREFIX2, SECONDS)
    for name, config in (("teacher", TEACHER), ("student", dataclasses.replace(TEACHER, sampler=sampler))):
        save_pipeline(root / name, fill(abstract_pipeline(config), len(name)), shared=places)
    channels = NEWER.video.width, NEWER.audio.width
    header = contexts_header(count=len(PROMPTS) + 1, shards=1, tokens=4, channels=channels, encoder="e")
    write(root / "contexts", header, (NEGATIVE, *PROMPTS))
    end = PREFIX2.blocks(1 + 3 * SECONDS)[-1]
    video = (end.video_end, *tiny_stream.GRID, NEWER.video.latent_channels)
    audio = end.audio_end, NEWER.audio.latent_channels
    header = pairs_header(
        count=len(PROMPTS), shards=1, sigmas=ltx2_flags.V2_SIGMAS, video=video, audio=audio, teacher="abc"
    )
    write(root / "pairs", header, PROMPTS)
    return root


@pytest.fixture
def told(given, tmp_path):
    """What each recipe is told, by its module; values of its config can be told otherwise."""
    every = {"contexts": given / "contexts", "folder": tmp_path / "run", "steps": STEPS, "batch": 4, "seed": 3}
    every |= {"dtype": "float32", "sample_every": 0, "log_every": 1}
    scored, pairs = {"teacher": given / "teacher", "negative": NEGATIVE}, {"pairs": given / "pairs", "held_out": 0.0}
    short = dataclasses.replace(stage3_self_forcing.CONFIG.self_forcing, seconds=SECONDS)
    by_recipe = {
        stage1_dmd: ({**scored, "student": given / "teacher"}, {"seconds": SECONDS}),
        stage2_ode: ({**pairs, "student": given / "teacher", "layout": "prefix2"}, {"seconds": SECONDS, **HELD}),
        stage3_self_forcing: (
            {**scored, "student": given / "student", "layout": "prefix2"},
            {"self_forcing": short, **HELD},
        ),
        causal_dmd: (
            {**scored, **pairs, "student": given / "student", "layout": "prefix2"},
            {"seconds": SECONDS, **HELD},
        ),
    }

    def tell(recipe, mesh="1,1,1", **values):
        flags, own = by_recipe[recipe]
        return recipe.Arguments(
            **every, **flags, mesh=mesh, config=dataclasses.replace(recipe.CONFIG, **{**own, **values})
        )

    return tell


@pytest.fixture
def no_loading(monkeypatch):
    monkeypatch.setattr(ltx2_recipe, "load_network", lambda *_: pytest.fail("weights were loaded"))


@pytest.mark.parametrize("recipe", [stage2_ode, causal_dmd])
def test_a_masked_clip_of_a_network_with_text_adaln_needs_a_scalar_sigma(recipe, told, given, capsys, no_loading):
    arguments = told(recipe, scalar_sigma=None, cross_timestep=CrossTimestep.OWN)
    message = refusal(capsys, recipe, dataclasses.replace(arguments, student=given / "teacher"))
    assert "scalar_sigma=None: a masked clip has a noise level per block, but text AdaLN (LTX-2.3) needs one" in message
    arguments = told(recipe, scalar_sigma=None)
    message = refusal(capsys, recipe, dataclasses.replace(arguments, student=given / "teacher"))
    assert "cross_timestep='cross': a masked clip has a noise level per block" in message


def test_a_student_that_was_trained_at_another_scalar_sigma_is_refused(told, capsys, no_loading):
    message = refusal(capsys, stage3_self_forcing, told(stage3_self_forcing, scalar_sigma=0.5))
    assert "trained with other crossings: scalar_sigma=1.0, expected 0.5" in message


def test_a_scalar_sigma_that_drives_nothing_is_refused(told, capsys, no_loading):
    arguments = told(stage2_ode, cross_timestep=CrossTimestep.OWN)
    older = dataclasses.replace(arguments, student=tiny_stream.folders() / "teacher")
    assert "sampler.scalar_sigma=1.0: drives nothing" in refusal(capsys, stage2_ode, older)


class TrainedTwice:
    """In the place of `loop.train`: trains whole, then cut and resumed, with one compiled update."""

    train = staticmethod(loop.train)

    def __init__(self, resumes):
        self.resumes, self.moved = resumes, None

    def __call__(self, run, trainer, update, batches, *, describe, **_):
        begin, fresh = batches.get_state(), jax.tree.map(jnp.copy, trainer)
        whole = self.train(run, trainer, update, batches, describe=describe)
        if self.resumes:
            for steps in (CUT, STEPS):
                batches.set_state(begin)
                cut = dataclasses.replace(run, folder=run.folder.parent / "cut", steps=steps)
                again = self.train(cut, jax.tree.map(jnp.copy, fresh), update, batches, describe=describe)
            jax.tree.map(np.testing.assert_array_equal, weights_of(again), weights_of(whole))
        self.moved = jax.tree.map(lambda new, old: np.asarray(new - old), weights_of(whole), weights_of(fresh))
        return dataclasses.replace(whole, step=0)  # not at its end: nothing is written


def weights_of(trainer):
    return trainer.params if hasattr(trainer, "params") else (trainer.generator.params, trainer.critic.params)


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("recipe", "meshes"),
    [
        (stage1_dmd, ["1,1,1"]),
        (stage2_ode, ["1,1,1", "2,2,2"]),
        (stage3_self_forcing, ["1,1,1"]),
        (causal_dmd, ["1,1,1"]),
    ],
)
def test_every_stage_trains_20_steps_and_is_resumed_exactly(recipe, meshes, told, monkeypatch):
    """On a mesh too, where stage 2 goes through its recipe; test_mesh_equals_one_device has every stage on meshes."""
    made = {}
    for mesh in meshes:
        made[mesh] = TrainedTwice(resumes=mesh == "1,1,1")
        monkeypatch.setattr("omniforcing_jax.train.loop.train", made[mesh])
        arguments = told(recipe, mesh)
        arguments = dataclasses.replace(arguments, folder=arguments.folder / mesh)
        recipe.main(arguments)
        made[mesh].lines = [json.loads(line) for line in (arguments.folder / "metrics.jsonl").read_text().splitlines()]
    one, *others = made.values()
    assert all(line["step"] for line in one.lines)
    for other in others:
        losses = [name for name in one.lines[0] if name.rpartition("/")[2] in ("loss", "dmd")]
        assert losses
        for name in losses:
            mine, theirs = ([line.get(name) for line in each.lines] for each in (one, other))
            np.testing.assert_allclose(np.array(mine, float), np.array(theirs, float), rtol=1e-4)
        for a, b in zip(jax.tree.leaves(one.moved), jax.tree.leaves(other.moved), strict=True):
            assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(a)
