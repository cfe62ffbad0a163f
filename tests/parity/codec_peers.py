"""Codecs beside their peers: weights cross over by the converters' tables, never by names of a test's own."""

import numpy as np
import torch

from converters.component import Component
from converters.rules import gather, scatter
from omniforcing_jax.io.weights import fill_tree, name_leaves


def to_peer(component: Component, naming: str, config, variables) -> dict[str, torch.Tensor]:
    """Return our variables under the peer's full names."""
    named = {name: np.asarray(leaf) for name, leaf in name_leaves(variables).items()}
    theirs = scatter(named, component.place(config, naming), "ours")
    return {name: torch.tensor(value) for name, value in theirs.items()}


def to_ours(component: Component, naming: str, config, tensors: dict[str, torch.Tensor]):
    """Return a peer's tensors as our variables, without those that nobody uses."""
    table = component.namings[naming]
    used = {name: value.detach().numpy() for name, value in tensors.items() if not table.is_passed(name)}
    return fill_tree(component.abstract(config), gather(used, component.place(config, naming), "peer"))


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every parameter a random value that matters: kernels of unit gain, the rest of a tenth."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return module.eval()


def normal(seed: int, *shape: int) -> np.ndarray:
    """Draw an input."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
