"""Latent upsamplers there and back, in a file of their own and in diffusers' folder; what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from published import SPATIAL, TEMPORAL, save_ltx2, save_upsampler, without_tables
from run import refused, run
from safetensors.numpy import load_file, save_file

from converters.component import DIFFUSERS, UPSAMPLER
from converters.formats.upsampler import COMPONENTS, HEADER, MODEL_CONFIG, infer_config, name_of
from omniforcing_jax.codecs.upsampler_config import (
    LTX2_SPATIAL_UPSAMPLER,
    LTX23_SPATIAL_UPSAMPLER,
    LTX25_TEMPORAL_UPSAMPLER,
    Resampling,
    UpsamplerConfig,
)
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.io.weights import read_config

pytestmark = pytest.mark.usefixtures("quiet")
RATIONAL = dataclasses.replace(SPATIAL, resampling=Resampling.RATIONAL)
WIDE = dataclasses.replace(RATIONAL, scale=1.5)
BOTH = dataclasses.replace(SPATIAL, resampling=Resampling.ALL)
CONFIGS = {"x2": SPATIAL, "x2 rational": RATIONAL, "x1.5": WIDE, "time": TEMPORAL, "both": BOTH}
FOLDERS = {"spatial_upsampler": "latent_upsampler", "temporal_upsampler": "temporal_latent_upsampler"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_file_comes_back_bit_by_bit_and_goes_through_diffusers_as_well(tmp_path, kind):
    config, name = CONFIGS[kind], name_of(CONFIGS[kind])
    file, back, through = (tmp_path / f"{each}.safetensors" for each in ("upscaler", "back", "through"))
    save_upsampler(file, config)
    run("convert", "--from", file, "--out", tmp_path / "ours")
    assert UpsamplerConfig.from_dict(read_config(tmp_path / "ours" / name)) == config
    run("export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", back)
    assert back.read_bytes() == file.read_bytes()
    run("export", "--from", tmp_path / "ours", "--to", "diffusers", "--out", tmp_path / "stock")
    run("convert", "--from", tmp_path / "stock" / FOLDERS[name], "--out", tmp_path / "again")
    run("export", "--from", tmp_path / "again", "--to", "ltx2", "--out", through)
    theirs, ours = load_file(file), load_file(through)
    assert all(theirs[key].tobytes() == ours[key].tobytes() for key in theirs | ours)


def test_a_folder_of_diffusers_comes_back_bit_by_bit(tmp_path):
    save_upsampler(tmp_path / "upscaler.safetensors", RATIONAL)
    run("convert", "--from", tmp_path / "upscaler.safetensors", "--out", tmp_path / "ours")
    run("export", "--from", tmp_path / "ours", "--to", "diffusers", "--out", tmp_path / "stock")
    run("convert", "--from", tmp_path / "stock", "--out", tmp_path / "again")
    run("export", "--from", tmp_path / "again", "--to", "diffusers", "--out", tmp_path / "back")
    for name in ("diffusion_pytorch_model.safetensors", "config.json"):
        assert all((tmp_path / each / "latent_upsampler" / name).is_file() for each in ("stock", "back"))
        stock, back = ((tmp_path / each / "latent_upsampler" / name).read_bytes() for each in ("stock", "back"))
        assert stock == back
    assert list(json.loads((tmp_path / "stock/model_index.json").read_text())) == ["_class_name"]


@pytest.mark.parametrize("table", [HEADER, MODEL_CONFIG], ids=[UPSAMPLER, DIFFUSERS])
@pytest.mark.parametrize(
    "config", [LTX2_SPATIAL_UPSAMPLER, LTX23_SPATIAL_UPSAMPLER, LTX25_TEMPORAL_UPSAMPLER, WIDE, BOTH]
)
def test_a_config_comes_back_as_it_was_written(config, table):
    assert table.read(table.write(config)) == config
    assert UpsamplerConfig.from_dict(config.to_dict()) == config


def test_the_defaults_of_sparse_configs_are_those_of_their_code():
    assert HEADER.read({}) == dataclasses.replace(LTX23_SPATIAL_UPSAMPLER, width=512)
    assert MODEL_CONFIG.read({"_class_name": "LTX2LatentUpsamplerModel"}) == LTX2_SPATIAL_UPSAMPLER


@pytest.mark.parametrize("kind", CONFIGS)
def test_shapes_tell_an_upsampler_without_a_config(kind):
    config = CONFIGS[kind]
    component = next(each for each in COMPONENTS if each.name == name_of(config))
    shapes = {p.source: p.source_shape for p in component.expand(config, UPSAMPLER)}
    if config == WIDE:
        with pytest.raises(ValueError, match=r"fits the scales \[0.75, 1.5\]; a config must say it"):
            infer_config(shapes)
    else:
        assert infer_config(shapes) == config


def test_an_upsampler_is_exported_alone(tmp_path, capsys, monkeypatch):
    without_tables(monkeypatch)
    save_ltx2(tmp_path / "ltx.safetensors")
    files = [save_upsampler(tmp_path / f"{name_of(each)}.safetensors", each) for each in (SPATIAL, TEMPORAL)]
    sources = [argument for file in (tmp_path / "ltx.safetensors", *files) for argument in ("--from", file)]
    run("convert", *sources, "--out", tmp_path / "ours")
    capsys.readouterr()
    export = ["export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", tmp_path / "back.safetensors"]
    line = refused(capsys, *export, "--components", "transformer", "spatial_upsampler")
    assert "LTX-2 has it in a file of its own; give --components with its name alone" in line
    run(*export)
    assert "spatial_upsampler: left out, LTX-2 has it in a file of its own" in capsys.readouterr().out
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "ltx.safetensors").read_bytes()
    for file in files:
        own = tmp_path / f"back-{file.name}"
        run(*export[:-1], own, "--components", file.stem)
        assert own.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": 2}, "header config.dims=2: must be 3, nothing else is supported"),
        ({"spatial_upsample": False}, "spatial_upsample or temporal_upsample must be true"),
        ({"rational_resampler": True, "spatial_scale": 3.0}, "the scale 3.0 must be one of 0.75, 1.5, 2.0, 4.0"),
        ({"mid_channels": 48}, "UpsamplerConfig.width=48: must be a multiple of 32"),
        ({"new_idea": 1}, "header config: unknown keys ['new_idea']"),
        ({"num_blocks_per_stage": 2}, "res_blocks.1.conv1"),
    ],
)
def test_a_config_of_another_network_is_refused_by_key(tmp_path, capsys, change, message):
    file = tmp_path / "upscaler.safetensors"
    header = HEADER.write(SPATIAL) | change
    save_file(load_file(save_upsampler(file)), file, {"config": json.dumps(header)})
    line = refused(capsys, "convert", "--from", file, "--out", tmp_path / "ours")
    assert line.startswith(f"error: {file}: ")
    assert message in line
    assert not (tmp_path / "ours").exists()


def test_a_config_that_the_header_contradicts_is_refused_unless_a_new_one_is_asked_for(tmp_path, capsys):
    back, folder = tmp_path / "back.safetensors", tmp_path / "ours" / name_of(WIDE)
    run("convert", "--from", save_upsampler(tmp_path / "upscaler.safetensors", WIDE), "--out", tmp_path / "ours")
    (tmp_path / "ours/manifest.json").unlink()  # a config that was changed is not compared then
    (folder / "config.json").write_text(json.dumps(read_config(folder) | {"scale": 0.75}))
    command = ("export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", back)
    line = refused(capsys, *command)
    assert f"{folder}: the source's header contradicts the config, spatial_scale=1.5 there and 0.75 here; " in line
    run(*command, "--fresh-header")
    assert HEADER.read(json.loads(open_tensors(back).metadata["config"])) == dataclasses.replace(WIDE, scale=0.75)


def test_a_tensor_of_another_shape_is_refused_by_key(tmp_path, capsys):
    file = tmp_path / "upscaler.safetensors"
    tensors = load_file(save_upsampler(file))
    header = {"config": json.dumps(HEADER.write(SPATIAL))}
    save_file(tensors | {"final_conv.bias": np.zeros(7, np.float32)}, file, header)
    assert "final_conv.bias" in refused(capsys, "convert", "--from", file, "--out", tmp_path / "ours")
