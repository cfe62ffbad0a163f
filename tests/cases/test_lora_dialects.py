"""LoRAs as diffusers, PEFT, LyCORIS, musubi and ComfyUI write them: fused as the library itself fuses, or refused."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from lycoris import LycorisNetwork, create_lycoris
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from published import NEWER, SMALL, draw_network, save_ltx2, text_path
from run import refused, run
from safetensors.numpy import load_file, save_file

from converters.component import DIFFUSERS, LTX2
from converters.formats import connectors, transformer
from converters.lora.keys import find_file
from converters.lora.names import Place, find_place, list_places
from converters.open_source import list_components
from converters.overrides import Overrides
from converters.plan import plan_component
from omniforcing_jax.io.tensor_file import open_tensors

pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT doubts the shapes of biases
PREFIX = transformer.PREFIX
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "audio_proj_in", "linear_1"]
QUERY, MLP, CROSS = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.0.proj", "audio_to_video_attn.to_v"
GATE = "transformer_blocks.1.attn1.to_gate_logits"
FILE = "ltx.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """LTX-2's file with float32 weights and its connectors, and the weights by original key."""
    folder = tmp_path_factory.mktemp("base")
    tensors = draw_network(SMALL, dtype=np.float32) | draw_network(
        text_path(SMALL), component=connectors.COMPONENT, dtype=np.float32, seed=1
    )
    save_ltx2(folder / FILE, tensors=tensors)
    return folder / FILE, tensors


@pytest.fixture
def network(base):
    """Diffusers' network with the same weights."""
    model = LTX2VideoTransformer3DModel.from_config(transformer.COMPONENT.namings[DIFFUSERS].table.write(SMALL))
    named = {theirs: torch.from_numpy(base[1][ours]) for ours, theirs in pair_names(DIFFUSERS)}
    model.load_state_dict(named)
    return model


def pair_names(naming, config=SMALL):
    """Pair the original keys of the network with another naming's."""
    expand = transformer.COMPONENT.expand
    return [(a.source, b.source) for a, b in zip(expand(config, LTX2), expand(config, naming), strict=True)]


def fuse(source, lora, folder, strength=1.0):
    """Convert with a LoRA; returns all weights by original key."""
    run("convert", "--from", source, "--lora", lora, strength, "--out", folder)
    result = {}
    for component, config in ((transformer.COMPONENT, SMALL), (connectors.COMPONENT, text_path(SMALL))):
        file = open_tensors(folder / component.name / "model.safetensors")
        for place in component.expand(config, LTX2):
            result[place.source] = (
                file.read(place.native) if place.layer is None else file.view(place.native, place.layer)
            )
    return result


def compare(ours, model, strength=1.0, before=None):
    """Compare all weights with those of a diffusers network; `before` are the weights without the LoRA."""
    theirs = {key.replace(".base_layer.", "."): value.numpy() for key, value in model.state_dict().items()}
    for original, name in pair_names(DIFFUSERS):
        wanted = theirs[name]
        if before is not None:
            wanted = before[original] + strength * (wanted - before[original])
        np.testing.assert_allclose(ours[original], wanted, rtol=1e-5, atol=1e-5, err_msg=name)


def add_adapter(network, **settings):
    """Give a network a random LoRA; returns its config."""
    torch.manual_seed(3)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "init_lora_weights": False, "target_modules": TARGETS} | settings)
    network.add_adapter(config)
    return config


def save_as_diffusers(network, folder, with_metadata=True):
    """Save a network's LoRA as diffusers' training scripts do; returns the file."""
    metadata = network.peft_config["default"].to_dict() if with_metadata else None
    LTX2Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(network),
        transformer_lora_adapter_metadata=metadata,
    )
    return folder / "pytorch_lora_weights.safetensors"


PATTERNS = {
    "alpha_8_of_rank_4": {},
    "rank_stabilised": {"use_rslora": True},
    "ranks_and_alphas_by_pattern": {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"^proj_in": 3, r"attn2.to_\w": 1}},
    "biases": {"lora_bias": True},
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_lora_saved_by_diffusers_is_fused_as_diffusers_fuses_it(base, network, tmp_path, capsys, kind):
    before = {key: value.copy() for key, value in base[1].items()}
    add_adapter(network, **PATTERNS[kind])
    lora = save_as_diffusers(network, tmp_path / "lora")
    ours = fuse(base[0], lora, tmp_path / "ours", 0.5)
    if kind == "alpha_8_of_rank_4":
        modules = {key.partition(".lora_")[0] for key in load_file(lora)}
        assert f"scale 2 of {len(modules)} modules, lora_adapter_metadata" in capsys.readouterr().out
    network.fuse_lora()
    compare(ours, network, 0.5, before)


def test_a_lone_network_s_lora_has_its_settings_without_prefix(base, network, tmp_path):
    add_adapter(network)
    network.save_lora_adapter(tmp_path)
    ours = fuse(base[0], tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "ours")
    network.fuse_lora()
    compare(ours, network)


def test_a_lora_without_any_alpha_counts_once_as_diffusers_loads_it_and_that_is_said(base, network, tmp_path, capsys):
    add_adapter(network)
    lora = save_as_diffusers(network, tmp_path / "lora", with_metadata=False)
    ours = fuse(base[0], lora, tmp_path / "ours")
    assert "scale 1 of" in (told := capsys.readouterr().out)
    assert "no alpha, so 1 as in ltx-core, diffusers and ComfyUI" in told
    network.delete_adapters("default")
    network.load_lora_adapter({key: torch.from_numpy(value) for key, value in load_file(lora).items()})
    network.fuse_lora()
    compare(ours, network)


def test_a_lora_saved_by_peft_takes_its_scale_from_the_config_beside_it(base, network, tmp_path, capsys):
    torch.manual_seed(3)
    settings = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=TARGETS)
    wrapped = get_peft_model(network, settings)
    wrapped.save_pretrained(tmp_path / "lora")
    lora = tmp_path / "lora/adapter_model.safetensors"
    ours = fuse(base[0], lora, tmp_path / "ours")
    merged = wrapped.merge_and_unload()
    compare(ours, merged)
    compare(fuse(base[0], tmp_path / "lora", tmp_path / "again"), merged)
    (tmp_path / "lora/adapter_config.json").unlink()
    line = refused(capsys, "convert", "--from", base[0], "--lora", lora, 1, "--out", tmp_path / "other")
    assert "PEFT keeps the scale in adapter_config.json; put that file beside this one" in line


OTHER_KINDS = {
    "DoRA": lambda: LoraConfig(use_dora=True, target_modules=["to_q"]),
    "LoHa": lambda: LoHaConfig(target_modules=["to_q"]),
    "LoKr": lambda: LoKrConfig(target_modules=["to_q"]),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_an_adapter_that_peft_saves_and_that_is_no_plain_lora_is_refused_by_name(base, network, tmp_path, capsys, kind):
    get_peft_model(network, OTHER_KINDS[kind]()).save_pretrained(tmp_path / "lora")
    lora = tmp_path / "lora/adapter_model.safetensors"
    line = refused(capsys, "convert", "--from", base[0], "--lora", lora, 1, "--out", tmp_path / "ours")
    assert f"is of a {kind} adapter; only plain LoRA is fused" in line
    assert not (tmp_path / "ours").exists()


def test_a_lora_that_changed_the_base_weights_is_refused(base, network, tmp_path, capsys):
    add_adapter(network, target_modules=["to_q"])
    network.peft_config["default"].init_lora_weights = "pissa"  # without the decomposition that it asks for
    lora = save_as_diffusers(network, tmp_path / "lora")
    line = refused(capsys, "convert", "--from", base[0], "--lora", lora, 1, "--out", tmp_path / "ours")
    assert "init_lora_weights='pissa' changes the base weights" in line


LYCORIS = {  # prefix of the names, and what is made
    "lycoris": {"algo": "lora"},
    "lora_unet": {"algo": "lora"},
    "lora_transformer": {"algo": "full"},
}


@pytest.mark.parametrize("prefix", LYCORIS)
def test_names_with_underscores_are_fused_as_lycoris_merges_them(base, network, tmp_path, monkeypatch, prefix):
    monkeypatch.setattr(LycorisNetwork, "LORA_PREFIX", prefix)
    monkeypatch.setattr(
        LycorisNetwork, "TARGET_REPLACE_MODULE", ["LTX2VideoTransformerBlock", "LTX2AdaLayerNormSingle"]
    )
    torch.manual_seed(3)
    made = create_lycoris(network, 1.0, linear_dim=4, linear_alpha=3, **LYCORIS[prefix])
    made.apply_to()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    made.save_weights(str(tmp_path / "lora.safetensors"), None, {"ss_network_module": "lycoris.kohya"})
    made.restore()
    assert all(key.startswith(f"{prefix}_") for key in load_file(tmp_path / "lora.safetensors"))
    ours = fuse(base[0], tmp_path / "lora.safetensors", tmp_path / "ours")
    made.merge_to(1.0)
    compare(ours, network)


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("loha", "LoHa"), ("lokr", "LoKr"), ("boft", "OFT"), ("glora", "GLoRA")]
)
def test_what_lycoris_makes_besides_is_refused_by_name(base, network, tmp_path, capsys, algorithm, kind):
    made = create_lycoris(network.transformer_blocks[0].attn1, 1.0, linear_dim=2, algo=algorithm)
    made.apply_to()
    made.save_weights(str(tmp_path / "l.safetensors"), None, None)
    line = refused(
        capsys, "convert", "--from", base[0], "--lora", tmp_path / "l.safetensors", 1, "--out", tmp_path / "o"
    )
    assert f"is of a {kind} adapter" in line


def draw_pairs(tensors, modules, rank=4):
    """Draw both factors for modules by their original names."""
    rng = np.random.default_rng(5)
    shapes = {module: tensors[f"{PREFIX}{module}.weight"].shape for module in modules}
    return {
        module: [rng.normal(size=size).astype(np.float32) for size in ((rank, columns), (rows, rank))]
        for module, (rows, columns) in shapes.items()
    }


MUSUBI = [QUERY, "transformer_blocks.0.attn1.to_out.0", f"transformer_blocks.1.{CROSS}", MLP, "patchify_proj"]


@pytest.mark.parametrize(
    "spell",
    [
        lambda module: f"lora_unet_{module.replace('.', '_')}",
        lambda module: f"lora_unet_model_{module.replace('.', '_')}",
        lambda module: f"diffusion_model.{module}",
        lambda module: f"transformer.{module}",
        lambda module: module,
    ],
    ids=["lora_unet", "lora_unet_model", "diffusion_model", "transformer", "bare"],
)
def test_a_lora_of_musubi_is_fused_at_alpha_over_rank(base, tmp_path, spell):
    tensors = {}
    pairs = draw_pairs(base[1], MUSUBI)
    for module, (down, up) in pairs.items():
        name = spell(module)
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": np.array(2, np.float32),
        }
    save_file(tensors, tmp_path / "lora.safetensors")
    ours = fuse(base[0], tmp_path / "lora.safetensors", tmp_path / "ours")
    for key, value in base[1].items():
        down, up = pairs.get(key.removeprefix(PREFIX).removesuffix(".weight"), (None, None))
        wanted = value if down is None else value + 0.5 * up @ down
        np.testing.assert_allclose(ours[key], wanted, rtol=1e-5, atol=1e-5, err_msg=key)


CONNECTORS = {  # how a LoRA names the connectors' modules, and their original names
    "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q": (
        f"{PREFIX}video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q"
    ),
    "lora_unet_embeddings_connector_transformer_1d_blocks_0_attn1_to_q": (
        f"{PREFIX}video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q"
    ),
    "lora_unet_audio_embeddings_connector_transformer_1d_blocks_0_ff_net_2": (
        f"{PREFIX}audio_embeddings_connector.transformer_1d_blocks.0.ff.net.2"
    ),
    "connectors.audio_connector.transformer_blocks.0.attn1.to_out.0": (
        f"{PREFIX}audio_embeddings_connector.transformer_1d_blocks.0.attn1.to_out.0"
    ),
    "text_embedding_projection.aggregate_embed": "text_embedding_projection.aggregate_embed",
    "connectors.text_proj_in": "text_embedding_projection.aggregate_embed",
}


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_lora_may_change_the_connectors_and_the_text_projection(base, tmp_path, capsys, name):
    key = f"{CONNECTORS[name]}.weight"
    rows, columns = base[1][key].shape
    rng = np.random.default_rng(0)
    down, up = (rng.normal(size=size).astype(np.float32) for size in ((2, columns), (rows, 2)))
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    ours = fuse(base[0], tmp_path / "lora.safetensors", tmp_path / "ours")
    np.testing.assert_allclose(ours[key], base[1][key] + up @ down, rtol=1e-5, atol=1e-5)
    changed = [each for each in ours if not np.array_equal(ours[each], base[1][each])]
    assert changed == [key]
    only = {each: value for each, value in base[1].items() if "connector" not in each and "text_emb" not in each}
    save_ltx2(tmp_path / "only.safetensors", tensors=only)
    lora = tmp_path / "lora.safetensors"
    line = refused(
        capsys, "convert", "--from", tmp_path / "only.safetensors", "--lora", lora, 1, "--out", tmp_path / "o"
    )
    assert "changes the connectors, and no --from has them" in line


def test_whole_changes_of_comfyui_are_added_to_weights_biases_norms_and_tables(base, tmp_path):
    changes = {
        f"diffusion_model.{QUERY}.diff": f"{QUERY}.weight",
        f"diffusion_model.{QUERY}.diff_b": f"{QUERY}.bias",
        "diffusion_model.transformer_blocks.1.attn2.q_norm.w_norm": "transformer_blocks.1.attn2.q_norm.weight",
        "diffusion_model.transformer_blocks.0.scale_shift_table.diff": "transformer_blocks.0.scale_shift_table",
    }
    rng = np.random.default_rng(0)
    tensors = {key: rng.normal(size=base[1][PREFIX + name].shape).astype(np.float32) for key, name in changes.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    ours = fuse(base[0], tmp_path / "lora.safetensors", tmp_path / "ours", 0.5)
    for key, name in changes.items():
        np.testing.assert_allclose(ours[PREFIX + name], base[1][PREFIX + name] + 0.5 * tensors[key], rtol=1e-6)


def pair(name, rank=2, rows=64, columns=64, **more):
    """Two factors of one module."""
    down, up = np.ones((rank, columns), np.float32), np.ones((rows, rank), np.float32)
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up} | more


DIFFUSERS_HEADER = {"transformer.r": 2, "transformer.lora_alpha": 4}
WRONG = {
    "alpha_0": (
        pair(QUERY, **{f"{QUERY}.alpha": np.array(0, np.float32)}),
        None,
        ".alpha=0.0: must be a positive number",
    ),
    "two_alphas": (
        pair(f"transformer.{QUERY}", **{f"transformer.{QUERY}.alpha": np.array(1, np.float32)}),
        DIFFUSERS_HEADER,
        "is scaled by 0.5 by the alpha of each module and 2 by lora_adapter_metadata",
    ),
    "rank_of_the_settings": (
        pair(f"transformer.{QUERY}", 3),
        DIFFUSERS_HEADER,
        "says rank 2 for transformer.transformer_blocks.0.attn1.to_q, which has rank 3",
    ),
    "settings_of_another_component": (
        pair("connectors.text_proj_in"),
        DIFFUSERS_HEADER,
        "lora_adapter_metadata has no settings for connectors.text_proj_in",
    ),
    "unknown_setting": (
        pair(f"transformer.{QUERY}"),
        DIFFUSERS_HEADER | {"transformer.new_kind": {"x": 1}},
        "new_kind={'x': 1} is not plain LoRA",
    ),
    "header_is_no_json": (pair(QUERY), "{", "lora_adapter_metadata: not JSON"),
    "one_tensor_under_two_names": (
        pair(f"transformer.{QUERY}") | pair(f"lora_unet_{QUERY.replace('.', '_')}"),
        None,
        "are one tensor, given twice",
    ),
    "no_such_module": (pair("lora_unet_nothing_0"), None, "lora_unet_nothing_0 is not in the connectors or the transf"),
    "alpha_alone": ({f"{QUERY}.alpha": np.array(1, np.float32)}, None, f"missing {QUERY}.lora_A.weight"),
    "tucker": (
        pair(QUERY, **{f"{QUERY}.lora_mid.weight": np.ones((2, 2), np.float32)}),
        None,
        "a Tucker LoCon adapter",
    ),
    "dora_of_comfyui": (pair(QUERY, **{f"{QUERY}.dora_scale": np.ones(64, np.float32)}), None, "of a DoRA adapter"),
    "shape": (
        pair(QUERY, rows=8),
        None,
        f"the change of {QUERY} has shape (8, 64), {PREFIX}{QUERY}.weight has (64, 64)",
    ),
    "float8": (
        {key: value.astype(ml_dtypes.float8_e4m3fn) for key, value in pair(QUERY).items()},
        None,
        f"{QUERY}.lora_down.weight is float8_e4m3fn, expected one of float16, bfloat16, float32, float64",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_lora_whose_scale_or_place_is_unclear_is_refused_in_one_line(base, tmp_path, capsys, kind):
    tensors, header, complaint = WRONG[kind]
    text = header if isinstance(header, str | None) else json.dumps(header)
    save_file(tensors, tmp_path / "l.safetensors", None if text is None else {"lora_adapter_metadata": text})
    lora = tmp_path / "l.safetensors"
    assert complaint in refused(capsys, "convert", "--from", base[0], "--lora", lora, 1, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("config", [SMALL, NEWER], ids=["2.0", "2.3"])
def test_no_two_tensors_of_a_network_share_a_name(tmp_path, config):
    tensors = draw_network(config) | draw_network(text_path(config), component=connectors.COMPONENT)
    save_ltx2(tmp_path / FILE, config, tensors=tensors)
    sources = {each.name: each for each in list_components(tmp_path / FILE, Overrides())}
    plans = {name: plan_component(sources[name]) for name in ("transformer", "connectors")}
    places = list_places(plans)
    assert all(len(found) == 1 for found in places.values())
    assert {place for found in places.values() for place in found} == {
        Place(name, one.placement.native, one.placement.layer)
        for name, plan in plans.items()
        for each in plan.placed.values()
        for one in each
    }


def test_a_name_that_fits_two_tensors_is_refused(tmp_path):
    places = {"a_b.weight": frozenset({Place("transformer", "a/b", None), Place("transformer", "a_b", 0)})}
    with pytest.raises(ValueError, match="lora_unet_a_b is ambiguous, it fits transformer/a/b and transformer/a_b"):
        find_place(tmp_path, "lora_unet_a_b", "weight", places)


def test_a_strength_beyond_all_numbers_is_refused_without_other_words(base, tmp_path, capsys):
    save_file(pair(QUERY), tmp_path / "l.safetensors")
    command = ("convert", "--from", base[0], "--lora", tmp_path / "l.safetensors", 1e39, "--out", tmp_path / "o")
    assert f"l.safetensors: {PREFIX}{QUERY}.weight has values that are not finite" in refused(capsys, *command)


def test_a_lora_in_pytorch_s_format_is_told_how_to_become_safetensors(base, tmp_path, capsys):
    torch.save({"a": torch.ones(2)}, tmp_path / "lora.pt")
    line = refused(capsys, "convert", "--from", base[0], "--lora", tmp_path / "lora.pt", 1, "--out", tmp_path / "o")
    assert f"{tmp_path / 'lora.pt'}: is a file of PyTorch, expected safetensors; safetensors.torch.save_file" in line


def test_a_folder_with_several_files_is_no_lora(base, tmp_path, capsys):
    for name in "ab":
        save_file(pair(QUERY), tmp_path / f"{name}.safetensors")
    line = refused(capsys, "convert", "--from", base[0], "--lora", tmp_path, 1, "--out", tmp_path / "o")
    assert "has 2 safetensors files (a.safetensors, b.safetensors); give the LoRA itself" in line
    (tmp_path / "b.safetensors").rename(tmp_path / "._a.safetensors")  # a note of macOS
    assert find_file(tmp_path) == tmp_path / "a.safetensors"


def test_a_lora_of_any_dialect_given_as_a_source_is_told_what_it_is(tmp_path, capsys):
    save_file(pair(f"lora_unet_{QUERY.replace('.', '_')}"), tmp_path / "lora.safetensors")
    line = refused(capsys, "convert", "--from", tmp_path / "lora.safetensors", "--out", tmp_path / "o")
    assert "is a LoRA; fuse it into a network with --lora" in line
