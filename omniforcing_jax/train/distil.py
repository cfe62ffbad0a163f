"""A training of generator and critic, put together: its values, what it begins from, and the run."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

from jax.sharding import Mesh

from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.train import gradient, loop, optimiser, state, step
from omniforcing_jax.train.loop import Batches, Hook, LoopConfig, Measure
from omniforcing_jax.train.optimiser import OptimiserConfig
from omniforcing_jax.train.state import DistillState, Optimisers
from omniforcing_jax.train.step import DistillMethod, DistillSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(DistillSchedule):
    """How generator and critic are trained.

    Attributes:
        generator: Its optimiser, whose schedule counts the generator's own updates.
        critic: Its optimiser.
    """

    generator: OptimiserConfig
    critic: OptimiserConfig

    def optimisers(self) -> Optimisers:
        """Build both optimisers."""
        return optimiser.optimiser(self.generator), optimiser.optimiser(self.critic)


class Networks(NamedTuple):
    """What a run begins from.

    Attributes:
        generator: Its masters, float32, whose buffers the trainer takes over.
        critic: The same of the critic.
        frozen: What is never trained, see `make_distill_step`.
        specs: The generator's weights as they are declared, for where the trainer's parts lie on a mesh.
        seed: Of the random keys.
        mesh: That they lie on; None is one device.
    """

    generator: Any
    critic: Any
    frozen: Any
    specs: Any
    seed: int
    mesh: Mesh | None = None


def distil(
    method: DistillMethod,
    config: DistillConfig,
    networks: Networks,
    batches: Batches,
    run: LoopConfig,
    *,
    hooks: tuple[Hook, ...] = (),
    measures: tuple[Measure, ...] = (),
    describe: dict | None = None,
) -> DistillState:
    """Train generator and critic, or go on with what the run's folder holds; returns the trainer at its end.

    Args:
        method: Their gradients, see distill/generator_critic.py.
        config: See DistillConfig.
        networks: See Networks.
        batches: Of prompts, and of what else the method begins from.
        run: How long, and where.
        hooks: As in `loop.train`, which says what is raised.
        measures: As there.
        describe: As there.
    """
    optimisers = config.optimisers()
    pair = partial(state.create_pair, optimisers=optimisers, seed=networks.seed)
    trainer: DistillState = meshes.make_beside(
        pair, networks.generator, networks.critic, specs=networks.specs, mesh=networks.mesh
    )
    update = step.make_distill_step(method, optimisers, config, networks.frozen, site_of=gradient.network_site)
    return loop.train(run, trainer, update, batches, hooks=hooks, measures=measures, describe=describe)
