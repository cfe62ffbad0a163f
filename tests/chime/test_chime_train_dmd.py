"""Chime's trainings with a critic: the gradients are those of the networks that are trained, on the right clips."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.chime import train_causal_dmd, train_self_forcing
from experiments.chime.world import latents, recipe, train_dmd
from omniforcing_jax.distill.generator_critic import Frozen, clips_of, contexts_of
from omniforcing_jax.guidance import StreamGuidance
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets
from omniforcing_jax.text import words

BATCH = 2
EMPTY = words.tokenise(recipe.WORDS_CONFIG, "")[0][None]
CLIPS = {
    "video": jax.ShapeDtypeStruct((BATCH, 1, 16 * (1 + 3 * recipe.SECONDS), 32), jnp.float16),
    "audio": jax.ShapeDtypeStruct((BATCH, 1, 1 + 25 * recipe.SECONDS, 64), jnp.float16),
}


@pytest.mark.parametrize("method", [train_self_forcing, train_causal_dmd], ids=["self_forcing", "causal_dmd"])
def test_both_networks_are_differentiated_by_their_own_parameters(method):
    found = method.make_method(method.CONFIG)
    student, teacher = (spec.abstract(transformer_spec(model)) for model in (presets.CHIME, presets.CHIME_TEACHER))
    features = train_dmd.with_contexts(np.stack([latents.prompt_ids(seed) for seed in range(BATCH)]))
    batch = {**features, **(CLIPS if method is train_causal_dmd else {})}
    key, frozen = (
        jax.eval_shape(lambda: jax.random.key(0)),
        Frozen(teacher, contexts_of(train_dmd.with_contexts(EMPTY))),
    )
    _, _, grads = jax.eval_shape(found.generator, student, batch, key, teacher, frozen)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, student)
    _, _, grads = jax.eval_shape(found.critic, teacher, batch, key, student, frozen)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, teacher)
    assert len(found.blocks) == 1 + recipe.SECONDS


def test_a_prompt_has_the_features_that_its_words_have():
    ids = latents.prompt_ids(3)[None]
    expected = words.contexts(recipe.word_vectors(), jnp.asarray(ids))
    for found, value in zip(contexts_of(train_dmd.with_contexts(ids)), expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_clips_are_as_long_as_what_the_teacher_was_trained_on():
    rng = np.random.default_rng(0)
    shapes = {"video": (BATCH, 2 + 3 * recipe.SECONDS, 4, 4, 32), "audio": (BATCH, 26 + 25 * recipe.SECONDS, 64)}
    rows = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    clips = clips_of(train_causal_dmd.clips({"ids": np.zeros((BATCH, 16), int), **rows}))
    assert clips.video.shape[1:] == (16 * (1 + 3 * recipe.SECONDS), 32)
    assert clips.audio.shape[1:] == (1 + 25 * recipe.SECONDS, 64)
    np.testing.assert_array_equal(clips.video[1, 16:32], rows["video"][1, 1].reshape(16, 32).astype(np.float32))


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint of a training"):
        train_dmd.trained(tmp_path / "nothing")


def test_flags_say_how_long_a_run_is_and_what_its_teacher_is_pushed_by(tmp_path):
    config = train_self_forcing.CONFIG
    assert train_self_forcing.Arguments(folder=tmp_path).configure(config) == config
    told = {"steps": 100, "guidance": ("3", "video.modality=2"), "guidance_from": 0.5, "seed": 7}
    config = train_causal_dmd.Arguments(folder=tmp_path, **told).configure(train_causal_dmd.CONFIG)
    assert (config.steps, config.critic.steps, config.generator.steps, config.seed) == (100, 100, 50, 7)
    assert config.dmd.guidance.video == StreamGuidance(cfg=3.0, modality=2.0)
    assert config.dmd.guidance.audio == StreamGuidance(cfg=3.0)
    assert config.dmd.guidance_from == 0.5


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"steps": 1}, "--steps 1: must be at least 2, which update the generator once"),
        ({"prompts": 7}, "--prompts 7: must be at least the batch of 8"),
        ({"guidance": ("much",)}, "guidance: cannot read 'video.cfg=much'"),
        ({"guidance_from": 2.0}, "guidance_from"),
    ],
)
def test_what_is_no_run_is_one_line(flags, complaint, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train_self_forcing.main(train_self_forcing.Arguments(folder=tmp_path / "run", **flags))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("through_cache", [False, True])
def test_a_run_may_train_what_blocks_leave_in_the_cache(through_cache, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train_dmd, "train", lambda *arguments: asked.append(arguments))
    train_self_forcing.main(train_self_forcing.Arguments(folder=tmp_path, prompts=8, cache_gradient=through_cache))
    ((config, _, method, rows),) = asked
    assert (config.cache_gradient, method.cache_gradient) == (through_cache, through_cache)
    np.testing.assert_array_equal(rows["ids"], latents.prompts(8))


def test_prompts_are_those_of_the_clips_that_are_encoded(tmp_path):
    blank = SimpleNamespace(encode_video=lambda x: np.zeros(len(x)), encode_sound=lambda x: np.zeros(len(x)))
    latents.write(tmp_path / "clips.safetensors", blank, count=16, seconds=1)
    written = latents.read(tmp_path / "clips.safetensors")["ids"]
    np.testing.assert_array_equal(latents.prompts(16), written)
    assert len(np.unique(written, axis=0)) > 8


def test_four_levels_are_the_reference_s():
    four = train_self_forcing.FOUR
    assert len(four.sampler.sigmas) == 5
    assert dataclasses.replace(four, sampler=train_dmd.Config().sampler) == train_self_forcing.Config()
