"""Features and connectors against live ltx-core and diffusers, 2.0 and 2.3.

With the peers' rotary tables contexts agree to 1e-4, with our float64 tables to 2e-3 (frequencies reach 15,708 rad,
the peers' angles are float32).
"""

import functools

import connector_peers as peers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conversion import to_native
from reference_rotary import from_split

from converters.component import DIFFUSERS, LTX2
from converters.formats.connectors import COMPONENT
from omniforcing_jax.text.connector import (
    ConnectorConfig,
    ConnectorsConfig,
    connect,
    fill_with_registers,
    make_contexts,
)
from omniforcing_jax.text.features import FeatureNorm, extract_features

pytestmark = pytest.mark.usefixtures("strict")
PEER_TABLES, OWN_TABLES = 1e-4, 2e-3
GENERATIONS = pytest.mark.parametrize("newer", [False, True], ids=["2.0", "2.3"])

RNG = np.random.default_rng(1)
STATES = RNG.normal(size=(peers.STATES, 2, peers.TOKENS, peers.WIDTH)).astype(np.float32)
STATES += 3 * RNG.normal(size=(peers.STATES, 1, 1, 1)).astype(np.float32)  # padding has no small values either
MASK = np.array([[0] * 11 + [1] * 5, [0] * 3 + [1] * 13])

run_features = jax.jit(extract_features, static_argnums=0)
run_contexts = jax.jit(make_contexts, static_argnums=0)


def config(newer: bool) -> ConnectorsConfig:
    video, audio = (
        ConnectorConfig(layers=peers.LAYERS, heads=peers.HEADS, head_size=size, registers=peers.REGISTERS)
        for size in peers.HEAD_SIZES[newer]
    )
    return ConnectorsConfig(
        text_width=peers.WIDTH,
        text_states=peers.STATES,
        norm=FeatureNorm.PER_TOKEN if newer else FeatureNorm.PER_PROMPT,
        video=video,
        audio=audio,
        gated_attention=newer,
        tokens=peers.TOKENS,
    )


@functools.cache
def params(newer: bool, naming: str = LTX2):
    tensors = {LTX2: peers.get_original, DIFFUSERS: peers.get_diffusers}[naming](newer)
    return jax.tree.map(jnp.asarray, to_native(COMPONENT, naming, config(newer), tensors))


def close(ours, theirs, tolerance):
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=tolerance, rtol=tolerance)


@GENERATIONS
def test_both_namings_give_the_same_tree(newer):
    jax.tree.map(np.testing.assert_array_equal, params(newer), params(newer, DIFFUSERS))


@GENERATIONS
def test_features_are_those_of_ltx_core(newer):
    ours = run_features(config(newer).norm, params(newer).features, STATES, MASK.astype(np.int32))
    for mine, theirs in zip(ours, peers.extract_core(newer, STATES, MASK), strict=True):
        assert theirs.std() > 0.1
        close(mine, theirs, 1e-4)


@GENERATIONS
def test_a_connector_with_the_peers_rotations_is_theirs(newer):
    features = peers.extract_core(newer, STATES, MASK)
    theirs = peers.run_diffusers(newer, STATES, MASK)
    for stream, size, x, context in zip(("video", "audio"), peers.HEAD_SIZES[newer], features, theirs[:2], strict=True):
        rotary = from_split(*map(jnp.asarray, peers.reference_rotary(size)))
        ours = jax.jit(connect)(getattr(params(newer), stream), jnp.asarray(x), MASK.astype(np.int32), rotary)
        close(ours, context, PEER_TABLES)


@GENERATIONS
def test_contexts_are_those_of_diffusers_and_of_ltx_core(newer):
    ours = run_contexts(config(newer), params(newer), STATES, MASK.astype(np.int32))
    theirs = peers.run_diffusers(newer, STATES, MASK)
    alone = [peers.run_core(newer, STATES[:, i : i + 1], MASK[i : i + 1]) for i in range(2)]
    for mine, batch, rows in zip(ours, theirs, zip(*alone, strict=True), strict=True):
        close(mine, batch, OWN_TABLES)
        close(mine, np.concatenate(rows), OWN_TABLES)
    assert ours.mask.tolist() == np.ones_like(MASK).tolist()


def test_registers_are_chosen_by_absolute_place():
    registers = jnp.arange(4.0)[:, None] + 100
    features = jnp.arange(16.0).reshape(2, 8, 1)
    mask = jnp.array([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1]])
    filled = fill_with_registers(registers, features, mask)[..., 0]
    assert filled[0].tolist() == [3, 4, 5, 6, 7, 101, 102, 103]
    assert filled[1].tolist() == [15, 101, 102, 103, 100, 101, 102, 103]
