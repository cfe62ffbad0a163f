"""How libtpu moves weights that are cut over fsdp: a stack of mlps and its gradient, compiled for slices of TPUs.

The smallest program with a training's pattern: layers scanned and computed again in the backward pass, each gathered to
bfloat16 where it runs, float32 masters updated in place. What it receives, by kind of collective, against the bytes of
the weights, says whether a mesh suits a slice in seconds of compilation instead of a quarter of an hour. No TPU needed.

    PYTHONPATH=.venv/libtpu .venv/bin/python -m experiments.bench.gathers
"""

import dataclasses

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh

from experiments import hlo
from experiments.compile_for_pod import topology_devices
from experiments.mains import refusing
from omniforcing_jax.nn.mlp import Mlp, apply_mlp, mlp_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.parallel.sharding import constrain, gather
from omniforcing_jax.parallel.spec import stacked

KINDS = {
    "all-gather": "gathered",
    "reduce-scatter": "scattered",
    "all-reduce": "summed",
    "collective-permute": "permuted",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is compiled."""

    cases: tuple[str, ...] = (
        "v5p:4x4x4/1,64,1",
        "v5p:4x4x4/2,32,1",
        "v5p:4x4x4/4,16,1",
        "v5p:4x4x4/1,16,4",
        "v5p:2x2x4/1,16,1",
        "v5p:4x4x16/1,256,1",
        "v5p:4x4x16/4,64,1",
        "v5p:8x8x4/8,32,1",
        "v6e:8x8/1,64,1",
        "v6e:8x16/1,128,1",
    )
    """Slice and mesh of each."""
    width: int = 2048
    """Of the mlps; four times as much within."""
    layers: int = 4
    tokens: int = 1024
    """Of a row; one row for each part that the mesh cuts a batch into."""


def compile_mlps(config: Config, mesh: Mesh) -> jax.stages.Compiled:
    """Compile a step of gradient descent on the stack for a mesh."""
    spec = mlp_spec(config.width, 4 * config.width, config.width)

    def loss(params: Mlp, x: jax.Array) -> jax.Array:
        @jax.checkpoint
        def layer(x: jax.Array, params: Mlp) -> tuple[jax.Array, None]:
            x = constrain(x, "batch", None, None)
            return x + apply_mlp(gather(params, spec, jnp.bfloat16), x), None

        return jnp.sum(jax.lax.scan(layer, x, params)[0].astype(jnp.float32) ** 2)

    def update(params: Mlp, x: jax.Array) -> Mlp:
        return jax.tree.map(jnp.subtract, params, jax.grad(loss)(params, x))

    with jax.set_mesh(mesh):
        shape = (meshes.config_of(mesh).rows, config.tokens, config.width)
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=meshes.batch_sharding(mesh))
        params = meshes.abstract(stacked(spec, config.layers), mesh)
        return jax.jit(update, donate_argnums=0).lower(params, x).compile()


def main(config: Config) -> None:
    """Print a line for each case; bad input is one line on stderr and exit code 2."""
    with refusing():
        weights = config.layers * 8 * config.width**2 * 2
        print(
            f"{config.layers} mlps of width {config.width}: {weights / 1e9:.3f} GB in bfloat16; GB received per chip:"
        )
        for case in config.cases:
            topology, _, wanted = case.partition("/")
            mesh = make_mesh(MeshConfig.parse(wanted), topology_devices(topology))
            received = hlo.read_cost(compile_mlps(config, mesh).as_text() or "").collectives
            told = ", ".join(
                f"{size / 1e9:.3f} {KINDS.get(kind, kind)} among {group}"
                for (kind, group), (_, size) in received
                if size > 1e6
            )
            print(f"{topology}, {wanted}: {told}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
