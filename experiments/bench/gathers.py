"""How libtpu moves weights that are cut over fsdp: a stack of MLPs and its gradient, compiled for slices of TPUs.

This is the smallest program with a training's pattern. Layers are scanned, and computed again in the backward pass.
Each layer is gathered to bfloat16 where it runs, and float32 masters are updated in place. The bytes that a chip
receives, against the bytes of the weights, say whether a mesh suits a slice. That takes seconds of compilation instead
of a quarter of an hour, and no TPU.

    PYTHONPATH=.venv/libtpu .venv/bin/python -m experiments.bench.gathers
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.cli_errors import refusing
from experiments.compile_for_pod import topology_devices
from experiments.pod import hlo
from experiments.script import read_flags
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
class Arguments:
    """Compile MLPs for slices and meshes."""

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
    """Slice and mesh of each case, as TOPOLOGY/replica,fsdp,tensor."""
    width: int = 2048
    """Width of the MLPs; their hidden width is four times as much."""
    layers: int = 4
    """MLPs in the stack."""
    tokens: int = 1024
    """Tokens of a row; there is one row for each part that the mesh cuts a batch into."""


def compile_mlps(arguments: Arguments, mesh: Mesh) -> jax.stages.Compiled:
    """Compile a step of gradient descent on the stack for a mesh."""
    spec = mlp_spec(arguments.width, 4 * arguments.width, arguments.width)

    def loss(params: Mlp, x: jax.Array) -> jax.Array:
        @jax.checkpoint
        def layer(x: jax.Array, params: Mlp) -> tuple[jax.Array, None]:
            x = constrain(x, "batch", None, None)
            return x + apply_mlp(gather(params, spec, jnp.bfloat16), x), None

        return jnp.sum(jax.lax.scan(layer, x, params)[0].astype(jnp.float32) ** 2)

    def update(params: Mlp, x: jax.Array) -> Mlp:
        return jax.tree.map(jnp.subtract, params, jax.grad(loss)(params, x))

    with jax.set_mesh(mesh):
        shape = (meshes.config_of(mesh).rows, arguments.tokens, arguments.width)
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=meshes.batch_sharding(mesh))
        params = meshes.abstract(stacked(spec, arguments.layers), mesh)
        return jax.jit(update, donate_argnums=0).lower(params, x).compile()


def main(arguments: Arguments) -> None:
    """Print a line for each case; bad input is one line on stderr and exit code 2."""
    with refusing():
        layers, width = arguments.layers, arguments.width
        weights = layers * 8 * width**2 * 2
        print(f"{layers} mlps of width {width}: {weights / 1e9:.3f} GB in bfloat16; GB received per chip:")
        for case in arguments.cases:
            topology, _, wanted = case.partition("/")
            mesh = make_mesh(MeshConfig.parse(wanted), topology_devices(topology))
            received = hlo.read_cost(compile_mlps(arguments, mesh).as_text() or "").collectives
            told = ", ".join(
                f"{size / 1e9:.3f} {KINDS.get(kind, kind)} among {group}"
                for (kind, group), (_, size) in received
                if size > 1e6
            )
            print(f"{topology}, {wanted}: {told}", flush=True)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
