"""Golden k: EchoWM's rollout from a picture, its window with pinned blocks, every draw, estimate, slot and cache."""

import dataclasses
import re

import golden_network as net
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from echowm import echo_case, echo_variants, lenses_of, load_network, needs_echowm, network_of

from omniforcing_jax import rollout
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.layout import Layout
from omniforcing_jax.model.cameras import Shots, blocks_in_ring, cameras_of_block
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.nn.camera import turn_back
from omniforcing_jax.nn.rope import rotate_back
from omniforcing_jax.schedule import sigma_lookup
from omniforcing_jax.streams import Streams

pytestmark = [needs_echowm, pytest.mark.usefixtures("strict")]
NAME = "k_rollout_echowm"
QUICK = {"xla_backend_optimization_level": 0}

run_denoise = jax.jit(rollout.denoise, static_argnames="static", compiler_options=QUICK)
run_clean_pass = jax.jit(rollout.clean_pass, static_argnames="static", compiler_options=QUICK)


def make_setting(case, run):
    """The network and its sampler, from the JSON; a run without cameras has the network without their attention."""
    uses = case.config["runs"][run]
    layout = Layout(**case.config["layout"])
    np.testing.assert_array_equal(np.array(layout.blocks(uses["blocks"][-1][1])), uses["blocks"])
    sampler = SamplerConfig(
        layout=layout,
        sigmas=tuple(case.config["sigmas"]),
        horizon_seconds=layout.start_seconds(uses["horizon_blocks"]),
        pinned=uses["pinned_blocks"],
        scalar_sigma=case.config["scalar_sigma"],
    )
    assert sampler.past_blocks == uses["ring_blocks"]
    config = network_of(case)
    params = load_network(case.config["weights"], config)
    if not uses["camera"]:
        config = dataclasses.replace(config, camera=None)
        params = dataclasses.replace(params, layers=dataclasses.replace(params.layers, camera=None))
    return params, rollout.StaticConfig(config, sampler, tuple(case.config["grid"]))


def positions_of(case, run, static, slots, k):
    """Tables of block k with the recorded cameras."""
    if static.model.camera is None:
        return rollout.block_positions(static, k)
    lenses, shots = lenses_of(case[f"{run}.in.Ks"], tuple(case.config["image_size"])), {}
    for i in range(k + 1):
        frames = slice(*static.sampler.layout.block(i)[:2])
        shots[i] = Shots(case[f"{run}.in.viewmats"][:, frames], lenses[:, frames])
    return rollout.block_positions(static, k, cameras_of_block(static.sampler, slots, shots, k))


def read_noise(case, run, k, steps, like):
    """The draws of every step, as tokens; block 0's picture has none."""
    names = [f"{run}.block{k}.init_noise", *(f"{run}.block{k}.step{i}.renoise" for i in range(steps - 1))]
    video = [net.as_tokens(case[f"{name}.video"]) if f"{name}.video" in case else np.zeros_like(like) for name in names]
    return Streams(jnp.asarray(np.stack(video)), jnp.asarray(np.stack([case[f"{name}.audio"] for name in names])))


def blocks_of_window(sampler, slots, k):
    """Blocks in the window of block k, in order, itself included."""
    past = {*range(min(k, sampler.pinned)), *(blocks_in_ring(slots, k) if k else [])} - {-1}
    return [*sorted(past), k]


def latents_of(sampler, blocks, stream):
    spans = [sampler.layout.block(k) for k in blocks]
    return [i for b in spans for i in range(getattr(b, f"{stream}_start"), getattr(b, f"{stream}_end"))]


def read_cache(cache, sampler, site, layer):
    """Keys and values of each block that a cache holds, after `blocks_done` commits: {block: KV of its tokens}."""
    past, slots, done = getattr(cache.past, site), getattr(cache.slots, site), int(cache.blocks_done)
    held, start = {}, slots.sinks
    for k in range(min(sampler.pinned, done)):
        stop = start + (slots.step if k else slots.first)
        held[k] = cut(past.pinned, layer, slice(start, stop))
        start = stop
    for place, k in enumerate(blocks_in_ring(slots, done)):
        if k >= 0:
            held[k] = cut(past.ring, layer, slice(place * slots.step, (place + 1) * slots.step))
    return held


def cut(kv, layer, tokens):
    return jax.tree.map(lambda x: x[layer, :, tokens], kv)


def unrotate(static, site, block, held):
    """Undo the rotation of a block's keys, and of the values of camera attention."""
    tables = rotaries(static.model, block.tokens)
    if site == "camera":
        return jax.tree.map(lambda x: turn_back(x, tables.camera), held)
    of_keys = {"video_self": "video", "audio_self": "audio", "a2v": "cross_audio", "v2a": "cross_video"}
    rotary = getattr(tables, of_keys[site])
    return held.replace(k=rotate_back(held.k, rotary))


def compare_caches(case, run, static, k, caches, positions):
    """Put together what the cache held before and after the last commit, which overwrote the oldest block."""
    for name in case.names(f"{run}.cache.after_block{k}.*"):
        layer, site, part = re.fullmatch(r".*\.layer(\d+)\.(\w+)\.([kv])", name).groups()
        site = {"video_ucpe": "camera"}.get(site, site)
        held = {}
        for cache in caches:
            held |= read_cache(cache, static.sampler, site, int(layer))
        blocks = blocks_of_window(static.sampler, caches[0].video, k)
        kept = [getattr(unrotate(static, site, positions[b], held[b]), part) for b in blocks]
        value = np.concatenate(kept, axis=1)
        case.compare(name, value.reshape(*value.shape[:2], -1), own_tables=True)


@pytest.mark.long
@pytest.mark.parametrize("run", echo_variants(NAME, "runs"))
def test_every_step_slot_and_cache_of_a_rollout_is_the_reference_s(run):
    case = echo_case(NAME)
    params, static = make_setting(case, run)
    text = case[f"{run}.in.video_context"], case[f"{run}.in.audio_context"]
    prompt = rollout.make_prompt_kv(params, *text, None, static=static)
    cache, steps, made, positions = rollout.make_cache(static, len(text[0])), static.sampler.steps, [], []
    picture = jnp.asarray(net.as_tokens(case[f"{run}.in.image"]))
    for k in range(len(case.config["runs"][run]["blocks"])):
        positions.append(positions_of(case, run, static, cache.video, k))
        conditioning = rollout.NO_CONDITIONING if k else Streams(video=picture, audio=None)
        noise = read_noise(case, run, k, steps, picture)
        estimates, cache = run_denoise(
            params, cache, prompt, noise, positions[k], static=static, conditioning=conditioning, context=conditioning
        )
        for i in range(steps):
            compare_estimate(case, f"{run}.block{k}.step{i}.x0", jax.tree.map(lambda x, i=i: x[i], estimates))
        made.append(jax.tree.map(lambda x: x[-1], estimates))
        before = cache
        cache = run_clean_pass(params, cache, prompt, made[-1], None, positions[k], static=static)
        window = blocks_of_window(static.sampler, cache.video, k)
        for stream in ("video", "audio"):
            case.compare(f"{run}.slots.block{k}.{stream}", latents_of(static.sampler, window, stream))
        compare_caches(case, run, static, k, (before, cache), positions)
    compare_estimate(case, f"{run}.final", jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *made))
    compare_window_tables(case, run, static)
    case.assert_all_compared(f"{run}.*")


def compare_estimate(case, name, streams):
    if f"{name}.video" in case:
        case.compare(f"{name}.video", net.as_latents(streams.video, case[f"{name}.video"]), own_tables=True)
    case.compare(f"{name}.audio", streams.audio, own_tables=True)


def compare_window_tables(case, run, static):
    """The window's tables are those of the clip's first latents."""
    end = static.sampler.layout.block(case.config["runs"][run]["window_blocks"] - 1)
    clip = clip_block(end.video_end, end.audio_end)
    ours = rotaries(static.model, make_positions(static.model, clip, static.grid))
    names = {"video_self": "video", "audio_self": "audio", "video_cross": "cross_video", "audio_cross": "cross_audio"}
    for theirs, name in names.items():
        net.compare_rotary(case, f"{run}.rope.{theirs}", getattr(ours, name))


def test_the_recorded_sigmas_are_those_of_the_step_list():
    case = echo_case(NAME)
    lookup = sigma_lookup(case.config["num_inference_steps"])
    ours = [float(lookup[t]) for t in case.config["denoising_step_list"]]
    case.compare("in.sigmas", np.array([*ours, 0.0], np.float32))
