"""One process of a training of two tiny networks. Arguments: which, mesh, folder, steps, step of death (or 0).

For stage 3 the weights folders `student` and `teacher` lie in `folder`. After a step of death the last process is
killed, without warning. Processes find each other by the environment.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import test_training_on_a_mesh as small
import tiny
from one_loss import one_loss

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.generator_critic import Frozen, SelfForcingConfig, contexts_of, self_forcing_of
from omniforcing_jax.io import weights
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import distributed
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.text.contexts import TextContexts
from omniforcing_jax.train import data, loop
from omniforcing_jax.train.distil import DistillConfig, Networks, distil
from omniforcing_jax.train.optimiser import OptimiserConfig

STUDENT, TEACHER = tiny.SINKS, tiny.TINY
SAMPLER = SamplerConfig(sigmas=(1.0, 0.6, 0.0), horizon_seconds=1, context_noise=0.1)
STAGE_3 = self_forcing_of(StaticConfig(STUDENT, SAMPLER, (1, 2)), TEACHER, SelfForcingConfig(seconds=1))
ADAM = OptimiserConfig(kind="adam", learning_rate=1e-4, last_rate=1e-4, steps=1, warmup=0, clip=1.0)
CONFIG = DistillConfig(generator=ADAM, critic=ADAM, ratio=5, ema_decay=0.9, ema_from=4)
SEED = 3


class Training(NamedTuple):
    """What is trained on what."""

    method: Any
    networks: Networks
    rows: dict
    batch: int


def write_networks(folder: Path) -> None:
    weights.save_component(folder / "student", "transformer", tiny.random_params(STUDENT, 0), {})
    weights.save_component(folder / "teacher", "transformer", tiny.random_params(TEACHER, 1), {})


def features(rows):
    rng = np.random.default_rng(0)
    video, audio = rng.normal(size=(2, rows, 4, TEACHER.caption_channels)).astype(np.float32)
    return {"context_video": video, "context_audio": audio, "context_mask": np.ones((rows, 4), bool)}


def stage_3(folder: Path, mesh) -> Training:
    def network(name, config):
        return weights.load_component(folder / name, "transformer", meshes.abstract(transformer_spec(config), mesh))

    negative = meshes.replicate(TextContexts(*(x[:1] for x in contexts_of(features(1)))), mesh)
    frozen = Frozen(network("teacher", TEACHER), negative)
    networks = network("student", STUDENT), network("teacher", TEACHER)
    return Training(STAGE_3, Networks(*networks, frozen, transformer_spec(STUDENT), SEED, mesh), features(6), 2)


def two_layers(folder: Path, mesh) -> Training:
    x, y = np.random.default_rng(0).normal(size=(2, 40, 8)).astype(np.float32)
    rows = {"x": x, "y": y, "row": np.arange(40, dtype=np.float32)}
    networks = (meshes.init(small.SPECS, jax.random.key(i), mesh) for i in range(2))
    return Training(one_loss(small.match), Networks(*networks, None, small.SPECS, SEED, mesh), rows, small.BATCH)


TRAININGS = {"stage_3": stage_3, "two_layers": two_layers}


def run(training: Training, folder: Path, mesh, steps: int, die_after: int):
    def die(done, current):
        if done == die_after and jax.process_index() == jax.process_count() - 1:
            time.sleep(2)  # the checkpoint before has its name by now
            os.kill(os.getpid(), signal.SIGKILL)

    batches = data.PlacedBatches(data.ArraySource(training.rows), training.batch, 0, mesh)
    config = loop.LoopConfig(folder=folder / "run", steps=steps, log_every=4, save_every=8, patience=120.0)
    return distil(training.method, CONFIG, training.networks, batches, config, hooks=(loop.Hook(1, die),))


if __name__ == "__main__":
    what, text, folder, steps, die_after = sys.argv[1:]
    jax.config.update("jax_default_matmul_precision", "highest")
    distributed.start()
    with meshes.use(MeshConfig.parse(text)) as mesh:
        end = run(TRAININGS[what](Path(folder), mesh), Path(folder), mesh, int(steps), int(die_after))
        weights.save_component(Path(folder) / "end", "transformer", end.generator.params, {})
    print("END", int(end.step))
