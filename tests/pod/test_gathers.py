"""The smallest program with a training's pattern, on eight devices of this machine: its work and what it moves."""

import collections

import jax
import pytest

from experiments.bench.gathers import Arguments, compile_mlps
from experiments.pod import hlo
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh

SMALL = Arguments(width=64, layers=3, tokens=16)
WEIGHTS = SMALL.layers * 8 * SMALL.width**2


@pytest.fixture(scope="module")
def cost():
    return hlo.read_cost(compile_mlps(SMALL, make_mesh(MeshConfig(fsdp=8), jax.devices()[:8])).as_text() or "")


def test_a_row_per_chip_goes_forward_twice_and_backward_once(cost):
    """Twice, since layers are computed again; the product with the second matrix is not needed then."""
    assert cost.unknown_loops == 0
    assert cost.flops == pytest.approx(3.5 * 2 * WEIGHTS * SMALL.tokens)


def test_weights_are_received_for_both_passes_and_gradients_once(cost):
    received = collections.Counter({kind: size for (kind, group), (_, size) in cost.collectives if group == 8})
    once = WEIGHTS * 4 * 7 / 8  # XLA for CPUs moves float32 where a TPU moves bfloat16
    assert received["all-gather"] == pytest.approx(2 * once, rel=0.05)
    # It sums a gradient, which counts as a scatter and a gather, where a TPU only scatters.
    assert received["all-reduce"] / 2 + received["reduce-scatter"] == pytest.approx(once, rel=0.05)
