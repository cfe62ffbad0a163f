"""LTX-2.5's text side in two files: prompts read as transformers and diffusers read them, and both files come back."""

import json
import shutil

import numpy as np
import pytest
import split_text
import torch
from lora_files import MODULES, write_lora
from published import NEWER, draw_network
from run import refused, run
from safetensors.numpy import load_file, save_file
from split_text import GEMMA, PROJECTION, save_network, save_text
from tokenizers import Tokenizer

from converters import export
from converters.convert import prepare
from converters.overrides import Overrides
from omniforcing_jax.cli.main import main
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.io.weights import read_config
from omniforcing_jax.pipeline.weights_folder import find_text_encoder
from omniforcing_jax.text.gemma_config import GemmaConfig
from omniforcing_jax.text.store import open_store

pytestmark = pytest.mark.usefixtures("quiet")
PROMPT = "a blue ball and a red ball, über all, and a blue ball"  # longer than the window
TOKENS = 1024


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both files, and the weights folder that they are converted to."""
    root = tmp_path_factory.mktemp("split")
    save_network(root / "network.safetensors")
    save_text(root / "text.safetensors", scale=np.float32)
    run("convert", "--from", root / "network.safetensors", "--from", root / "text.safetensors", "--out", root / "ours")
    return root


@pytest.fixture
def changed(made, tmp_path):
    """A weights folder to change: without its manifest, it is not compared."""
    shutil.copytree(made / "ours", tmp_path / "ours")
    (tmp_path / "ours/manifest.json").unlink()
    return tmp_path / "ours"


@torch.no_grad()
def peer_contexts(prompt):
    """What ltx-core does with a prompt: a start token before it, all hidden states, padding on the left, connectors.

    States of tokens do not depend on padding (tests/parity/test_gemma_parity.py), and those of padding do not count.
    """
    tokenizer = Tokenizer.from_str(split_text.newer_tokenizer())
    ids = torch.tensor([[tokenizer.token_to_id("<bos>"), *tokenizer.encode(prompt).ids]])
    states = split_text.peer_gemma().model(ids, output_hidden_states=True).hidden_states
    free = TOKENS - ids.shape[1]
    padded = torch.nn.functional.pad(torch.stack(states, dim=-1), (0, 0, 0, 0, free, 0))
    mask = torch.cat([torch.zeros(1, free), torch.ones(ids.shape)], dim=1).long()
    return [each.numpy()[0] for each in split_text.peer_connectors()(padded, mask)[:2]]


def test_contexts_are_those_of_transformers_and_diffusers(made, tmp_path):
    (tmp_path / "prompts.txt").write_text(PROMPT, encoding="utf-8")
    command = ["contexts", "--prompts", tmp_path / "prompts.txt", "--weights", made / "ours", "--dtype", "float32"]
    assert main([*map(str, command), "--out", str(tmp_path / "contexts.safetensors")]) == 0
    ours = open_store(tmp_path / "contexts.safetensors").read((PROMPT, ""))
    for row, prompt in enumerate((PROMPT, "")):
        for mine, theirs in zip(ours[:2], peer_contexts(prompt), strict=True):
            assert theirs.std() > 0.5
            np.testing.assert_allclose(np.asarray(mine)[row], theirs, atol=1e-4, rtol=1e-4)
    assert np.abs(np.asarray(ours.video[0] - ours.video[1])).max() > 0.1


def test_both_files_come_back_bit_by_bit(made, tmp_path):
    text, network = tmp_path / "text.safetensors", tmp_path / "network.safetensors"
    run("export", "--from", made / "ours", "--to", "ltx2-text", "--out", text)
    run("export", "--from", made / "ours", "--to", "ltx2", "--out", network)
    assert text.read_bytes() == (made / "text.safetensors").read_bytes()
    assert network.read_bytes() == (made / "network.safetensors").read_bytes()


def test_types_are_kept_as_they_are_in_the_file(made):
    file = open_tensors(made / "ours/text/model.safetensors")
    types = {name: str(entry.dtype) for name, entry in file.entries.items()}
    assert {name for name, dtype in types.items() if dtype == "float32"} == {"layers/scale", "global_layers/scale"}
    assert set(types.values()) == {"float32", "bfloat16"}
    theirs = load_file(made / "text.safetensors")
    for name, row, number in (("global_layers", 1, 11), ("layers", 5, 6)):
        scale = theirs[f"model.layers.{number}.layer_scalar"]
        np.testing.assert_array_equal(file.read(f"{name}/scale")[row], scale)


def test_the_order_of_the_files_does_not_matter_and_a_folder_is_converted_again(made, tmp_path, capsys):
    sources = ("--from", made / "text.safetensors", "--from", made / "network.safetensors")
    run("convert", *sources, "--out", tmp_path / "ours")
    run("convert", *sources, "--out", tmp_path / "ours")
    assert f"connectors: the text projection is from {made / 'text.safetensors'}" in capsys.readouterr().out
    for name in ("text", "connectors"):
        for file in ("model.safetensors", "config.json", "source.json"):
            assert (tmp_path / "ours" / name / file).read_bytes() == (made / "ours" / name / file).read_bytes()


@pytest.mark.long
def test_the_folders_of_transformers_and_diffusers_are_the_same_weights(made, tmp_path):
    root = tmp_path / "published"
    split_text.save_folder(root / "text_encoder")
    split_text.peer_connectors().save_pretrained(root / "connectors")
    sources = ("--from", root / "text_encoder", "--from", root / "connectors")
    run("convert", *sources, "--out", tmp_path / "ours")
    one, other = (open_tensors(folder / "ours/text/model.safetensors") for folder in (made, tmp_path))
    for name in one.entries | other.entries:
        np.testing.assert_array_equal(one.read(name).astype(np.float32), other.read(name).astype(np.float32))
    assert GemmaConfig.from_dict(read_config(tmp_path / "ours", "text")) == GEMMA
    run("export", "--from", tmp_path / "ours", "--to", "diffusers", "--out", tmp_path / "back")
    name = "text_encoder/model.safetensors"
    assert load_file(tmp_path / "back" / name).keys() == load_file(root / name).keys()
    run("export", "--from", tmp_path / "ours", "--to", "ltx2-text", "--out", tmp_path / "text.safetensors")
    packed, theirs = load_file(tmp_path / "text.safetensors"), load_file(made / "text.safetensors")
    assert {key for key in theirs if key not in packed} == {
        key for key in theirs if not key.startswith(("model.", PROJECTION, "tokenizer"))
    }


def test_a_split_folder_goes_to_diffusers_and_keeps_its_version(made, tmp_path):
    run("export", "--from", made / "ours", "--to", "diffusers", "--out", tmp_path / "back", "--components", "text")
    config = json.loads((tmp_path / "back/text_encoder/config.json").read_text())
    assert config["gemma_version"] == "gemma4-12b-ltx-v1"
    sources = ("--from", made / "network.safetensors", "--from", tmp_path / "back/text_encoder")
    run("convert", *sources, "--out", tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again/text" / name).read_bytes() == (made / "ours/text" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "said", "target"),
    [
        ("network", "the text projection is in the text encoder's file, name it with --from, too", "ltx2"),
        ("text", "only the text projection is here; the connectors are in the transformer's file", None),
    ],
)
def test_a_file_alone_passes_its_part_of_the_connectors_through(made, tmp_path, capsys, name, said, target):
    source = made / f"{name}.safetensors"
    run("inspect", source)
    run("convert", "--from", source, "--out", tmp_path / "ours")
    assert capsys.readouterr().out.count(said) == 2
    assert find_text_encoder(tmp_path / "ours") is None
    run("inspect", tmp_path / "ours")
    assert "no connectors" in capsys.readouterr().out
    if target is not None:
        run("export", "--from", tmp_path / "ours", "--to", target, "--out", tmp_path / "back.safetensors")
        assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


def test_a_lora_is_fused_into_the_network_alone_but_not_into_its_part_of_the_connectors(made, tmp_path, capsys):
    network, lora = made / "network.safetensors", write_lora(tmp_path / "lora.safetensors", NEWER)
    run("convert", "--from", network, "--lora", lora, 1, "--out", tmp_path / "ours")
    assert f"transformer: {lora} fused at 1 into {len(MODULES)} tensors" in capsys.readouterr().out
    changed, before = (
        open_tensors(folder / "ours/transformer/model.safetensors").read("layers/video/self_attn/q/w")
        for folder in (tmp_path, made)
    )
    assert [np.array_equal(*rows) for rows in zip(changed, before, strict=True)] == [False, True]
    assert (tmp_path / "ours/connectors/passed.safetensors").is_file()
    module = "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q"
    save_file({f"{module}.lora_{each}.weight": np.ones((6, 6), np.float32) for each in "AB"}, lora)
    line = refused(capsys, "convert", "--from", network, "--lora", lora, 1, "--out", tmp_path / "other")
    assert f"{lora}: {module} changes the connectors, and no --from has them with their config" in line


def test_a_part_is_not_written_over_whole_connectors(made, tmp_path, capsys):
    both = ("--from", made / "network.safetensors", "--from", made / "text.safetensors")
    run("convert", *both, "--out", tmp_path / "ours")
    line = refused(capsys, "convert", *both[2:], "--out", tmp_path / "ours")
    assert "ours/connectors: would lose what" in line
    assert "the connectors are in the transformer's file" in line
    shutil.move(tmp_path / "ours" / "connectors", tmp_path / "teacher_s")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config["components"] = {"connectors": "../teacher_s"}
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    line = refused(capsys, "convert", *both[2:], "--out", tmp_path / "ours")
    assert "teacher_s: would lose what" in line  # connectors that lie in another folder


@pytest.mark.parametrize(
    ("first", "second"), [("network", "text"), pytest.param("text", "network", marks=pytest.mark.long)]
)
def test_a_part_is_not_written_over_the_other_one(made, tmp_path, capsys, first, second):
    first, second = (made / f"{name}.safetensors" for name in (first, second))
    run("convert", "--from", first, "--out", tmp_path / "ours")
    passed = tmp_path / "ours/connectors/passed.safetensors"
    before = passed.read_bytes()
    line = refused(capsys, "convert", "--from", second, "--out", tmp_path / "ours")
    assert f"{tmp_path / 'ours/connectors'}: would lose what {second} has not: " in line
    assert passed.read_bytes() == before
    for sources in ([first], [second, first]):  # the same part again, and both
        prepare(sources, tmp_path / "ours", Overrides())


def test_a_part_does_not_replace_whole_connectors_of_another_format(made, tmp_path, capsys):
    run("export", "--from", made / "ours", "--to", "diffusers", "--components", "connectors", "--out", tmp_path / "b")
    whole, text, network = tmp_path / "b/connectors", made / "text.safetensors", made / "network.safetensors"
    for part, said in ((text, "only the text projection is here"), (network, "the text projection is in the text")):
        line = refused(capsys, "convert", "--from", whole, "--from", part, "--out", tmp_path / "ours")
        assert f"{part}: would replace the whole connectors of {whole}: {said}" in line
        assert not (tmp_path / "ours").exists()
    for sources, where in (((whole, text, network), network), ((text, whole), whole)):
        plan = prepare(sources, tmp_path / "ours", Overrides()).plans["connectors"]
        assert plan.source.where == str(where)
        assert plan.layout.keys() == open_tensors(made / "ours/connectors/model.safetensors").entries.keys()


@pytest.mark.parametrize("order", ["network text tuned", "network tuned text"])
def test_a_network_without_a_header_keeps_the_earlier_config_and_projection(made, tmp_path, order):
    tuned = save_network(tmp_path / "tuned.safetensors", header=False)
    files = {"network": made / "network.safetensors", "text": made / "text.safetensors", "tuned": tuned}
    sources = [word for name in order.split() for word in ("--from", files[name])]
    run("convert", *sources, "--out", tmp_path / "ours")
    for name in ("connectors/model.safetensors", "connectors/config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (made / "ours" / name).read_bytes()


@pytest.mark.parametrize(
    ("network", "text", "complaint"),
    [
        ({"version": {"gemma_version": "v2"}}, {}, "its gemma_version is 'gemma4-12b-ltx-v1', the header of"),
        ({}, {"version": None}, "its gemma_version is None, the header of"),
        ({"version": None, "projection": True}, {}, "is Gemma 4; the header of"),
    ],
)
def test_a_text_model_that_the_network_was_not_trained_with_is_refused(tmp_path, capsys, network, text, complaint):
    sources = [save_network(tmp_path / "a.safetensors", **network), save_text(tmp_path / "b.safetensors", **text)]
    line = refused(capsys, "convert", "--from", sources[0], "--from", sources[1], "--out", tmp_path / "ours")
    assert complaint in line
    assert all(str(path) in line for path in sources)
    assert not (tmp_path / "ours").exists()


def test_a_text_model_is_compared_with_the_network_that_the_folder_has(changed, tmp_path, capsys):
    other = save_text(tmp_path / "b.safetensors", version={"gemma_version": "v9"}, change=without_projection)
    line = refused(capsys, "convert", "--from", other, "--out", changed)
    assert f"{other}: its gemma_version is 'v9', the header of {changed / 'transformer'} says 'gemma4-12b" in line
    older = save_network(tmp_path / "a.safetensors", version=None, projection=True)
    line = refused(capsys, "convert", "--from", older, "--out", changed)
    assert f"{changed / 'text'}: is Gemma 4; the header of {older} has no gemma_source_checkpoint" in line


def test_connectors_say_their_text_model_where_the_network_has_no_header(made, tmp_path, capsys):
    save_file(draw_network(NEWER), tmp_path / "tuned.safetensors")
    save_text(tmp_path / "text.safetensors", version={"gemma_version": "v9"})
    files = (made / "network.safetensors", tmp_path / "tuned.safetensors", tmp_path / "text.safetensors")
    sources = [word for path in files for word in ("--from", path)]
    assert "its gemma_version is 'v9'" in refused(capsys, "convert", *sources, "--out", tmp_path / "ours")


def without_projection(tensors):
    return {key: each for key, each in tensors.items() if not key.startswith(PROJECTION)}


def without(name):
    return lambda tensors: {key: each for key, each in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("model.layers.3.layer_scalar"), "missing model.layers.3.layer_scalar"),
        (without("model.layers.4.self_attn.v_proj.weight"), "missing model.layers.4.self_attn.v_proj.weight"),
        (
            lambda t: t | {"model.layers.5.self_attn.v_proj.weight": t["model.norm.weight"]},
            "unknown model.layers.5.self",
        ),
        (lambda t: t | {"talker.weight": t["model.norm.weight"]}, "unknown talker.weight"),
        (without(f"{PROJECTION}audio_aggregate_embed.bias"), f"missing {PROJECTION}audio_aggregate_embed.bias"),
        (lambda t: t | {"hf_asset__config.json": t["tokenizer_json"]}, "unknown hf_asset__config.json"),
        (
            lambda t: (
                t
                | {
                    "model.layers.0.mlp.up_proj.weight": np.ones((32, 24), np.int8),
                    "model.layers.0.mlp.up_proj.weight_scale": np.ones((32, 1), np.float32),
                    "model.layers.0.mlp.up_proj.comfy_quant": np.frombuffer(
                        b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}', np.uint8
                    ),
                }
            ),
            "int8_tensorwise",
        ),
    ],
)
def test_what_is_wrong_with_the_text_encoder_s_file_is_named(made, tmp_path, capsys, change, complaint):
    save_text(tmp_path / "text.safetensors", change=change)
    sources = ("--from", made / "network.safetensors", "--from", tmp_path / "text.safetensors")
    assert complaint in refused(capsys, "convert", *sources, "--out", tmp_path / "ours")


def test_gemma_4_without_a_config_is_refused_and_not_taken_for_gemma_3(tmp_path, capsys):
    save_file(split_text.gemma_tensors(), tmp_path / "gemma.safetensors")
    line = refused(capsys, "convert", "--from", tmp_path / "gemma.safetensors", "--out", tmp_path / "ours")
    assert "is a Gemma 4 text model without gemma_config in its header" in line


def test_the_text_file_needs_gemma_4_and_connectors(made, tmp_path, capsys):
    run("convert", "--from", made / "text.safetensors", "--out", tmp_path / "alone")
    command = ("export", "--to", "ltx2-text", "--out", tmp_path / "back.safetensors", "--from")
    assert "has no connectors with a config" in refused(capsys, *command, tmp_path / "alone")
    assert "needs text and connectors" in refused(capsys, *command, made / "ours", "--components", "text")


def test_a_config_that_the_text_file_contradicts_is_refused_unless_a_new_header_is_asked_for(changed, tmp_path, capsys):
    config = read_config(changed, "text")
    (changed / "text/config.json").write_text(json.dumps(config | {"window": 9}))
    command = ("export", "--from", changed, "--to", "ltx2-text", "--out", tmp_path / "back.safetensors")
    line = refused(capsys, *command)
    assert f"{changed / 'text'}: the source's header contradicts the config, " in line
    assert "text_config.sliding_window=8 there and 9 here; " in line
    assert "--fresh-header" in line
    run(*command, "--fresh-header")
    metadata = open_tensors(tmp_path / "back.safetensors").metadata
    written = json.loads(metadata["gemma_config"])
    assert written["text_config"]["sliding_window"] == 9
    assert written["gemma_version"] == "gemma4-12b-ltx-v1"
    assert written["vision_config"] == split_text.PARTS["vision_config"]


def test_a_file_that_ltx_core_asks_for_and_that_is_missing_is_named(changed, tmp_path):
    for name in ("tokenizer_config", "processor_config"):
        (changed / f"text/{name}.json").unlink()
    notes = export.prepare(changed, "ltx2-text", tmp_path / "back.safetensors").notes
    files = "hf_asset__tokenizer_config.json, hf_asset__processor_config.json"
    assert f"text: ltx-core also reads {files}, which {changed / 'text'} has not" in notes
