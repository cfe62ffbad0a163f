"""A network whose file has no config: told by keys and shapes, by its base, or refused; never a student by default."""

import dataclasses

import numpy as np
import pytest
import torch
from brought import NEWER, PREFIX, SMALL, ltx_core_network, save_base, save_fine_tune, save_part, save_pipeline
from ltx_core.text_encoders.gemma.encoders.encoder_configurator import (
    EMBEDDINGS_PROCESSOR_KEY_OPS,
    EmbeddingsProcessorConfigurator,
)
from published import CODECS, FORCED, draw_network, text_path
from run import refused, run
from safetensors.numpy import load_file, save_file

from converters import missing_config
from converters.component import LTX2
from converters.missing_config import CONNECTORS_2_0, CONNECTORS_2_3, PUBLISHED, TEACHER_2_0
from converters.registry import COMPONENTS
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.io.weights import read_config
from omniforcing_jax.pipeline.presets import LTX2_22B

pytestmark = pytest.mark.usefixtures("quiet")

BARE = dataclasses.replace(FORCED, sinks=0, caption_channels=24)
KEY = f"{PREFIX}transformer_blocks.1.attn1.to_q.weight"


@pytest.fixture
def published(monkeypatch):
    """Take tiny networks for the published ones."""
    tiny = {"transformer": {"2.0": SMALL, "2.3": NEWER}, **{name: {"2.0": each} for name, each in CODECS.items()}}
    monkeypatch.setattr(missing_config, "PUBLISHED", PUBLISHED | tiny)


def convert(out, *files, flags=()):
    run("convert", *(word for file in files for word in ("--from", file)), *flags, "--out", out)
    return out


def config_of(folder):
    return ModelConfig.from_dict(read_config(folder / "transformer"))


def query(folder):
    return open_tensors(folder / "transformer/model.safetensors").read("layers/video/self_attn/q/w")[1]


@pytest.mark.parametrize("config", [SMALL, NEWER])
@pytest.mark.parametrize("flags", [(), ("--release", "ltx2")])
def test_a_fine_tune_takes_the_config_of_the_file_before_it(tmp_path, config, flags):
    base, tuned = save_base(tmp_path / "base.safetensors", config), save_fine_tune(tmp_path / "t.safetensors", config)
    folder = convert(tmp_path / "ours", base, tuned, flags=flags)
    assert config_of(folder) == config
    assert "sampler" not in read_config(folder)
    wanted = ltx_core_network(config, 3).state_dict()[KEY.removeprefix(PREFIX)].float().numpy()
    np.testing.assert_array_equal(query(folder).astype(np.float32), wanted)


def test_a_fine_tune_goes_back_to_ltx_2_with_its_base_s_header(tmp_path):
    base, tuned = save_base(tmp_path / "base.safetensors"), save_fine_tune(tmp_path / "t.safetensors")
    folder = convert(tmp_path / "ours", base, tuned)
    run("export", "--from", folder, "--to", "ltx2", "--components", "transformer", "--out", tmp_path / "b.safetensors")
    assert config_of(convert(tmp_path / "again", tmp_path / "b.safetensors")) == NEWER
    there, back = load_file(tuned), load_file(tmp_path / "b.safetensors")
    assert {key.removeprefix(PREFIX) for key in back} == set(there)
    np.testing.assert_array_equal(back[KEY], there[KEY.removeprefix(PREFIX)])


def test_the_base_may_be_a_pipeline_of_diffusers(tmp_path):
    tuned = save_fine_tune(tmp_path / "t.safetensors", SMALL)
    assert config_of(convert(tmp_path / "ours", save_pipeline(tmp_path / "pipeline"), tuned)) == SMALL


def test_a_base_of_another_generation_is_named(tmp_path, capsys):
    base, tuned = save_base(tmp_path / "base.safetensors", SMALL), save_fine_tune(tmp_path / "t.safetensors")
    line = refused(capsys, "convert", "--from", base, "--from", tuned, "--out", tmp_path / "ours")
    assert f"t.safetensors: transformer has no config; it is not the network of {base}: missing " in line


def test_the_shapes_of_ltx_2_3_are_enough(tmp_path, published):
    folder = convert(tmp_path / "ours", save_fine_tune(tmp_path / "t.safetensors"))
    assert config_of(folder) == NEWER
    assert "sampler" not in read_config(folder)


def test_the_shapes_of_ltx_2_0_are_those_of_its_students(tmp_path, published, capsys):
    tuned = save_fine_tune(tmp_path / "t.safetensors", SMALL)
    line = refused(capsys, "convert", "--from", tuned, "--out", tmp_path / "ours")
    assert "fits LTX-2.0 and its students: give --release ltx2, or --release omniforcing" in line
    assert config_of(convert(tmp_path / "teacher", tuned, flags=("--release", "ltx2"))) == SMALL
    student = convert(tmp_path / "student", tuned, flags=("--release", "omniforcing", "--heads", 4))
    assert config_of(student).rotary.kind == "interleaved"
    assert "sampler" in read_config(student)


@pytest.mark.parametrize("state", ["model", "ema", "state_dict", None])
def test_a_checkpoint_of_any_trainer_is_no_student(tmp_path, capsys, state):
    tensors = ltx_core_network(SMALL).state_dict()
    torch.save(tensors if state is None else {state: tensors}, tmp_path / "model.pt")
    line = refused(capsys, "convert", "--from", tmp_path / "model.pt", "--heads", 4, "--out", tmp_path / "ours")
    assert "model.pt: transformer has no config; it is of LTX-2.0's kind with 2 layers of width 64" in line


def test_sink_tokens_tell_a_student(tmp_path):
    save_file(draw_network(FORCED), tmp_path / "s.safetensors")
    assert "sampler" in read_config(convert(tmp_path / "ours", tmp_path / "s.safetensors", flags=("--heads", 2)))


def test_a_file_that_says_what_it_is_stays_so_beside_a_student(tmp_path):
    save_file(draw_network(BARE), tmp_path / "student.safetensors")
    base = save_base(tmp_path / "base.safetensors", SMALL)
    flags = ("--release", "omniforcing", "--heads", 2)
    folder = convert(tmp_path / "ours", tmp_path / "student.safetensors", base, flags=flags)
    assert config_of(folder) == SMALL
    assert "sampler" not in read_config(folder)
    student = convert(tmp_path / "student", base, tmp_path / "student.safetensors", flags=flags)
    assert config_of(student).video.heads == 2
    assert (student / "connectors/model.safetensors").is_file()


def test_settings_that_no_shape_shows_may_come_from_the_command(tmp_path, capsys):
    save_file(draw_network(BARE), tmp_path / "net.safetensors")
    flags = ("--release", "ltx2", "--heads", 2, "--rotary", "split", "--grid", "float64")
    line = refused(capsys, "convert", "--from", tmp_path / "net.safetensors", *flags, "--out", tmp_path / "ours")
    assert "give --release ltx2 with --heads, --rotary, --grid and --gate-multiplier" in line
    flags = (*flags, "--gate-multiplier", 1000)
    config = config_of(convert(tmp_path / "ours", tmp_path / "net.safetensors", flags=flags))
    assert (config.video, config.rotary.kind, config.gate_multiplier) == (BARE.video, "split", 1000)


@pytest.mark.parametrize("before", ["", "model.", "diffusion_model.", "net.module.diffusion_model.", PREFIX])
def test_whatever_nests_the_keys_the_network_is_found(tmp_path, published, before):
    save_part(tmp_path / "t.safetensors", "transformer", NEWER, before)
    assert config_of(convert(tmp_path / "ours", tmp_path / "t.safetensors")) == NEWER


@pytest.mark.parametrize("before", ["", "first_stage_model.", "vae.", "autoencoder."])
@pytest.mark.parametrize("name", ["video_vae", "audio_vae"])
def test_a_vae_alone_is_told_by_its_convolutions(tmp_path, published, name, before):
    folder = convert(tmp_path / "ours", save_part(tmp_path / "vae.safetensors", name, CODECS[name], before))
    assert type(CODECS[name]).from_dict(read_config(folder / name)) == CODECS[name]


def test_parts_in_files_of_their_own_are_one_model(tmp_path, published):
    files = [save_part(tmp_path / f"{name}.safetensors", name, config) for name, config in CODECS.items()]
    network = save_part(tmp_path / "network.safetensors", "transformer", SMALL, "diffusion_model.", header=True)
    connectors = save_part(tmp_path / "c.safetensors", "connectors", text_path(SMALL), "text_embedding_projection.")
    whole = save_base(tmp_path / "whole.safetensors", SMALL)
    folder = convert(tmp_path / "ours", whole, network, *files, connectors)
    assert sorted(path.parent.name for path in folder.glob("*/model.safetensors")) == sorted(
        ["transformer", "connectors", *CODECS]
    )


def test_a_part_of_other_sizes_without_its_config_is_named(tmp_path, published, capsys):
    config = dataclasses.replace(CODECS["video_vae"], decoder_base_channels=8)
    path = save_part(tmp_path / "vae.safetensors", "video_vae", config)
    line = refused(capsys, "convert", "--from", path, "--out", tmp_path / "ours")
    assert "vae.safetensors: video_vae has no config, and is not LTX-2's; name the file that it was made from" in line
    capsys.readouterr()
    run("inspect", path)
    assert "video_vae has no config, and is not LTX-2's" in capsys.readouterr().out


@pytest.mark.parametrize(("config", "newer"), [(CONNECTORS_2_0, False), (CONNECTORS_2_3, True)])
def test_the_published_connectors_have_the_shapes_of_ltx_core_s(config, newer):
    values = COMPONENTS["connectors"].namings[LTX2].table.write(config)["transformer"]
    values |= {"num_attention_heads": 32, "attention_head_dim": 128} if newer else {}
    values |= {"audio_num_attention_heads": 32, "audio_attention_head_dim": 64} if newer else {}
    values |= {"connector_positional_embedding_max_pos": [4096]}
    if not newer:
        values = {key: value for key, value in values.items() if not key.startswith("caption_proj")}
    with torch.device("meta"):
        module = EmbeddingsProcessorConfigurator.from_config({"transformer": values})
    theirs = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    expanded = COMPONENTS["connectors"].expand(config, LTX2)
    ours = {EMBEDDINGS_PROCESSOR_KEY_OPS.apply_to_key(each.source): each.source_shape for each in expanded}
    assert ours == theirs


def test_the_published_teachers_are_those_of_ltx_2():
    assert TEACHER_2_0.caption_channels == 3840
    assert (LTX2_22B.caption_channels, LTX2_22B.gated_attention, LTX2_22B.text_adaln) == (None, True, True)
    for config in (TEACHER_2_0, LTX2_22B):
        assert (config.layers, config.video.width, config.audio.width, config.gate_multiplier) == (48, 4096, 2048, 1000)
        assert (config.rotary.kind, config.rotary.grid, config.cross_timestep) == ("split", "float64", "cross")
