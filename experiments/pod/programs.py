"""The programs of a training and of a stream, lowered for a mesh whose devices need not be there.

Shapes, types and shardings replace weights, states and batches, so nothing here holds a weight. Recipes are those of
stage2_ode.py and stage3_self_forcing.py.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from experiments import ltx2_regression, stage2_ode, stage3_self_forcing
from experiments.pod.plan import Program
from omniforcing_jax import rollout
from omniforcing_jax.config import CrossTimestep, ModelConfig, SamplerConfig
from omniforcing_jax.distill.generator_critic import Frozen, self_forcing_of
from omniforcing_jax.distill.ode import OdeConfig
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.eight_bits import EightBitCache
from omniforcing_jax.model.transformer import keep_projections, list_layers, transformer_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.sharding import activation_spec
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.stream.camera.path import standing_positions
from omniforcing_jax.text.contexts import TextContexts
from omniforcing_jax.train import gradient, optimiser, state, step

DTYPE = jnp.dtype(jnp.bfloat16)
OF_CACHES = (None, "batch", None, "heads", None)  # axes of keys and values [L, B, S, N, H]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is lowered.

    Attributes:
        preset: Sizes of network and pictures, and what makes the network a student.
        batch: Rows in all.
        text: Tokens of a prompt.
        cache: What of the student's cache is in eight bits.
    """

    preset: PipelineConfig
    batch: int
    text: int
    cache: EightBitCache | None = None

    @property
    def sampler(self) -> SamplerConfig:
        """What makes the network a student.

        Raises:
            ValueError: If it is none.
        """
        if self.preset.sampler is None:
            raise ValueError(f"--preset {self.preset.name}: is not a causal student, which every program here needs")
        return self.preset.sampler

    @property
    def static(self) -> StaticConfig:
        """What is static in the programs of the student."""
        grid = self.preset.grid(*self.preset.resolution)
        return StaticConfig(self.preset.model, self.sampler, grid, DTYPE, self.cache)


def lower(program: Program, subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    """Lower a program for a mesh, which must be the one in use (`jax.set_mesh`)."""
    if program is Program.STREAM:
        return _stream_block(subject, mesh)
    return _stage2(subject, mesh) if program is Program.STAGE2 else _stage3(program, subject, mesh)


def _stage2(subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    model, rule = subject.preset.model, optimiser.optimiser(stage2_ode.CONFIG.optimiser)
    specs = transformer_spec(model)
    trainer = jax.eval_shape(lambda params: state.create(params, rule, 0, ema=False), meshes.abstract(specs, mesh))
    loss = gradient.of_loss(ltx2_regression.make_loss(subject.preset, OdeConfig(), DTYPE))
    update = step.make_step(loss, rule, site_of=gradient.network_site)
    return update.lower(meshes.abstract_beside(trainer, specs, mesh), _batch(subject, mesh, pairs=True))


def _stage3(program: Program, subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    recipe, model = stage3_self_forcing.Config(), subject.preset.model
    config = dataclasses.replace(recipe.self_forcing, seconds=subject.sampler.horizon_seconds)
    scorer = dataclasses.replace(model, sinks=0, cross_timestep=CrossTimestep.CROSS)  # as LTX-2 is published
    method = self_forcing_of(subject.static, scorer, config, remat=keep_projections)
    optimisers = recipe.optimisers()
    update = step.make_distill_step(method, optimisers, recipe, site_of=gradient.network_site)
    specs, of_scorer = transformer_spec(model), transformer_spec(scorer)
    networks = meshes.abstract(specs, mesh), meshes.abstract(of_scorer, mesh)
    trainer = jax.eval_shape(lambda g, c: state.create_pair(g, c, optimisers, 0), *networks)
    frozen = Frozen(meshes.abstract(of_scorer, mesh, DTYPE), _contexts(subject, 1, mesh))
    # Both networks are declared alike but for the sinks, which are whole on every device.
    chosen = update.generator if program is Program.STAGE3 else update.critic
    return chosen.lower(meshes.abstract_beside(trainer, specs, mesh), _batch(subject, mesh, pairs=False), frozen)


def _stream_block(subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    return jax.jit(late_block(subject.static), donate_argnums=0).lower(*late_block_inputs(subject, mesh))


class BlockInputs(NamedTuple):
    """Shapes of what the programs of a late block take."""

    cache: Any
    params: Any
    prompt: Any
    keys: Any
    positions: Any


def late_block_inputs(subject: Subject, mesh: Mesh, *, has_list: bool = False) -> BlockInputs:
    """Return the shapes and shardings of a late block's inputs; the cache is full.

    Args:
        subject: What is lowered.
        mesh: Where.
        has_list: Whether the network is a list of layers, as on one GPU.
    """
    static, batch = subject.static, subject.batch
    params = meshes.abstract(transformer_spec(static.model), mesh, DTYPE)
    if has_list:
        params = whole(jax.eval_shape(list_layers, params), mesh)
    video, audio, mask = _contexts(subject, batch, mesh)
    prompt = jax.eval_shape(partial(rollout.make_prompt_kv, static=static), params, video, audio, mask)
    cache = jax.eval_shape(lambda: rollout.make_cache(static, batch, has_list))
    table = jax.eval_shape(partial(rollout.stream_network, static=static), params).table
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    positions = standing_positions(static, cache.video, static.sampler.past_blocks + 1)
    return BlockInputs(
        cache=_of_cache(cache, mesh),
        params=rollout.StreamNetwork(params=params, table=whole(table, mesh)),
        prompt=_of_cache(prompt, mesh),
        keys=whole(keys, mesh),
        positions=whole(positions, mesh),
    )


def late_block(static: StaticConfig) -> Callable[..., Any]:
    """Return a late block: every denoise step, then the clean pass that is committed into the donated cache."""

    def block(cache: Any, params: Any, prompt: Any, keys: Any, positions: Any):
        latents, cache = rollout.denoise_block(params, cache, prompt, keys, positions, static=static)
        return rollout.commit_block(params, cache, prompt, keys, latents, positions, static=static), latents

    return block


def _of_cache(tree: PyTree, mesh: Mesh) -> PyTree:
    """Cut keys and values by rows and heads, as the network constrains them; the rest is whole."""

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        if len(leaf.shape) != len(OF_CACHES):
            return whole(leaf, mesh)
        axes = activation_spec(leaf.shape, OF_CACHES, mesh.abstract_mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, axes))

    return jax.tree.map(place, tree)


def whole(tree: PyTree, mesh: Mesh) -> PyTree:
    """Return shapes whose arrays are whole on every device."""

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=meshes.replicated(mesh))

    return jax.tree.map(place, tree)


def _contexts(subject: Subject, rows: int, mesh: Mesh) -> TextContexts:
    """Text features: of a batch cut by its rows, of one prompt whole."""
    place = meshes.batch_sharding(mesh) if rows % meshes.config_of(mesh).rows == 0 else meshes.replicated(mesh)
    channels = subject.preset.context_widths
    video, audio = (_array((rows, subject.text, width), "bfloat16", place) for width in channels)
    return TextContexts(video, audio, _array((rows, subject.text), "int32", place))


def _batch(subject: Subject, mesh: Mesh, *, pairs: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as the stores of contexts and of pairs give it."""
    place, rows = meshes.batch_sharding(mesh), subject.batch
    contexts = _contexts(subject, rows, mesh)
    batch = {
        "context_video": contexts.video,
        "context_audio": contexts.audio,
        "context_mask": _array((rows, subject.text), "bool", place),
    }
    if not pairs:
        return batch
    model, sampler = subject.preset.model, subject.sampler
    clip = sampler.layout.blocks(latent_frames(sampler.layout.frames_for(sampler.horizon_seconds)))[-1]
    per_frame = subject.static.grid[0] * subject.static.grid[1]
    entries = rows, len(sampler.sigmas)
    video = (*entries, clip.video_end * per_frame, model.video.latent_channels)
    audio = (*entries, clip.audio_end, model.audio.latent_channels)
    return {**batch, "video": _array(video, "float16", place), "audio": _array(audio, "float16", place)}


def _array(shape: tuple[int, ...], dtype: str, sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)


def shortened(preset: PipelineConfig, layers: int | None) -> PipelineConfig:
    """Return a preset with fewer layers, for trying; None leaves all."""
    if layers is None:
        return preset
    model: ModelConfig = dataclasses.replace(preset.model, layers=layers)
    return dataclasses.replace(preset, model=model)
