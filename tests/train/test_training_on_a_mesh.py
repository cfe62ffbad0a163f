"""The trainer on eight devices: it trains what one device trains, keeps everything cut, and goes on on another mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_loss import one_loss

from omniforcing_jax.nn.linear import linear_spec, project
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.parallel.sharding import constrain, gather
from omniforcing_jax.parallel.spec import init
from omniforcing_jax.train import data, loop, optimiser, state, step

SPECS = {"up": linear_spec(8, 16, ("mlp", "embed")), "down": linear_spec(16, 8, ("embed", "mlp"))}
BATCH, SEED = 8, 5
RULES = tuple(
    optimiser.optimiser(optimiser.OptimiserConfig(kind="adam", learning_rate=rate, steps=50, warmup=2))
    for rate in (0.01, 0.02)
)


def match(params, batch, key, other, frozen):
    """Two layers fitted to noisy targets and drawn to the other network."""
    x = constrain(batch["x"], "batch", None) + 0.1 * jax.random.normal(key, batch["x"].shape, jnp.float32)
    p = gather(params, SPECS)
    error = project(p["down"], jnp.tanh(project(p["up"], x))) - batch["y"]
    lean = sum(jnp.mean((a - b) ** 2) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True))
    return jnp.mean(error**2) + lean, {"rows": jnp.mean(batch["row"] * jnp.arange(BATCH))}


def train(folder, text, steps):
    """Train to so many steps in all; None is one device."""
    x, y = np.random.default_rng(0).normal(size=(2, 40, 8)).astype(np.float32)
    source = data.ArraySource({"x": x, "y": y, "row": np.arange(40, dtype=np.float32)})
    mesh = None if text is None else make_mesh(MeshConfig.parse(text))
    networks = [init(SPECS, jax.random.key(i)) for i in range(2)]
    if mesh is not None:
        networks = [jax.device_put(params, meshes.param_shardings(SPECS, mesh)) for params in networks]
    pair = partial(state.create_pair, optimisers=RULES, seed=SEED)
    update = step.make_distill_step(one_loss(match), RULES, step.DistillSchedule(ratio=3, ema_decay=0.9, ema_from=4))
    config = loop.LoopConfig(folder=folder, steps=steps, log_every=4, save_every=100)
    with jax.set_mesh(mesh) if mesh is not None else jax.default_device(jax.devices()[0]):
        start = meshes.make_beside(pair, *networks, specs=SPECS, mesh=mesh)
        return loop.train(config, start, update, data.PlacedBatches(source, BATCH, SEED, mesh)), update


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("alone"), None, 14)[0]


def same(one, other):
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), jax.device_get(one), jax.device_get(other))


def test_the_trainer_equals_one_device_keeps_its_state_cut_and_compiles_two_programs(tmp_path, alone):
    trained, update = train(tmp_path, "2,2,2", 14)
    same(trained, alone)
    for path, leaf in jax.tree_util.tree_flatten_with_path(trained)[0]:
        if leaf.ndim == 2:
            assert leaf.size // leaf.addressable_shards[0].data.size == 4, path
    programs = [program for each in (update.generator, update.critic) for program, _ in each._compiled.values()]
    assert [program._cache_size() for program in programs] == [1, 1]


@pytest.mark.long
def test_a_run_goes_on_on_another_mesh(tmp_path, alone):
    train(tmp_path, "2,2,2", 7)
    same(train(tmp_path, "1,8,1", 14)[0], alone)
