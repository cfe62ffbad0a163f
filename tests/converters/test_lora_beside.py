"""LoRA files read for use beside a network: what they change equals what is fused, in every spelling."""

import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import MODULES, draw_lora, fuse
from safetensors.numpy import save_file
from tiny import MODERN, random_params

from converters.component import DIFFUSERS, LTX2
from converters.formats.transformer import COMPONENT, PREFIX
from converters.lora.beside import read_beside
from omniforcing_jax.io.weights import name_leaves
from omniforcing_jax.model.lora import attach_loras
from omniforcing_jax.nn.linear import project
from omniforcing_jax.nn.stack import take_layer

SPELLINGS = {
    "diffusion_model": lambda key: f"diffusion_model.{key}",
    "model.diffusion_model": lambda key: f"model.diffusion_model.{key}",
    "bare": lambda key: key,
    "lora_unet": lambda key: f"lora_unet_{underscored(key)}",
    "lycoris": lambda key: f"lycoris_{underscored(key)}",
    "lora_A": lambda key: key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"),
    "adapter": lambda key: key.replace("lora_down", "lora_A.default").replace("lora_up", "lora_B.default"),
}


def underscored(key: str) -> str:
    module, dot, role = key.partition(".lora_") if ".lora_" in key else key.rpartition(".alpha")
    return f"{module.replace('.', '_')}{dot}{role}"


def as_diffusers(key: str) -> str:
    pairs = zip(COMPONENT.expand(MODERN, LTX2), COMPONENT.expand(MODERN, DIFFUSERS), strict=True)
    names = {a.source.removeprefix(PREFIX).removesuffix(".weight"): b.source.removesuffix(".weight") for a, b in pairs}
    module = next(module for module in MODULES if key.startswith(f"{module}."))
    return f"transformer.{names[module]}{key.removeprefix(module)}"


def changes(path):
    """What a file changes by native name, in full, each of its matrices once."""
    factors = read_beside(MODERN, path)
    return {
        name: np.einsum("...or,...r,...ri->...oi", f.up, f.scale, f.down).astype(np.float32)
        for name, f in factors.items()
    }


@pytest.mark.parametrize("spelling", [*SPELLINGS, "diffusers"])
def test_the_factors_of_a_file_are_what_is_fused(tmp_path, spelling):
    spell = as_diffusers if spelling == "diffusers" else SPELLINGS[spelling]
    path = tmp_path / "lora.safetensors"
    save_file({spell(key): value for key, value in draw_lora(MODERN).items()}, path)
    base = random_params(MODERN)
    fused, before, added = name_leaves(fuse(MODERN, base, (path, 1.0))), name_leaves(base), changes(path)
    assert len(added) == len({name.split(".", 2)[-1] if name[0] == "t" else name for name in MODULES})
    for name, value in fused.items():
        np.testing.assert_allclose(value, before[name] + added.get(name, np.float32(0)), atol=1e-5, err_msg=name)


def test_changes_of_biases_are_ranks_that_count_whatever_the_input_is(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "lora.safetensors"
    tensors = draw_lora(MODERN, modules=["patchify_proj", "transformer_blocks.1.attn1.to_q"])
    width = MODERN.video.width
    tensors = {key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): x for key, x in tensors.items()}
    for key in ("patchify_proj.lora_B.bias", "transformer_blocks.0.attn1.to_k.diff_b"):
        tensors[key] = rng.normal(size=width).astype(np.float32)
    save_file(tensors, path)
    base = random_params(MODERN)
    fused, ours = fuse(MODERN, base, (path, 0.5)), attach_loras(base, read_beside(MODERN, path), (0.5,), jnp.float32)
    for one, other in zip(_linears(ours), _linears(fused), strict=True):
        x = jnp.asarray(rng.normal(size=(1, 2, other.shape[1])), jnp.float32)
        np.testing.assert_allclose(project(one, x), project(other, x), atol=1e-4)


def _linears(params):
    attentions = [take_layer(params.layers, layer).video.self_attn for layer in range(MODERN.layers)]
    return [params.video.patchify, *(each for p in attentions for each in (p.q, p.k, p.v))]


REFUSED = {
    "is not in the transformer of the sources": {"diffusion_model.attn9.to_q.lora_A.weight": (2, 8)},
    "changes the connectors, not the transformer; fuse it with `convert --lora`": {
        "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.lora_A.weight": (2, 8)
    },
    "patchify_proj.diff is no change of low rank; fuse it with `convert --lora`": {"patchify_proj.diff": (8, 8)},
    "missing patchify_proj.lora_B.weight": {"patchify_proj.lora_A.weight": (2, 8)},
    "is of a DoRA adapter": {"patchify_proj.dora_scale": (8,)},
    "the change of patchify_proj has shape (8, 9), video/patchify/w has": {"patchify_proj.lora_A.weight": (2, 9)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_beside_a_network_is_refused_by_name(tmp_path, message):
    tensors = {key: np.zeros(shape, np.float32) for key, shape in REFUSED[message].items()}
    if "missing" not in message:
        tensors |= {k.replace("_A.", "_B."): np.zeros((8, 2), np.float32) for k in tensors if "_A." in k}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError) as refusal:
        read_beside(MODERN, tmp_path / "lora.safetensors")
    assert message in str(refusal.value)
    assert str(tmp_path / "lora.safetensors") in str(refusal.value)
