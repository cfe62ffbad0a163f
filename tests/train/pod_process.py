"""One process of a stage-3 training on a tiny pair of networks. Arguments: mesh, folder, steps, last step before death.

In `folder` lie the weights folders `student` and `teacher`. A step of death kills the last process after it, without
warning. Processes find each other by the environment.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from experiments import full_size
from omniforcing_jax import distributed, weights
from omniforcing_jax import mesh as meshes
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.players import SelfForcing, SelfForcingConfig
from omniforcing_jax.mesh import MeshConfig, make_mesh
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.rollout import Setting
from omniforcing_jax.text.contexts import Contexts
from omniforcing_jax.train import data, loop, optimiser, state, step

STUDENT, TEACHER = tiny.SINKS, tiny.TINY
SAMPLER = SamplerConfig(sigmas=(1.0, 0.6, 0.0), horizon_seconds=2, context_noise=0.1)
PLAYERS = SelfForcing(Setting(STUDENT, SAMPLER, (1, 2)), TEACHER, SelfForcingConfig(seconds=2))
ADAM = optimiser.OptimiserConfig(kind="adam", learning_rate=1e-4, last_rate=1e-4, steps=1, warmup=0, clip=1.0)
RULE = optimiser.optimiser(ADAM)
BATCH = 2


def write_networks(folder: Path) -> None:
    weights.save_component(folder / "student", "transformer", tiny.random_params(STUDENT, 0), {})
    weights.save_component(folder / "teacher", "transformer", tiny.random_params(TEACHER, 1), {})


def features(rows):
    rng = np.random.default_rng(0)
    video, audio = rng.normal(size=(2, rows, 4, TEACHER.caption_channels)).astype(np.float32)
    return {"context_video": video, "context_audio": audio, "context_mask": np.ones((rows, 4), bool)}


def run(folder: Path, mesh, steps: int, die_after: int):
    def network(name, config):
        return weights.load_component(folder / name, "transformer", meshes.abstract(transformer_spec(config), mesh))

    def die(done, current):
        if done == die_after and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    pair = partial(state.create_pair, generator_optimiser=RULE, critic_optimiser=RULE, seed=3)
    networks = network("student", STUDENT), network("teacher", TEACHER)
    trainer = meshes.make_beside(pair, *networks, specs=transformer_spec(STUDENT), mesh=mesh)
    negative = meshes.replicate(Contexts(*(x[:1] for x in full_size.contexts_of(features(1)))), mesh)
    return loop.train(
        loop.LoopConfig(folder=folder / "run", steps=steps, log_every=4, save_every=8, patience=120),
        trainer,
        step.make_distill_step(*full_size.gradients(PLAYERS), RULE, RULE, ratio=5, ema_decay=0.9, ema_from=4),
        data.PlacedBatches(data.ArraySource(features(6)), BATCH, 0, mesh),
        beside=(network("teacher", TEACHER), negative),
        hooks=(loop.Hook(1, die),),
    )


if __name__ == "__main__":
    text, folder, steps, die_after = sys.argv[1:]
    jax.config.update("jax_default_matmul_precision", "highest")
    distributed.start()
    mesh = make_mesh(MeshConfig.parse(text)) if text != "1,1,1" else None
    with jax.set_mesh(mesh) if mesh is not None else jax.default_device(jax.devices()[0]):
        end = run(Path(folder), mesh, int(steps), int(die_after))
        weights.save_component(Path(folder) / "end", "transformer", end.generator.params, {})
    print("END", int(jnp.asarray(end.step)))
