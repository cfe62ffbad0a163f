"""The cache in eight bits: near the wide one at every block, saved and recomputed like it, smaller, and refused."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusal import refusal
from tiny_stream import PROMPT, STATIC, folders, listed

from omniforcing_jax.config import EightBitKind, SamplerConfig
from omniforcing_jax.distill.generator_critic import SelfForcingConfig, self_forcing_of
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.layout import FUSED, PREFIX
from omniforcing_jax.model.cache import commit, empty_cache, keep
from omniforcing_jax.model.eight_bits import EightBitCache
from omniforcing_jax.model.layer_list import is_list
from omniforcing_jax.nn.attention import KV, Sites, readable
from omniforcing_jax.parallel.mesh import MeshConfig
from omniforcing_jax.pipeline.budget import count_bytes
from omniforcing_jax.pipeline.presets import LTX2_19B_STREAM
from omniforcing_jax.rollout import StaticConfig, make_cache
from omniforcing_jax.serve.messages import StreamRequestBody
from omniforcing_jax.serve.network import NetworkStudio
from omniforcing_jax.stream.on_card import stream_parts
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import save
from omniforcing_jax.stream.start import open_stream
from tests.properties.clips import Clip, horizon, run_stream
from tests.tiny import GRID, SINKS, TOKENS

INT8, FLOAT8 = EightBitCache(EightBitKind.INT8), EightBitCache(EightBitKind.FLOAT8)
BOUND = {INT8: 1e-3, FLOAT8: 5e-3}
"""Largest difference of a block from the wide cache's: root of the mean square, of its standard deviation."""


def fresh_of(layout, k):
    """Random keys and values of block k; sinks lead the audio of block 0."""
    rng, block, config = np.random.default_rng(k), layout.block(k), SINKS
    audio, video = block.audio_frames + (0 if k else config.sinks), block.video_frames * TOKENS

    def kv(tokens, stream):
        shape = (config.layers, 1, tokens, stream.heads, stream.head_size)
        return KV(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in "kv"))

    return Sites(kv(video, config.video), kv(audio, config.audio), kv(audio, config.audio), kv(video, config.audio))


def by_layer(fresh):
    return tuple(jax.tree.map(lambda x, i=i: x[i], fresh) for i in range(SINKS.layers))


def sites(cache):
    """The past of each site in float32, stacked over the layers."""
    past = jax.tree.map(lambda *x: jnp.stack(x), *cache.past) if is_list(cache.past) else cache.past
    return {name: readable(getattr(past, name), jnp.float32) for name in ("video_self", "audio_self", "a2v", "v2a")}


def compare(narrow, wide, *, is_pinned_narrow):
    """What is in eight bits is within a step of the wide cache, and all else is equal."""
    found, expected = sites(narrow), sites(wide)
    for name, past in expected.items():
        for part in ("ring", "pinned"):
            share = 1 / 250 if name in INT8.sites and (part == "ring" or is_pinned_narrow) else 0
            for one, other in zip(*(jax.tree.leaves(getattr(x, part)) for x in (found[name], past)), strict=True):
                np.testing.assert_allclose(one, other, atol=np.abs(other).max() * share, rtol=0)


@pytest.mark.parametrize(
    ("pinned", "has_list", "is_narrow"),
    [(0, False, False), (1, True, False), (2, False, True), (3, True, False), (3, True, True)],
)
def test_every_commit_is_near_that_to_a_wide_cache_whatever_is_pinned(pinned, has_list, is_narrow):
    layout = PREFIX if pinned else FUSED  # whose block 0 is longer than the others, and here in the ring
    how = SamplerConfig(sigmas=(1.0, 0.0), horizon_seconds=9, layout=layout, window=3, pinned=pinned)
    wide = empty_cache(SINKS, how, GRID, 1)
    eight_bits = INT8._replace(pinned=is_narrow)
    narrow = empty_cache(SINKS, how, GRID, 1, has_list=has_list, eight_bits=eight_bits)
    run = jax.jit(commit)
    for k in range(7):  # the ring goes round twice
        fresh = fresh_of(layout, k)
        listed = by_layer(fresh) if has_list else fresh
        assert keep(narrow, listed) is narrow  # a denoise step writes nothing
        wide, narrow = run(wide, fresh), run(narrow, listed)
        compare(narrow, wide, is_pinned_narrow=is_narrow)


def test_a_ring_in_eight_bits_has_a_byte_for_each_value_and_its_scales():
    preset = LTX2_19B_STREAM
    static = StaticConfig(preset.model, preset.sampler, preset.grid(*preset.resolution), jnp.dtype(jnp.bfloat16))
    wide, narrow = (
        jax.eval_shape(partial(make_cache, each, 1, True)) for each in (static, static._replace(cache=INT8))
    )
    past, step = preset.sampler.past_blocks, narrow.video.step
    assert (narrow.video.ring, wide.video.ring) == (past, past + 1)  # and no place for the block at hand
    for name, size in (("video_self", 128), ("v2a", 64)):
        own, other = (count_bytes(getattr(each.past[0], name).ring) for each in (narrow, wide))
        assert own == past * 32 * (2 * step * size + 4 * step + 4 * size)
        assert own / other < 0.54 * past / (past + 1)
    assert count_bytes(narrow) < 0.45 * count_bytes(wide)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["stream", "--prompt", PROMPT, "--seconds", "1", "--out", "a.mp4", "--cache-dtype", "int4"], "'int4'"),
        (["plan", "--device", "all", "--cache-dtype", "int8"], "device='all': not with --weights-dtype, --cache-dtype"),
        (["serve", "--cache-dtype", "float16"], "'float16'"),
    ],
)
def test_the_command_refuses_a_type_that_no_cache_has(capsys, flags, named):
    assert named in refusal(capsys, flags)


def test_a_request_refuses_a_type_that_no_cache_has():
    with pytest.raises(ValueError, match=r"cache_dtype='bfloat16': must be one of \['int8', 'float8'\]"):
        StreamRequest(prompt=PROMPT, cache_dtype="bfloat16")


def test_every_stream_of_a_server_has_the_cache_that_it_was_started_with():
    studio = NetworkStudio(str(folders() / "student"), "float32", Startup("serve"), MeshConfig(), "int8")
    assert studio._plan(StreamRequestBody(prompt=PROMPT), None).static.cache == INT8


def test_a_training_refuses_a_cache_in_eight_bits():
    with pytest.raises(ValueError, match=r"cache=.*must be None in a training"):
        self_forcing_of(STATIC._replace(cache=INT8), STATIC.model, SelfForcingConfig(seconds=3))


@pytest.mark.long
@pytest.mark.parametrize("kind", BOUND, ids=["int8", "float8"])
def test_every_block_of_a_clip_is_near_that_with_a_wide_cache_after_the_ring_wraps_too(kind):
    clip = Clip(SINKS)
    how = horizon(clip, window=2, pinned=2)
    wide, narrow = (run_stream(clip, how, has_list=True, eight_bits=each) for each in (None, kind))
    for k, block in enumerate(clip.blocks):
        video = np.s_[:, block.video_start * TOKENS : block.video_end * TOKENS]
        audio = np.s_[:, block.audio_start : block.audio_end]
        for one, other in ((narrow.video[video], wide.video[video]), (narrow.audio[audio], wide.audio[audio])):
            error = np.sqrt(np.mean(np.square(one - other))) / np.std(other)
            assert (error > 0) == (k > 0), k  # block 0 reads no cache
            assert error < BOUND[kind]


@pytest.mark.long
def test_a_stream_goes_on_bit_for_bit_where_it_was_cut_and_forks_and_recomputes(tmp_path):
    how = {"cache_dtype": "int8", "seed": 5, "history": "exact"}
    whole = list(open_stream(listed(), PROMPT, 6, **how))
    stream = open_stream(listed(), PROMPT, **how)
    first = list(itertools.islice(stream, 5))  # the ring has wrapped
    save(stream, tmp_path)
    planned = stream_parts(stream.plan, stream.plan.config.words.tokens).cache
    assert count_bytes(planned) == count_bytes(stream.state.cache)
    rest = list(resume(tmp_path, listed(), 2))
    for one, other in zip((*first, *rest), whole, strict=True):
        np.testing.assert_array_equal(one.video, other.video)
        np.testing.assert_array_equal(one.audio, other.audio)
    changed, same = stream.fork(), stream.fork()
    same.set_prompt(PROMPT)
    changed.set_prompt("a green ball")
    np.testing.assert_allclose(next(same).video.astype(int), rest[0].video, atol=1)
    assert np.abs(next(changed).video.astype(int) - rest[0].video).max() > 10
