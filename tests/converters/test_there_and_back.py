"""Converted and exported again, a published file is the same file; what a format cannot express is refused."""

import dataclasses
import json

import numpy as np
import pytest
from published import FORCED, NEWER, SMALL, draw_network, save_diffusers, save_ltx2, save_upsampler, without_tables
from run import refused, run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from converters.component import DIFFUSERS
from converters.formats.transformer import COMPONENT
from omniforcing_jax.config import ModelConfig, RotaryKind
from omniforcing_jax.io import weights
from omniforcing_jax.layout import FUSED, PREFIX


def config_of(folder) -> ModelConfig:
    return ModelConfig.from_dict(weights.read_config(folder, "transformer"))


@pytest.fixture(autouse=True)
def _untabled(monkeypatch, quiet):
    without_tables(monkeypatch)


@pytest.mark.parametrize("config", [SMALL, NEWER], ids=["2.0", "2.3"])
def test_an_ltx2_file_comes_back_bit_by_bit(tmp_path, config):
    file, folder, back = tmp_path / "ltx.safetensors", tmp_path / "ours", tmp_path / "back.safetensors"
    save_ltx2(file, config)
    run("convert", "--from", file, "--out", folder)
    assert config_of(folder) == config
    assert "sampler" not in weights.read_config(folder)
    run("export", "--from", folder, "--to", "ltx2", "--out", back)
    assert back.read_bytes() == file.read_bytes()


def test_other_metadata_comes_back_as_well(tmp_path):
    file, folder, back = tmp_path / "ltx.safetensors", tmp_path / "ours", tmp_path / "back.safetensors"
    save_ltx2(file, model_version="2.3.0", license="own")
    run("convert", "--from", file, "--out", folder)
    run("export", "--from", folder, "--to", "ltx2", "--out", back)
    with safe_open(file, "np") as a, safe_open(back, "np") as b:
        assert a.metadata() == b.metadata()


def test_a_diffusers_folder_comes_back_bit_by_bit(tmp_path):
    folder, back = tmp_path / "ours", tmp_path / "back"
    save_diffusers(tmp_path / "pipeline")
    run("convert", "--from", tmp_path / "pipeline", "--out", folder)
    assert config_of(folder) == SMALL
    run("export", "--from", folder, "--to", "diffusers", "--out", back)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (back / name).read_bytes() == (tmp_path / "pipeline" / name).read_bytes()
    configs = [json.loads((root / "transformer/config.json").read_text()) for root in (tmp_path / "pipeline", back)]
    assert configs[0] == configs[1]


def test_shards_are_one_network_and_become_shards_again(tmp_path):
    folder, back, again = tmp_path / "ours", tmp_path / "back", tmp_path / "again"
    tensors = draw_network(FORCED)
    save_file(tensors, tmp_path / "whole.safetensors")
    run("convert", "--from", tmp_path / "whole.safetensors", "--heads", 2, "--out", folder)
    run("export", "--from", folder, "--to", "omniforcing", "--out", back, "--shard-gigabytes", 5e-6)
    assert len(list(back.glob("model-*-of-*.safetensors"))) > 2
    read = {key: value for path in back.glob("*.safetensors") for key, value in load_file(path).items()}
    assert read.keys() == tensors.keys()
    assert all(read[key].tobytes() == value.tobytes() for key, value in tensors.items())
    run("convert", "--from", back, "--heads", 2, "--out", again)
    assert (again / "transformer/model.safetensors").read_bytes() == (
        folder / "transformer/model.safetensors"
    ).read_bytes()


def test_omniforcing_is_supposed_what_its_code_supposes(tmp_path):
    save_file(draw_network(FORCED), tmp_path / "f.safetensors")
    save_file(draw_network(dataclasses.replace(FORCED, sinks=0)), tmp_path / "g.safetensors")
    run("convert", "--from", tmp_path / "f.safetensors", "--heads", 2, "--out", tmp_path / "sinks")
    command = ("convert", "--from", tmp_path / "g.safetensors", "--heads", 2, "--release", "omniforcing")
    run(*command, "--out", tmp_path / "none")
    assert config_of(tmp_path / "sinks") == FORCED
    layouts = [weights.read_config(tmp_path / name)["sampler"]["layout"] for name in ("sinks", "none")]
    assert layouts == [dataclasses.asdict(PREFIX), dataclasses.asdict(FUSED)]


def test_every_supposition_can_be_overridden(tmp_path):
    save_file(draw_network(FORCED), tmp_path / "f.safetensors")
    flags = ("--rotary", "split", "--grid", "float64", "--gate-multiplier", "1000", "--timesteps", "hybrid")
    flags += ("--layout", "fused", "--horizon", 9, "--sigmas", 1, 0.5, 0)
    run("convert", "--from", tmp_path / "f.safetensors", "--heads", 1, *flags, "--out", tmp_path / "ours")
    config, sampler = config_of(tmp_path / "ours"), weights.read_config(tmp_path / "ours")["sampler"]
    assert (config.video.heads, config.gate_multiplier, config.cross_timestep.value) == (1, 1000.0, "hybrid")
    assert (config.rotary.kind.value, config.rotary.grid.value) == ("split", "float64")
    assert (sampler["sigmas"], sampler["horizon_seconds"]) == ([1.0, 0.5, 0.0], 9)


def test_later_sources_replace_component_by_component_and_the_rest_stays(tmp_path):
    folder = tmp_path / "ours"
    save_ltx2(tmp_path / "ltx.safetensors")
    save_file(draw_network(FORCED), tmp_path / "forced.safetensors")
    run("convert", "--from", tmp_path / "ltx.safetensors", "--out", folder)
    before = (folder / "audio_vae/passed.safetensors").stat()
    run("convert", "--from", tmp_path / "forced.safetensors", "--heads", 2, "--out", folder)
    assert config_of(folder) == FORCED
    assert (folder / "audio_vae/passed.safetensors").stat().st_ino == before.st_ino
    assert not list(folder.rglob(".*"))


def test_interleaved_rows_are_the_split_ones_permuted_and_come_back(tmp_path):
    save_ltx2(tmp_path / "ltx.safetensors")
    run("convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path / "ours")
    files = [tmp_path / "turned.safetensors", tmp_path / "back.safetensors"]
    run("export", "--from", tmp_path / "ours", "--to", "ltx2", "--rotary", "interleaved", "--out", files[0])
    run("convert", "--from", files[0], "--out", tmp_path / "turned")
    assert config_of(tmp_path / "turned").rotary.kind is RotaryKind.INTERLEAVED
    run("export", "--from", tmp_path / "turned", "--to", "ltx2", "--rotary", "split", "--out", files[1])
    original, turned, back = (load_file(file) for file in (tmp_path / "ltx.safetensors", *files))
    key = "model.diffusion_model.transformer_blocks.1.video_to_audio_attn.to_k.bias"
    assert turned[key].tobytes() != original[key].tobytes()
    assert {name: value.tobytes() for name, value in back.items()} == {
        name: value.tobytes() for name, value in original.items()
    }


@pytest.mark.parametrize(
    ("to", "flags", "complaint"),
    [
        ("ltx2", (), "sinks=2: LTX-2's header cannot express sink tokens"),
        ("diffusers", (), "sinks=2: diffusers' transformer cannot express sink tokens"),
        ("omniforcing", ("--gate-multiplier", 1000), "gate_multiplier=1000.0: OmniForcing's code reads no config"),
        ("omniforcing", ("--timesteps", "cross"), "cross_timestep='cross': OmniForcing's code reads no config"),
        ("omniforcing", ("--grid", "float64"), "rotary.grid='float64': OmniForcing's"),
    ],
)
def test_what_a_target_cannot_express_is_refused(tmp_path, capsys, to, flags, complaint):
    save_file(draw_network(FORCED), tmp_path / "f.safetensors")
    run("convert", "--from", tmp_path / "f.safetensors", "--heads", 2, *flags, "--out", tmp_path / "ours")
    out = tmp_path / ("back.safetensors" if to == "ltx2" else "back")
    assert complaint in refused(capsys, "export", "--from", tmp_path / "ours", "--to", to, "--out", out)
    assert not out.exists()


def test_a_gate_multiplier_that_the_header_contradicts_is_refused_unless_a_new_one_is_asked_for(tmp_path, capsys):
    save_ltx2(tmp_path / "ltx.safetensors")
    run("convert", "--from", tmp_path / "ltx.safetensors", "--gate-multiplier", 1, "--out", tmp_path / "ours")
    command = ("export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", tmp_path / "back.safetensors")
    assert "transformer.av_ca_timestep_scale_multiplier=1000.0 there and 1.0 here" in refused(capsys, *command)
    run(*command, "--fresh-header")
    with safe_open(tmp_path / "back.safetensors", "np") as file:
        section = json.loads(file.metadata()["config"])["transformer"]
    assert (section["av_ca_timestep_scale_multiplier"], section["connector_num_layers"]) == (1.0, 1)


def test_settings_of_a_student_are_refused_for_a_teacher_and_without_a_network(tmp_path, capsys):
    save_ltx2(tmp_path / "ltx.safetensors")
    command = ("convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path / "ours")
    line = refused(capsys, *command, "--horizon", 9)
    assert "horizon=9: is a student's, and these weights are a teacher; give --layout or --sigmas, too" in line
    command = ("convert", "--from", save_upsampler(tmp_path / "up.safetensors"), "--out", tmp_path / "ours")
    for flag, value in (("layout", "fused"), ("horizon", 9), ("student", "echowm-flash")):
        line = refused(capsys, *command, f"--{flag}", value)
        assert f"{flag}={value}: needs a transformer, the sources have spatial_upsampler" in line
    assert not (tmp_path / "ours").exists()


def test_a_component_without_a_table_is_refused_in_another_naming_but_can_be_left_out(tmp_path, capsys):
    save_ltx2(tmp_path / "ltx.safetensors")
    run("convert", "--from", tmp_path / "ltx.safetensors", "--out", tmp_path / "ours")
    command = ("export", "--from", tmp_path / "ours", "--to", "diffusers", "--out", tmp_path / "back")
    assert "audio_vae has no table for diffusers" in refused(capsys, *command)
    run(*command, "--components", "transformer")
    read = load_file(tmp_path / "back/transformer/diffusion_pytorch_model.safetensors")
    shapes = {p.source: p.source_shape for p in COMPONENT.expand(SMALL, DIFFUSERS)}
    assert {key: value.shape for key, value in read.items()} == shapes
    np.testing.assert_array_equal(
        read["transformer_blocks.1.attn1.norm_q.weight"],
        load_file(tmp_path / "ltx.safetensors")["model.diffusion_model.transformer_blocks.1.attn1.q_norm.weight"],
    )


def test_two_components_that_one_header_cannot_describe_are_refused(tmp_path, capsys):
    plain = dataclasses.replace(FORCED, sinks=0, caption_channels=24)
    save_ltx2(tmp_path / "ltx.safetensors")
    save_file(draw_network(plain), tmp_path / "forced.safetensors")
    sources = ("--from", tmp_path / "ltx.safetensors", "--from", tmp_path / "forced.safetensors")
    flags = ("--release", "omniforcing", "--heads", 2, "--grid", "float64")
    run("convert", *sources, *flags, "--out", tmp_path / "ours")
    command = ("export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", tmp_path / "back.safetensors")
    assert "connectors: rope_type='split', the transformer has 'interleaved'" in refused(capsys, *command)
