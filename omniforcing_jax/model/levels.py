"""Modulation at noise levels that are known beforehand: made once for a stream, and looked up in every pass.

A stream's sampler has the same few levels in every block. Their time embeddings take float32 products with large
matrices, and the layers' tables are added to them; none of that depends on the stream.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from omniforcing_jax.config import CrossTimestep, ModelConfig
from omniforcing_jax.model.dual_stream import Rows, add_tables, tables_of
from omniforcing_jax.model.layer_list import is_list
from omniforcing_jax.model.transformer import Modulation, Transformer, embed_levels
from omniforcing_jax.model.view import times_of
from omniforcing_jax.streams import Streams, map_streams


@struct.dataclass
class LevelTable:
    """The modulation of both streams at several noise levels.

    Attributes:
        levels: Streams of Modulation, `[levels, 1, 1, D]` for the head and `[levels, L, 1, 1, rows, D]` for the layers,
            whose tables are added.
    """

    levels: Streams


def make_levels(
    params: Transformer, config: ModelConfig, sigmas: Sequence[float], scalar_sigma: float | None = None
) -> LevelTable:
    """Make the modulation at noise levels, with the scalar levels held at `scalar_sigma`; compile this."""
    scalar = None if scalar_sigma is None else jnp.full((1,), scalar_sigma, jnp.float32)

    def at(sigma: Float[Array, ""]) -> Streams:
        level = jnp.full((1, 1), sigma, jnp.float32)
        made = embed_levels(params, config, Streams(*[times_of(config.cross_timestep, level, level, scalar)] * 2))
        rows = _with_all_tables(params, map_streams(lambda m: m.rows, made))
        return map_streams(lambda m, rows: Modulation(m.embedded, rows), made, rows)

    # A loop, because a program that has every level in it takes seconds to compile.
    return LevelTable(jax.lax.map(at, jnp.asarray(sigmas, jnp.float32)))


def _with_all_tables(params: Transformer, rows: Streams) -> Streams:
    """Add the tables of all layers, stacked [L, ...]."""
    if not is_list(params.layers):
        return jax.vmap(lambda tables: add_tables(tables, rows))(tables_of(params.layers))
    made = (add_tables(tables_of(layer), rows) for layer in params.layers)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)


def look_up(table: LevelTable, config: ModelConfig, index: Streams) -> Streams:
    """Look up the Modulation of each stream where the streams are at these levels, int32 [] each."""
    video, audio = index
    return Streams(
        video=_choose(table.levels.video, config.cross_timestep, video, audio),
        audio=_choose(table.levels.audio, config.cross_timestep, audio, video),
    )


def _choose(levels: Modulation, semantics: CrossTimestep, own: Int[Array, ""], other: Int[Array, ""]) -> Modulation:
    """Take what follows the stream's own level, and what follows the other's (as `view.Times`)."""
    cross = other if semantics is CrossTimestep.CROSS else own
    gate = own if semantics is CrossTimestep.OWN else other
    rows = levels.rows
    return Modulation(levels.embedded[own], Rows(main=rows.main[own], cross=rows.cross[cross], gate=rows.gate[gate]))
