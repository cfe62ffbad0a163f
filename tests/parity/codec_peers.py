"""Codecs beside their peers: weights cross over as `convert` and `export` bring them, not by a test's own names."""

import numpy as np
import torch
from conversion import to_native, to_source

from converters.component import Component


def to_peer(component: Component, naming: str, config, variables) -> dict[str, torch.Tensor]:
    """Return our variables under the peer's full names."""
    return {name: torch.tensor(value) for name, value in to_source(component, naming, config, variables).items()}


def to_ours(component: Component, naming: str, config, tensors: dict[str, torch.Tensor]):
    """Return a peer's tensors as our variables, without those that nothing uses."""
    return to_native(component, naming, config, {name: value.detach() for name, value in tensors.items()})


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
