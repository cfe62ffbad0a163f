"""The recipes for LTX-2 at the tiny preset's size: a step of each, traced; what begins them; refusals in one line.

The long tests run each to its end, in a process of its own, as a person would.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stream
from refusal import recipe_refusal as refusal

from experiments import causal_dmd, ltx2_flags, ltx2_recipe, make_pairs, stage1_dmd, stage2_ode, stage3_self_forcing
from experiments.script import read_flags
from omniforcing_jax.config import CameraConfig, CrossTimestep
from omniforcing_jax.io import weights
from omniforcing_jax.layout import audio_latents, latent_frames
from omniforcing_jax.model import view
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline.presets import TINY_CLIP, TINY_STREAM
from omniforcing_jax.pipeline.weights_folder import read_pipeline_config
from omniforcing_jax.train import gradient
from omniforcing_jax.train.contexts import contexts_header
from omniforcing_jax.train.pairs import pairs_header
from omniforcing_jax.train.store import Row, Writer

NEGATIVE = "a blur"
PROMPTS = ("a red ball", "a blue ball")
FRAMES = latent_frames(121)


def write(folder, header, prompts):
    rng, writer = np.random.default_rng(0), Writer(folder, header)
    for index, prompt in enumerate(prompts):
        arrays = {name: rng.normal(size=shape) for name, (_, shape) in header.arrays.items()}
        arrays = {name: array.astype(jnp.dtype(header.arrays[name][0])) for name, array in arrays.items()}
        writer.put(index, Row(prompt, arrays))


def write_pairs(folder, sigmas=ltx2_flags.V2_SIGMAS, frames=FRAMES, rows=tiny_stream.GRID[0]):
    video = frames, rows, tiny_stream.GRID[1], TINY_CLIP.model.video.latent_channels
    audio = audio_latents(frames), TINY_CLIP.model.audio.latent_channels
    header = pairs_header(count=2, shards=1, sigmas=sigmas, video=video, audio=audio, teacher="abc")
    write(folder, header, PROMPTS)
    return folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Contexts and pairs that fit."""
    root, channels = tmp_path_factory.mktemp("stores"), TINY_CLIP.model.caption_channels
    header = contexts_header(count=3, shards=1, tokens=4, channels=(channels, channels), encoder="e")
    write(root / "contexts", header, (NEGATIVE, *PROMPTS))
    write_pairs(root / "pairs")
    return root


@pytest.fixture
def told(stores, tmp_path):
    """What each recipe is told, by its module; each can be told otherwise."""
    tiny = tiny_stream.folders()
    every = {"contexts": stores / "contexts", "folder": tmp_path / "run", "steps": 2, "batch": 2, "seed": 3}
    scored = {**every, "teacher": tiny / "teacher", "negative": NEGATIVE}
    by_recipe = {
        stage1_dmd: {**scored, "student": tiny / "teacher"},
        stage2_ode: {**every, "student": tiny / "teacher", "pairs": stores / "pairs", "layout": "prefix"},
        stage3_self_forcing: {**scored, "student": tiny / "student", "layout": "prefix"},
        causal_dmd: {**scored, "student": tiny / "student", "pairs": stores / "pairs", "layout": "prefix"},
    }
    return lambda recipe, **other: recipe.Arguments(**{**by_recipe[recipe], **other})


def flags_of(arguments, *names):
    """Write some of a recipe's flags as a command line has them."""
    return [text for name in names for text in (f"--{name}", str(getattr(arguments, name)))]


def run(recipe, arguments):
    """Run a recipe to its end as a process; returns the names in its metrics, and the config of its weights."""
    given = [f.name for f in dataclasses.fields(arguments) if getattr(arguments, f.name) != f.default]
    flags = flags_of(arguments, *given)
    root = Path(ltx2_recipe.__file__).parent.parent
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XDG_CACHE_HOME": str(arguments.folder.parent / "cache")}
    command = [sys.executable, "-m", recipe.__name__, *flags]
    done = subprocess.run(command, cwd=root, env={**os.environ, **quick}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (arguments.folder / "checkpoints" / str(arguments.steps) / "state").is_dir()
    lines = (arguments.folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1]).keys(), read_pipeline_config(arguments.folder / "weights")


def transformer(folder, config):
    return weights.load_component(folder, "transformer", spec.abstract(transformer_spec(config.model)))


@pytest.fixture
def no_loading(monkeypatch):
    """A bad request must not get as far as loading weights."""

    def load(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(ltx2_recipe, "load_network", load)


@pytest.mark.long
@pytest.mark.parametrize("recipe", [stage1_dmd, stage2_ode, stage3_self_forcing, causal_dmd])
def test_a_step_of_every_recipe_fits_its_batches_and_networks(recipe, told, monkeypatch):
    logged = set()

    def trace(run, trainer, update, batches, *, hooks=(), measures=(), describe):
        def once(networks):
            after, report = update(dataclasses.replace(trainer, **networks), next(batches))
            logged.update(report.metrics)
            return after

        names = [field.name for field in dataclasses.fields(trainer) if field.name != "step"]
        after = jax.eval_shape(once, {name: getattr(trainer, name) for name in names})
        jax.tree.map(lambda old, new: np.testing.assert_equal(new.shape, old.shape), trainer, after)
        return trainer

    monkeypatch.setattr("omniforcing_jax.train.loop.train", trace)
    arguments = told(recipe)
    recipe.main(arguments)
    assert {name.rpartition("grad_norm/")[2] for name in logged} >= {"layers/a2v", "layers/video/self_attn"}
    assert not (arguments.folder / "weights").exists()  # none of its steps was made


def test_new_sinks_are_small_and_kept_ones_are_kept():
    tiny = tiny_stream.folders()
    many = dataclasses.replace(TINY_CLIP.model, sinks=16)
    new = ltx2_recipe.load_network(tiny / "teacher", many, jnp.float32, 7)
    assert new.sinks.shape == (1, 16, TINY_CLIP.model.audio.width)
    # 512 draws of deviation 0.02: outside these bounds once in ten thousand seeds, and the seed is fixed.
    assert 0.0175 < float(jnp.std(new.sinks)) < 0.0225
    kept = ltx2_recipe.load_network(tiny / "student", TINY_STREAM.model, jnp.bfloat16)
    np.testing.assert_array_equal(kept.sinks, tiny_stream.student().transformer.sinks.astype(jnp.bfloat16))
    sampler = TINY_STREAM.sampler
    assert ltx2_recipe.open_student(tiny / "teacher", sampler, 16).model.sinks == 16
    assert ltx2_recipe.open_student(tiny / "student", sampler, 16).model.sinks == 2


@pytest.fixture
def cross_teacher(tmp_path):
    """The tiny teacher as LTX-2's files have it: crossings take the other stream's noise level."""
    teacher, folder = tiny_stream.folders() / "teacher", tmp_path / "cross"
    shutil.copytree(teacher, folder)
    shared = {name: str(teacher / place) for name, place in weights.read_config(teacher)["components"].items()}
    weights.write_config(folder, {**weights.read_config(teacher), "components": shared})
    model = dataclasses.replace(TINY_CLIP.model, cross_timestep=CrossTimestep.CROSS)
    (folder / "transformer" / "config.json").write_text(model.to_json())
    (folder / "manifest.json").unlink()  # it knows the config as it was
    return folder


@pytest.mark.parametrize(
    ("recipe", "crossings"),
    [(stage1_dmd, "cross"), (stage3_self_forcing, "own"), (causal_dmd, "own")],
)
def test_a_generator_has_its_own_crossings_and_its_teacher_and_critic_keep_theirs(
    recipe, crossings, told, cross_teacher, monkeypatch
):
    caught = {}

    def keep(arguments, opened, source, method, *others):
        caught.update(opened=opened, method=method, config=ltx2_recipe.describe(arguments, opened.student))

    monkeypatch.setattr(ltx2_recipe, "distil", keep)
    recipe.main(told(recipe, student=cross_teacher, teacher=cross_teacher))
    opened, method = caught["opened"], caught["method"]
    generator = method.plan.static.model if recipe is stage3_self_forcing else method.model
    assert (generator.cross_timestep, method.scorer.cross_timestep) == (crossings, "cross")
    assert (opened.student.model.cross_timestep, opened.teacher.cross_timestep) == (crossings, "cross")
    assert caught["config"]["student"]["model"]["cross_timestep"] == crossings


def test_stage_2_of_a_teacher_as_published_writes_the_students_own_crossings(told, cross_teacher, monkeypatch):
    losses, of_loss = [], gradient.of_loss

    def keep(loss):
        losses.append(loss)
        return of_loss(loss)

    def train(run, trainer, update, batches, *, describe, **others):
        assert describe["student"]["model"]["cross_timestep"] == "own"
        jax.eval_shape(losses[0], trainer.params, next(batches), jax.random.key(0))  # levels per block, not refused
        return dataclasses.replace(trainer, step=run.steps)

    monkeypatch.setattr(gradient, "of_loss", keep)
    monkeypatch.setattr("omniforcing_jax.train.loop.train", train)
    arguments = told(stage2_ode, student=cross_teacher)
    stage2_ode.main(arguments)
    found = read_pipeline_config(arguments.folder / "weights").model
    assert found == dataclasses.replace(TINY_CLIP.model, sinks=16, cross_timestep=CrossTimestep.OWN)


def test_the_students_crossings_begin_as_the_teachers_function(cross_teacher):
    """Where both streams have one level, as the teacher's clips do, all crossings are one: what is lost is nothing."""
    student = ltx2_recipe.open_student(cross_teacher, TINY_STREAM.sampler, 0).model
    teacher = read_pipeline_config(cross_teacher).model
    places = make_positions(teacher, clip_block(1, 1), tiny_stream.GRID)
    views = [
        view.bidirectional(model, rotaries(model, places), view.one_sigma(jnp.array([0.3])))
        for model in (student, teacher)
    ]
    jax.tree.map(np.testing.assert_array_equal, views[0].times, views[1].times)


@pytest.mark.parametrize("recipe", [stage2_ode, causal_dmd])
def test_a_masked_clip_refuses_crossings_that_need_one_level(recipe, told, cross_teacher, capsys, no_loading):
    config = dataclasses.replace(recipe.CONFIG, cross_timestep=CrossTimestep.CROSS)
    message = refusal(capsys, recipe, told(recipe, student=cross_teacher, config=config))
    assert "cross_timestep='cross': a masked clip has a noise level per block" in message


def test_a_student_that_was_trained_with_other_crossings_is_refused(told, capsys, no_loading):
    config = dataclasses.replace(stage3_self_forcing.CONFIG, cross_timestep=CrossTimestep.CROSS)
    message = refusal(capsys, stage3_self_forcing, told(stage3_self_forcing, config=config))
    assert "trained with other crossings: cross_timestep=own, expected cross" in message


def test_the_negative_prompt_is_no_example(stores):
    contexts = ltx2_recipe.open_contexts(stores / "contexts", TINY_CLIP.model)
    prompts = ltx2_recipe.Prompts(contexts, NEGATIVE)
    assert len(prompts) == 2
    for index in range(2):
        np.testing.assert_array_equal(prompts[index]["context_video"], contexts[index + 1]["context_video"])


@pytest.mark.parametrize("recipe", [stage2_ode, causal_dmd])
def test_pairs_that_do_not_fit_are_refused(recipe, told, capsys, tmp_path, no_loading):
    other = write_pairs(tmp_path / "levels", sigmas=(1.0, 0.5, 0.0))
    assert "entries at sigmas [1.0, 0.5, 0.0], expected [1.0, 0.9" in refusal(capsys, recipe, told(recipe, pairs=other))
    other = write_pairs(tmp_path / "short", frames=13)
    assert "short: other latents: frames=13, expected 16" in refusal(capsys, recipe, told(recipe, pairs=other))
    other = write_pairs(tmp_path / "high", rows=4)
    assert "high: other latents: rows=4, expected 2" in refusal(capsys, recipe, told(recipe, pairs=other))


@pytest.mark.parametrize("recipe", [stage1_dmd, stage3_self_forcing, causal_dmd])
def test_a_missing_negative_prompt_and_another_teacher_are_refused(recipe, told, capsys, tmp_path, no_loading):
    assert "no context of 'a cube'" in refusal(capsys, recipe, told(recipe, negative="a cube"))
    audio = dataclasses.replace(TINY_CLIP.model.audio, head_size=16)
    wide = dataclasses.replace(TINY_CLIP, model=dataclasses.replace(TINY_CLIP.model, audio=audio))
    weights.save_component(tmp_path / "wide", "transformer", {}, wide.model.to_dict())
    shared = {name: str(tiny_stream.folders() / "student" / name) for name in ("video_vae", "audio_vae", "vocoder")}
    weights.write_config(tmp_path / "wide", {"format": 1, "resolution": [64, 96], "components": shared})
    message = refusal(capsys, recipe, told(recipe, teacher=tmp_path / "wide"))
    assert "wide: another network than the student: audio.head_size=16, expected 8" in message
    message = refusal(capsys, recipe, told(recipe, teacher=tiny_stream.folders() / "student"))
    assert "holds a causal student" in message


def test_a_student_of_other_blocks_or_none_at_all_is_refused(told, capsys, no_loading):
    message = refusal(capsys, stage3_self_forcing, told(stage3_self_forcing, layout="fused"))
    assert "see --layout: first_v=1, expected 4; first_a=1, expected 26" in message
    message = refusal(capsys, stage1_dmd, told(stage1_dmd, student=tiny_stream.folders() / "student"))
    assert "holds a causal student, expected a bidirectional network" in message


@pytest.mark.parametrize("recipe", [stage2_ode, stage3_self_forcing, causal_dmd])
def test_a_network_with_camera_attention_is_refused(recipe, told, capsys, no_loading, monkeypatch):
    config = read_pipeline_config(tiny_stream.folders() / "student")
    seeing = dataclasses.replace(
        config, model=dataclasses.replace(config.model, camera=CameraConfig(heads=2, head_size=16))
    )
    monkeypatch.setattr(ltx2_recipe, "read_pipeline_config", lambda folder: seeing)
    assert "has camera attention" in refusal(capsys, recipe, told(recipe))


def test_numbers_that_make_no_sense_are_refused(told, capsys, no_loading):
    assert "batch=0" in refusal(capsys, stage3_self_forcing, told(stage3_self_forcing, batch=0))
    assert "batch=3: the source holds 2" in refusal(capsys, stage3_self_forcing, told(stage3_self_forcing, batch=3))


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--steps", "0", "error: steps=0: must be at least 1"),
        ("--sample-every", "-1", "error: sample_every=-1: must not be negative"),
        ("--held-out", "1", "error: held_out=1.0: must be a share of the examples, in [0, 1)"),
        ("--save-minutes", "0", "error: save_minutes=0.0: must be positive; None is no bound"),
        ("--optimiser.warmup", "1", "config.optimiser: warmup=1: must be at least 0 and below steps=1"),
        ("--optimiser.rate", "1", "--optimiser.rate"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(flag, value, said, told, capsys, monkeypatch):
    arguments = told(stage2_ode)
    given = flags_of(arguments, "student", "contexts", "pairs", "folder", "steps")
    monkeypatch.setattr(sys, "argv", ["stage2_ode", *given, flag, value])
    with pytest.raises(SystemExit) as caught:
        read_flags(stage2_ode.Arguments, stage2_ode.__doc__)
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert said in message


RECIPES = [stage1_dmd, stage2_ode, stage3_self_forcing, causal_dmd, make_pairs]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_value_of_a_recipe_is_a_flag_that_its_help_explains(recipe, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [recipe.__name__, "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        read_flags(recipe.Arguments, recipe.__doc__)
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    metavar = r"(?:, --[\w.-]+| \{[^}]*\}(?:\|[A-Z]+)?| [A-Z]+| \[[A-Z]+ \[[A-Z]+ \.\.\.\]\])?"
    assert not re.findall(rf"--[\w.-]+{metavar} \((?:default|required)", text)  # a flag without a word about it
    flags = re.findall(r"--[\w.-]+", text)
    wanted = ["--dtype", "--batch", "--mesh"]
    if recipe is not make_pairs:
        wanted += ["--log-every", "--save-every", "--save-minutes", "--keep", "--minutes", "--tensorboard"]
        wanted += ["--ema-decay", "--sample-every", "--accept-changes"]
        network = "optimiser" if recipe is stage2_ode else "generator"
        wanted += [f"--{network}.{name}" for name in ("learning-rate", "last-rate", "warmup", "b1", "clip")]
    assert set(wanted) <= set(flags)


@pytest.mark.long
def test_stage_3_leaves_a_student_that_streams_what_it_was_trained_as(told):
    arguments = told(stage3_self_forcing)
    logged, config = run(stage3_self_forcing, arguments)
    assert {"generator/dmd_video", "critic/audio", "critic/grad_norm/layers/a2v"} <= logged
    assert config.model == TINY_STREAM.model
    assert config.sampler.sigmas == ltx2_flags.V2_SIGMAS
    assert (config.sampler.horizon_seconds, config.words) == (5, TINY_STREAM.words)
    before, after = (transformer(folder, config) for folder in (arguments.student, arguments.folder / "weights"))
    # One update of at most about 2e-5, then bfloat16: the student it was, not the critic.
    jax.tree.map(lambda old, new: np.testing.assert_allclose(new, old, rtol=2**-8, atol=5e-5), before, after)


@pytest.mark.long
def test_stage_1_leaves_a_bidirectional_network(told):
    logged, config = run(stage1_dmd, told(stage1_dmd))
    assert {"generator/dmd_video", "critic/audio"} <= logged
    assert config.model == TINY_CLIP.model
    assert config.sampler is None


@pytest.mark.long
def test_stage_2_gives_a_bidirectional_network_sinks_and_makes_it_a_student(told):
    logged, config = run(stage2_ode, told(stage2_ode))
    assert {"video", "audio", "grad_norm/sinks"} <= logged
    assert config.model == dataclasses.replace(TINY_CLIP.model, sinks=16)
    assert config.sampler.layout == TINY_STREAM.sampler.layout


@pytest.mark.long
def test_causal_dmd_leaves_a_student_trained_on_clips_of_the_store(told):
    logged, config = run(causal_dmd, told(causal_dmd))
    assert {"generator/dmd_video", "critic/audio"} <= logged
    assert config.model == TINY_STREAM.model
