import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_states import layer_states

from omniforcing_jax.config import CrossTimestep, RotaryConfig
from omniforcing_jax.layout import PREFIX, Block
from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import keep_projections, predict, text_kv, transformer_spec
from omniforcing_jax.model.view import Sigmas, bidirectional, masked, one_sigma, streaming
from omniforcing_jax.nn.attention import Sites
from omniforcing_jax.nn.mask import PastMask
from omniforcing_jax.parallel.spec import abstract, count, path_name
from omniforcing_jax.pipeline.presets import LTX2_19B
from omniforcing_jax.streams import Streams
from tests.tiny import BATCH, GRID, MODERN, SINKS, TINY, TOKENS, random_latents, random_params, random_text

FRAMES, AUDIO = 4, 26
SIGMA = jnp.array([0.3, 0.8])


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(config, dtype, params, latents, text, perturbation, sigma):
    view = bidirectional(
        config, rotaries(config, make_positions(config, clip_block(FRAMES, AUDIO), GRID)), one_sigma(sigma)
    )
    return predict(params, config, latents, view, text, perturbation=perturbation, dtype=dtype).velocity


@functools.cache
def material(config):
    params = random_params(config)
    text = random_text(config, params, sigma=SIGMA if config.text_adaln else None)
    return params, random_latents(config, FRAMES, AUDIO), text


def out(config=TINY, perturbation=None, dtype=jnp.float32, params=None):
    own, latents, text = material(config)
    return run(config, dtype, params or own, latents, text, perturbation or Perturbation(), SIGMA)


def everything(**changes):
    """A Perturbation with every array present, so that all perturbations run in one compiled program."""
    names = [field.name for field in dataclasses.fields(Perturbation)]
    return Perturbation(**({name: jnp.ones((TINY.layers, BATCH)) for name in names} | changes))


def but(part):
    """Everything but one part of layer 1 for sample 1."""
    return everything(**{part: jnp.ones((TINY.layers, BATCH)).at[1, 1].set(0)})


def test_the_full_size_network_has_the_published_number_of_parameters():
    assert count(transformer_spec(LTX2_19B)) == 18_876_174_592


def test_the_next_generation_has_its_published_number_of_parameters():
    modern = dataclasses.replace(LTX2_19B, caption_channels=None, gated_attention=True, text_adaln=True)
    assert count(transformer_spec(modern)) == 18_988_838_144


def test_the_full_size_network_traces_in_half_precision():
    config = dataclasses.replace(LTX2_19B, sinks=4)
    params = abstract(transformer_spec(config), jnp.bfloat16)
    block, grid = PREFIX.block(1), (16, 24)

    def forward(params, video, audio, context):
        text = text_kv(params, context, context, dtype=jnp.bfloat16)
        view = bidirectional(config, rotaries(config, make_positions(config, block, grid)), one_sigma(jnp.ones(1)))
        return predict(params, config, Streams(video, audio), view, text, dtype=jnp.bfloat16)

    shapes = [(1, 3 * 384, 128), (1, 25, 128), (1, 1024, 3840)]
    made = jax.eval_shape(forward, params, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    video, audio = made.velocity
    assert (video.shape, video.dtype) == ((1, 1152, 128), jnp.float32)
    assert (audio.shape, audio.dtype) == ((1, 25, 128), jnp.float32)
    assert (made.fresh.video_self.k.shape, made.fresh.video_self.k.dtype) == ((48, 1, 1152, 32, 128), jnp.bfloat16)
    assert made.fresh.a2v.k.shape == (48, 1, 29, 32, 64)
    assert made.fresh.v2a.k.shape == (48, 1, 1152, 32, 64)


def test_leaves_are_named_as_they_rest_on_disk():
    leaves = jax.tree_util.tree_flatten_with_path(transformer_spec(SINKS))[0]
    names = {path_name(path): leaf.shape for path, leaf in leaves}
    assert names["layers/video/self_attn/q/w"] == (2, 64, 64)
    assert names["layers/a2v/k/w"] == (2, 32, 32)
    assert names["layers/cross_table_audio"] == (2, 5, 32)
    assert names["video/time/rows/b"] == (6 * 64,)
    assert names["video/cross_gate_time/rows/b"] == (64,)
    assert names["audio/caption/up/w"] == (32, 24)
    assert names["sinks"] == (1, 3, 32)


def test_absent_parts_have_no_leaves():
    names = {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(transformer_spec(TINY))[0]}
    assert not {n for n in names if "gate/" in n or "prompt" in n or "text_table" in n or n == "sinks"}


def test_half_precision_is_close_and_answers_in_float32():
    exact, rough = out(), out(dtype=jnp.bfloat16)
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == jnp.float32
        assert np.abs(a - b).max() < 0.25
        assert np.corrcoef(np.ravel(a), np.ravel(b))[0, 1] > 0.999


def test_weights_may_rest_in_half_precision():
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), material(TINY)[0])
    exact, rounded = out(perturbation=everything()), out(perturbation=everything(), params=halved)
    assert np.corrcoef(np.ravel(exact[0]), np.ravel(rounded[0]))[0, 1] > 0.999


@pytest.mark.parametrize("part", ["video_self", "audio_self", "video_mix", "audio_mix", "a2v", "v2a"])
def test_a_perturbation_touches_its_sample_only(part):
    plain, perturbed = out(perturbation=everything()), out(perturbation=but(part))
    for a, b in zip(plain, perturbed, strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    assert max(np.abs(a[1] - b[1]).max() for a, b in zip(plain, perturbed, strict=True)) > 1e-2


def test_keeping_everything_is_keeping_by_default():
    for a, b in zip(out(), out(perturbation=everything()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_isolated_streams_do_not_hear_each_other():
    none = jnp.zeros((TINY.layers, BATCH))
    params, (video, audio), text = material(TINY)
    perturbation = everything(a2v=none, v2a=none)
    a, b = (
        run(TINY, jnp.float32, params, Streams(video, other), text, perturbation, SIGMA)[0]
        for other in (audio, audio + 1)
    )
    np.testing.assert_array_equal(a, b)


def test_masked_text_is_not_read():
    params, latents, _ = material(TINY)
    rng = np.random.default_rng(0)
    context = jnp.asarray(rng.normal(size=(BATCH, 5, 24)), jnp.float32)
    mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    changed = context.at[:, :2].add(3.0)
    make = jax.jit(text_kv)
    a, b = (
        run(TINY, jnp.float32, params, latents, make(params, c, c, mask), Perturbation(), SIGMA)
        for c in (context, changed)
    )
    np.testing.assert_array_equal(a[0][0], b[0][0])
    assert np.abs(a[0][1] - b[0][1]).max() > 1e-2


def test_text_keys_that_depend_on_sigma_ask_for_it():
    params = random_params(MODERN)
    context = jnp.ones((1, 2, MODERN.video.width)), jnp.ones((1, 2, MODERN.audio.width))
    with pytest.raises(ValueError, match="sigma=None"):
        text_kv(params, *context)


def test_the_next_generation_runs_and_its_text_follows_sigma():
    params, latents, text = material(MODERN)
    other = random_text(MODERN, params, sigma=SIGMA * 0.5)
    a, b = (run(MODERN, jnp.float32, params, latents, t, Perturbation(), SIGMA) for t in (text, other))
    assert np.isfinite(np.asarray(a[0])).all()
    assert np.abs(a[0] - b[0]).max() > 1e-3


def test_states_are_of_every_layer_with_sinks():
    params, latents, text = material(SINKS)

    @jax.jit
    def states(params):
        view = bidirectional(
            SINKS, rotaries(SINKS, make_positions(SINKS, clip_block(FRAMES, AUDIO), GRID)), one_sigma(SIGMA)
        )
        return layer_states(params, SINKS, latents, view, text)

    video, audio = states(params)
    assert video.shape == (2, BATCH, FRAMES * TOKENS, 64)
    assert audio.shape == (2, BATCH, 3 + AUDIO, 32)


@functools.cache
def gradients(remat):
    """Gradients of all weights, text projections included, in the masked regime."""
    params, latents, _ = material(SINKS)
    context = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 5, 24)), jnp.float32)

    def loss(params):
        text = text_kv(params, context, context)
        rot = rotaries(SINKS, make_positions(SINKS, clip_block(FRAMES, AUDIO), GRID))
        view = masked(SINKS, rot, one_sigma(SIGMA), PREFIX.blocks(FRAMES))
        velocity = predict(params, SINKS, latents, view, text, remat=remat).velocity
        return jnp.sum(velocity.video**2) + jnp.sum(velocity.audio**2)

    return jax.jit(jax.grad(loss))(params)


def test_recomputing_layers_changes_no_gradient():
    for a, b in zip(jax.tree.leaves(gradients(None)), jax.tree.leaves(gradients(keep_projections)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


def test_every_weight_gets_a_gradient():
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradients(None))[0]:
        assert np.abs(leaf).max() > 0, path_name(path)


@pytest.mark.parametrize("semantics", [CrossTimestep.CROSS, CrossTimestep.HYBRID])
def test_levels_of_the_other_stream_must_be_one_per_sample(semantics):
    config = dataclasses.replace(TINY, cross_timestep=semantics)
    rot = rotaries(config, make_positions(config, clip_block(FRAMES, AUDIO), GRID))
    per_frame = Sigmas(video=jnp.ones((1, FRAMES)), audio=jnp.ones((1, AUDIO)))
    with pytest.raises(ValueError, match="scalar sigma=None"):
        bidirectional(config, rot, per_frame)
    bidirectional(config, rot, dataclasses.replace(per_frame, scalar_video=jnp.ones(1), scalar_audio=jnp.ones(1)))


def test_levels_that_do_not_divide_the_tokens_are_refused():
    rot = rotaries(TINY, make_positions(TINY, clip_block(FRAMES, AUDIO), GRID))
    with pytest.raises(ValueError, match="video sigmas: 5 levels for 24 tokens"):
        bidirectional(TINY, rot, Sigmas(video=jnp.ones((1, 5)), audio=jnp.ones((1, 1))))


def test_a_block_table_that_does_not_fit_the_rotations_is_refused():
    rot = rotaries(TINY, make_positions(TINY, clip_block(FRAMES, AUDIO), GRID))
    with pytest.raises(ValueError, match="blocks end at 4 and 25"):
        masked(TINY, rot, one_sigma(SIGMA), (Block(0, 1, 0, 1), Block(1, 4, 1, 25)))


def test_a_stream_carries_its_sinks_in_block_0_only():
    rot = rotaries(SINKS, make_positions(SINKS, PREFIX.block(1), GRID))
    assert streaming(SINKS, rot, one_sigma(SIGMA), None).sinks == 3
    assert streaming(SINKS, rot, one_sigma(SIGMA), Sites.of_keys(PastMask(), PastMask())).sinks == 0


def test_rotation_of_another_range_is_another_function():
    wide = dataclasses.replace(TINY, rotary=RotaryConfig(max_seconds=10.0))
    params, latents, text = material(TINY)
    a, b = (run(c, jnp.float32, params, latents, text, Perturbation(), SIGMA) for c in (TINY, wide))
    assert np.abs(a[0] - b[0]).max() > 1e-3
