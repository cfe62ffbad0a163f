"""Two networks of one matrix trained on noisy rows, whose metrics say which rows came in which order.

As a program it trains until it is killed, by itself and without warning, in the middle of writing a checkpoint.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from one_loss import one_loss

from omniforcing_jax.train import data, loop, optimiser, state, step

ROWS, STEPS, SAVE_EVERY = 14, 80, 10
SEED = 5
RULES = tuple(
    optimiser.optimiser(optimiser.OptimiserConfig(kind="adam", learning_rate=rate, steps=STEPS, warmup=2))
    for rate in (0.01, 0.02)
)


def match(params, batch, key, other, frozen):
    """Fit noisy targets and lean towards the other network; the metric `order` names the rows exactly."""
    noise = jax.random.normal(key, batch["x"].shape, jnp.float32)
    error = (batch["x"] + 0.1 * noise) @ params["w"] - batch["y"] + 0.1 * (params["w"] - other["w"]).sum()
    order = batch["row"][0, 0] * 100.0 + batch["row"][1, 0]
    return jnp.mean(error**2), {"order": order, "drawn": jnp.mean(noise)}


UPDATE = step.make_distill_step(one_loss(match), RULES, step.DistillSchedule(ratio=3, ema_decay=0.9, ema_from=10))


def source() -> data.ArraySource:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, ROWS, 4, 4)).astype(np.float32)
    return data.ArraySource({"x": x, "y": y, "row": np.arange(ROWS, dtype=np.float32)[:, None]})


def fresh() -> state.DistillState:
    weights = [{"w": jnp.asarray(np.random.default_rng(i).normal(size=(4, 4)), jnp.float32)} for i in (1, 2)]
    return state.create_pair(*weights, RULES, SEED)


def run(folder: Path, hooks: tuple[loop.Hook, ...] = ()) -> state.DistillState:
    config = loop.LoopConfig(folder=folder, steps=STEPS, log_every=4, save_every=SAVE_EVERY)
    return loop.train(config, fresh(), UPDATE, data.batches(source(), 2, SEED), hooks=hooks, describe={"seed": SEED})


def die_while_saving(folder: Path, at: int) -> None:
    """Train to step `at`, at which a checkpoint is due, and die while its folder has its temporary name."""
    rename = os.rename

    def never_finish(old, new, **where):
        if Path(new).name == str(at):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(old, new, **where)

    os.rename = never_finish
    run(folder)


if __name__ == "__main__":
    die_while_saving(Path(sys.argv[1]), int(sys.argv[2]))
