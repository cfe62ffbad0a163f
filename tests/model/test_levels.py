"""The table of levels says what time embeddings say, in every pass and whoever drives the crossings."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.levels import look_up, make_levels
from omniforcing_jax.model.positions import make_positions, rotaries
from omniforcing_jax.model.transformer import list_layers, predict
from omniforcing_jax.model.view import Sigmas, bidirectional, hold_scalars
from omniforcing_jax.streams import Streams
from tests.tiny import GRID, MODERN, TINY, random_latents, random_params, random_text

LEVELS = (1.0, 0.6, 0.1)


@pytest.mark.parametrize(
    ("semantics", "has_list", "scalar"),
    [*itertools.product(CrossTimestep, (False, True), (None,)), ("cross", False, 1.0), ("hybrid", True, 1.0)],
)
def test_a_pass_by_the_table_is_a_pass_that_embeds_its_levels(semantics, has_list, scalar):
    config = dataclasses.replace(MODERN if has_list else TINY, cross_timestep=CrossTimestep(semantics))
    params, latents = random_params(config), random_latents(config, 3, 25)
    text = random_text(config, params, sigma=jnp.full(2, 0.6))

    @partial(jax.jit, static_argnames="by_table")
    def run(params, place, by_table):
        sigmas = Sigmas(*(jnp.asarray(LEVELS)[i][None, None] for i in place))
        sigmas = hold_scalars(sigmas, scalar)
        view = bidirectional(config, rotaries(config, make_positions(config, PREFIX.block(1), GRID)), sigmas)
        used = (list_layers(params), text.replace(kv=by_layer(text.kv))) if has_list else (params, text)
        made = look_up(make_levels(used[0], config, LEVELS, scalar), config, place) if by_table else None
        return predict(used[0], config, latents, view, used[1], levels=made).velocity

    place = Streams(jnp.int32(1), jnp.int32(2))
    for found, expected in zip(run(params, place, True), run(params, place, False), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def by_layer(kv):
    return tuple(jax.tree.map(lambda x, n=n: x[n], kv) for n in range(len(kv.video.k)))
