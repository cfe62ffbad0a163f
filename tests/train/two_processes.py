"""A training by two processes, of which the second may be told to stop. Arguments: process, port, folder, step or 0."""

import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omniforcing_jax.train import data, gradient, loop, optimiser, state, step

STEPS = 60


def pull(params, batch, key):
    return jnp.sum((params["w"] - jnp.mean(batch["x"]) - jax.random.normal(key, (4,))) ** 2), {}


def run(folder, told_at):
    here = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), PartitionSpec())

    def everywhere(tree):
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, here, lambda i: np.asarray(x)[i]), tree)

    def tell(done, current):
        time.sleep(0.02)  # a notice takes a while to reach both
        if done == told_at and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    rule = optimiser.optimiser(optimiser.OptimiserConfig(kind="adam", learning_rate=0.01, steps=STEPS, warmup=2))
    update = step.make_step(gradient.of_loss(pull), rule)
    return loop.train(
        loop.LoopConfig(folder=folder, steps=STEPS, save_every=1000, log_every=5),
        everywhere(state.create({"w": jnp.ones((4,))}, rule, 0)),
        lambda current, batch: update(current, everywhere(batch)),
        data.batches(data.ArraySource({"x": np.arange(8, dtype=np.float32)}), 2, 0),
        hooks=(loop.Hook(1, tell),),
    )


if __name__ == "__main__":
    process, port, folder, told_at = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    end = run(Path(folder), int(told_at))
    print("END", int(end.step), np.asarray(end.params["w"]).tolist())
