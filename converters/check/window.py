"""A cached rollout of a recorded case with a window: a picture given, pinned blocks, eviction, cameras.

Keys were recorded as they rest in the other cache: normed and not rotated, in the order of its window. Ours are turned
back, and put into that order. The last commit overwrites the oldest block of the window, so both caches are read.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax import rollout
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.layout import Layout
from omniforcing_jax.model.cache import Cache, Slots
from omniforcing_jax.model.cameras import Shots, blocks_in_ring, cameras_of_block, lens_of_intrinsics
from omniforcing_jax.model.positions import Rotaries, rotaries
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.nn.attention import KV
from omniforcing_jax.nn.camera import turn_back
from omniforcing_jax.nn.rope import rotate_back
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import parse, require

from .forward import QUICK
from .recorded_case import STREAMS, RecordedCase, as_latents, as_tokens

ROTATED_BY = {"video_self": "video", "audio_self": "audio", "a2v": "cross_audio", "v2a": "cross_video"}
CAMERA = "video_ucpe"  # how the keys of camera attention were recorded
COUNTS = ("pinned_blocks", "ring_blocks", "horizon_blocks")

_denoise = jax.jit(rollout.denoise, static_argnames="static", compiler_options=QUICK)
_clean_pass = jax.jit(rollout.clean_pass, static_argnames="static", compiler_options=QUICK)


def run_window(case: RecordedCase, run: str, config: ModelConfig, params: Transformer) -> dict[str, np.ndarray]:
    """Roll a clip out with the case's own noise and cameras. Returns everything that was recorded of it, by name.

    Raises:
        ValueError: A setting or a tensor is missing, or the settings fit no sampler; names it.
    """
    uses = case.setting("runs")[run]
    if not uses.get("camera"):
        config, params = _without_cameras(config, params)
    static = rollout.StaticConfig(config, _sampler(case, run), tuple(case.setting("grid")))
    contexts = [jnp.asarray(case[f"{run}.in.{stream}_context"]) for stream in STREAMS]
    prompt = rollout.make_prompt_kv(params, *contexts, None, static=static)
    picture = Streams(video=jnp.asarray(as_tokens(case[f"{run}.in.image"])), audio=None)
    cache, made, result, positions = rollout.make_cache(static, len(contexts[0])), [], {}, []
    for k in range(len(uses["blocks"])):
        positions.append(_positions(case, run, static, cache.video, k))
        noise = _read_noise(case, run, k, static.sampler.steps, picture.video)
        given = rollout.NO_CONDITIONING if k else picture
        made_at, cache = _denoise(
            params, cache, prompt, noise, positions[k], static=static, conditioning=given, context=given
        )
        for i in range(static.sampler.steps):
            result |= _name(case, f"{run}.block{k}.step{i}.x0", jax.tree.map(lambda x, i=i: x[i], made_at))
        made.append(jax.tree.map(lambda x: x[-1], made_at))
        before = cache
        cache = _clean_pass(params, cache, prompt, made[-1], None, positions[k], static=static)
        result |= _slots(run, static.sampler, cache.video, k)
        result |= _caches(case, f"{run}.cache.after_block{k}.", static, (before, cache), positions)
    return result | _name(case, f"{run}.final", jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *made))


def has_window(case: RecordedCase) -> bool:
    """Whether a case's runs have a window, and not room for the whole clip."""
    return all(isinstance(run, dict) and COUNTS[0] in run for run in case.settings["runs"].values())


def _without_cameras(config: ModelConfig, params: Transformer) -> tuple[ModelConfig, Transformer]:
    layers = dataclasses.replace(params.layers, camera=None)
    return dataclasses.replace(config, camera=None), dataclasses.replace(params, layers=layers)


def _sampler(case: RecordedCase, run: str) -> SamplerConfig:
    """Make the sampler of a run: its horizon is its window, in which pinned blocks take some places."""
    uses, where = case.setting("runs")[run], f"{case.name}: config.runs.{run}"
    pinned, ring, horizon = (parse(int, uses.get(name), f"{where}.{name}") for name in COUNTS)
    layout = parse(Layout, case.setting("layout"), f"{case.name}: config.layout")
    blocks = parse(tuple[tuple[int, int, int, int], ...], uses.get("blocks"), f"{where}.blocks")
    require([*map(tuple, layout.blocks(blocks[-1][1]))] == [*blocks], f"{where}.blocks", blocks, "must be the layout's")
    sampler = SamplerConfig(
        layout=layout,
        sigmas=tuple(case.setting("sigmas")),
        horizon_seconds=layout.start_seconds(horizon),
        pinned=pinned,
        scalar_sigma=case.settings.get("scalar_sigma"),
    )
    require(sampler.past_blocks == ring, f"{where}.ring_blocks", ring, f"must be {sampler.past_blocks}")
    return sampler


def _positions(
    case: RecordedCase, run: str, static: rollout.StaticConfig, slots: Slots, k: int
) -> rollout.BlockPositions:
    """Make the tables of block k, with the recorded cameras."""
    if static.model.camera is None:
        return rollout.block_positions(static, k)
    lenses, shots = lens_of_intrinsics(case[f"{run}.in.Ks"].astype(np.float64), *case.setting("image_size")), {}
    for block in range(k + 1):
        frames = slice(*static.sampler.layout.block(block)[:2])
        shots[block] = Shots(case[f"{run}.in.viewmats"][:, frames], lenses[:, frames])
    return rollout.block_positions(static, k, cameras_of_block(static.sampler, slots, shots, k))


def _read_noise(case: RecordedCase, run: str, k: int, steps: int, picture: Any) -> Streams:
    """Stack the draws of every step as tokens; a picture that is given has none."""
    names = [f"{run}.block{k}.init_noise", *(f"{run}.block{k}.step{i}.renoise" for i in range(steps - 1))]
    draws = [as_tokens(case[f"{name}.video"]) if k else np.zeros_like(picture) for name in names]
    return Streams(jnp.asarray(np.stack(draws)), jnp.asarray(np.stack([case[f"{name}.audio"] for name in names])))


def _name(case: RecordedCase, name: str, values: Streams) -> dict[str, np.ndarray]:
    """Give both streams their recorded names and shapes; a picture that is given was not recorded."""
    named = {f"{name}.{stream}": np.asarray(value) for stream, value in zip(STREAMS, values, strict=True)}
    return {key: as_latents(value, case[key]) for key, value in named.items() if key in case.tensors}


def _window_blocks(sampler: SamplerConfig, slots: Slots, k: int) -> list[int]:
    """List the blocks of block k's window in order, itself included."""
    past = {*range(min(k, sampler.pinned)), *(blocks_in_ring(slots, k) if k else [])} - {-1}
    return [*sorted(past), k]


def _slots(run: str, sampler: SamplerConfig, slots: Slots, k: int) -> dict[str, np.ndarray]:
    spans = [sampler.layout.block(block) for block in _window_blocks(sampler, slots, k)]
    latents = {"video": [range(*span[:2]) for span in spans], "audio": [range(*span[2:]) for span in spans]}
    return {f"{run}.slots.block{k}.{name}": np.concatenate([*map(list, each)]) for name, each in latents.items()}


def _caches(
    case: RecordedCase, name: str, static: rollout.StaticConfig, caches: Sequence[Cache], positions: Sequence[Any]
) -> dict[str, np.ndarray]:
    """Return the keys and values of the window that were recorded after a block."""
    result, k = {}, len(positions) - 1
    for found in (re.fullmatch(rf"{re.escape(name)}layer(\d+)\.(\w+)\.([kv])", key) for key in case.tensors):
        if found is None:
            continue
        layer, site, part = int(found[1]), found[2].replace(CAMERA, "camera"), found[3]
        held: dict[int, KV] = {}
        for cache in caches:
            held |= _read_blocks(cache, static.sampler, site, layer)
        blocks = _window_blocks(static.sampler, caches[0].video, k)
        tables = {block: rotaries(static.model, positions[block].tokens) for block in blocks}
        kept = [getattr(_turned_back(site, tables[block], held[block]), part) for block in blocks]
        value = np.concatenate(kept, axis=1)
        result[found[0]] = value.reshape(*value.shape[:2], -1)
    return result


def _read_blocks(cache: Cache, sampler: SamplerConfig, site: str, layer: int) -> dict[int, KV]:
    """Read a layer's keys and values of each block that a cache holds."""
    past, slots, done = getattr(cache.past, site), getattr(cache.slots, site), int(cache.blocks_done)
    places = {}
    for block in range(min(sampler.pinned, done)):
        start = slots.sinks + (slots.first + (block - 1) * slots.step if block else 0)
        places[block] = (past.pinned, start, slots.step if block else slots.first)
    ring = {block: i * slots.step for i, block in enumerate(blocks_in_ring(slots, done)) if block >= 0}
    places |= {block: (past.ring, start, slots.step) for block, start in ring.items()}
    return {block: _cut(kv, layer, slice(start, start + size)) for block, (kv, start, size) in places.items()}


def _cut(kv: KV, layer: int, tokens: slice) -> KV:
    return jax.tree.map(lambda x: x[layer, :, tokens], kv)


def _turned_back(site: str, tables: Rotaries, kv: KV) -> KV:
    """Undo the rotation of keys and, of camera attention, of values too."""
    if tables.camera is not None and site == "camera":
        camera = tables.camera
        return jax.tree.map(lambda x: turn_back(x, camera), kv)
    return dataclasses.replace(kv, k=rotate_back(kv.k, getattr(tables, ROTATED_BY[site])))
