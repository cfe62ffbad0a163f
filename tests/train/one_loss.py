"""Generator and critic of a trainer, each with a loss: what tests of the trainer train."""

import dataclasses
from collections.abc import Callable

import jax


@dataclasses.dataclass
class Losses:
    """Two losses `(params, batch, key, other, frozen) -> (scalar, metrics)`."""

    generator_loss: Callable
    critic_loss: Callable

    def generator(self, *arguments):
        return found(self.generator_loss, *arguments)

    def critic(self, *arguments):
        return found(self.critic_loss, *arguments)


def one_loss(loss) -> Losses:
    """Let both networks have the same loss."""
    return Losses(loss, loss)


def found(loss, *arguments):
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(*arguments)
    return value, metrics, grads
