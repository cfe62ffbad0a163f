"""What we export, ltx-core and diffusers load with strict loaders, and compute the same."""

import json

import numpy as np
import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from ltx2_peers import CAPTION, build_core, build_diffusers, get_weights, make_inputs, run_core, run_diffusers
from ltx_core.model.transformer.model_configurator import LTXModelConfigurator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converters.cli import main
from converters.component import LTX2
from converters.formats.transformer import COMPONENT, PREFIX
from omniforcing_jax.config import CrossTimestep, ModelConfig
from omniforcing_jax.pipeline.presets import TINY

NEWER = {"caption_channels": None, "gated_attention": True, "text_adaln": True}


def config_of(newer: bool) -> ModelConfig:
    values = TINY.to_dict() | {"cross_timestep": CrossTimestep.CROSS.value, "caption_channels": CAPTION}
    return ModelConfig.from_dict(values | (NEWER if newer else {}))


@pytest.fixture(scope="module", params=[False, True], ids=["2.0", "2.3"])
def converted(request, tmp_path_factory):
    """A live peer, the folder that its weights were converted into, and its generation."""
    folder, newer = tmp_path_factory.mktemp("export"), request.param
    core = build_core(newer, "split")
    header = json.dumps(COMPONENT.namings[LTX2].table.write(config_of(newer)))
    tensors = {
        PREFIX + name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in get_weights(core).items()
    }
    save_file(tensors, folder / "peer.safetensors", {"config": header})
    assert main(["convert", "--from", str(folder / "peer.safetensors"), "--out", str(folder / "ours")]) == 0
    return core, folder, newer


def export(folder, to, name, *flags):
    out = folder / name
    assert main(["export", "--from", str(folder / "ours"), "--to", to, "--out", str(out), *flags]) == 0
    return out


def load_core(path):
    """Load a file as ltx-core does: model from the header's config, keys without prefix, strictly."""
    with safe_open(path, "pt") as file:
        model = LTXModelConfigurator.from_config(json.loads(file.metadata()["config"])).eval()
    model.load_state_dict({key.removeprefix(PREFIX): value for key, value in load_file(path).items()}, assign=True)
    return model


def test_ltx_core_loads_our_export_strictly_and_computes_the_same(converted, capsys):
    core, folder, newer = converted
    again = load_core(export(folder, "ltx2", "again.safetensors"))
    for a, b in zip(run_core(core, make_inputs(newer)), run_core(again, make_inputs(newer)), strict=True):
        np.testing.assert_array_equal(a, b)
    capsys.readouterr()


def test_permuted_to_interleaved_it_is_still_the_same_function(converted, capsys):
    core, folder, newer = converted
    turned = load_core(export(folder, "ltx2", "turned.safetensors", "--rotary", "interleaved"))
    for a, b in zip(run_core(core, make_inputs(newer)), run_core(turned, make_inputs(newer)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    capsys.readouterr()


def test_diffusers_loads_our_export_strictly_and_computes_the_same(converted, capsys):
    core, folder, newer = converted
    out = export(folder, "diffusers", "pipeline")
    model, report = LTX2VideoTransformer3DModel.from_pretrained(out, subfolder="transformer", output_loading_info=True)
    assert not any(report.values()), report
    inputs, wanted = make_inputs(newer), build_diffusers(core, newer, "split")
    for a, b in zip(run_diffusers(wanted, inputs, True), run_diffusers(model.eval(), inputs, True), strict=True):
        np.testing.assert_array_equal(a, b)
    capsys.readouterr()
