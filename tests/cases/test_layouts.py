"""Each row of the table of layouts in docs/weights.md: a file of that kind is converted, or refused in those words."""

import json
import os
import re
from pathlib import Path

import brought
import numpy as np
import pytest
import split_text
import torch
import torch.distributed.checkpoint
from brought import GEMMA, NEWER, PREFIX, SMALL, save_base, save_fine_tune, save_part
from ltx25_files import save_split
from published import CODECS, FORCED, draw_network, save_ltx2, save_upsampler, text_path
from run import refused
from safetensors.numpy import load_file, save_file

from converters import missing_config, single_file_gemma
from converters.cli import main
from omniforcing_jax.config import CameraConfig
from omniforcing_jax.io.weights import read_config

DOCUMENT = Path(__file__).parents[2] / "docs/weights.md"
LAYOUTS = {}


def read_rows():
    """Read the table: layout and answer of each row."""
    table = DOCUMENT.read_text().partition("<!-- layouts -->")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines() if "|" in line]
    return {layout: answer for layout, _, answer in rows[2:]}


def layout(name):
    """Add the function that writes a layout; it returns the arguments of `convert` without --out."""

    def add(write):
        LAYOUTS[name] = write
        return write

    return add


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, quiet):
    """Take tiny networks for the published ones."""
    published = {
        "transformer": {"2.0": SMALL, "2.3": NEWER},
        "connectors": {"2.0": text_path(SMALL), "2.3": text_path(NEWER)},
        **{name: {"2.0": config} for name, config in CODECS.items()},
    }
    monkeypatch.setattr(missing_config, "PUBLISHED", published)
    monkeypatch.setattr(single_file_gemma, "GEMMA_3_12B", GEMMA)


@layout("LTX-2's file, with the config in its header")
def _(folder):
    return ["--from", save_base(folder / "ltx.safetensors")]


@layout("LTX-2.5's parts in files of their own, each with its config")
def _(folder):
    return [word for path in save_split(folder / "parts").values() for word in ("--from", path)]


@layout("LTX-2.5's VAE with its diffusion decoder")
def _(folder):
    tensors = load_file(save_split(folder / "parts")["vae"])
    header = {"vae": {"_class_name": "CausalDiffusionVAE", "decoder": {"_class_name": "NADiffusionDecoder"}}}
    save_file(tensors, folder / "diffusion.safetensors", {"config": json.dumps(header)})
    return ["--from", folder / "diffusion.safetensors"]


@layout("network without a config, after its base")
def _(folder):
    base, tuned = save_base(folder / "base.safetensors"), save_fine_tune(folder / "model_weights.safetensors")
    return ["--from", base, "--from", tuned]


@layout("network without a config, of LTX-2.3's shapes")
def _(folder):
    return ["--from", save_fine_tune(folder / "model_weights.safetensors")]


@layout("network without a config, of LTX-2.0's shapes")
def _(folder):
    return ["--from", save_fine_tune(folder / "model_weights.safetensors", SMALL)]


@layout("network without a config, of other shapes")
def _(folder):
    save_file(draw_network(brought.dataclasses.replace(FORCED, sinks=0)), folder / "net.safetensors")
    return ["--from", folder / "net.safetensors"]


@layout("training checkpoint with a `generator`")
def _(folder):
    tensors = draw_network(brought.dataclasses.replace(FORCED, sinks=0))
    state = {key.removeprefix(PREFIX): torch.from_numpy(value.astype(np.float32)) for key, value in tensors.items()}
    torch.save({"generator": state, "critic": {}, "step": 7}, folder / "model.pt")
    return ["--from", folder / "model.pt", "--heads", 2]


@layout("LTX-2.3's file with camera attention, its keys beside `ucpe_q_proj`")
def _(folder):
    config = brought.dataclasses.replace(NEWER, camera=CameraConfig(heads=2, head_size=128))
    save_ltx2(folder / "echo-wm.safetensors", config, tensors=draw_network(config))
    return ["--from", folder / "echo-wm.safetensors"]


def quantised(style):
    def write(folder):
        base = save_base(folder / "base.safetensors")
        from omniforcing_jax.io.tensor_file import open_tensors

        brought.quantise(folder / "fp8.safetensors", base, style, dict(open_tensors(base).metadata))
        return ["--from", folder / "fp8.safetensors"]

    return write


layout("float8 with `weight_scale` and `input_scale`")(quantised("ltx2"))
layout("float8 with `weight_scale` and `comfy_quant`")(quantised("comfy_quant"))
layout("float8 with `scale_weight` and `scaled_fp8`")(quantised("scaled_fp8"))


@layout("nvfp4, int8 and other kinds of `comfy_quant`")
def _(folder):
    tensors = load_file(save_base(folder / "base.safetensors"))
    tensors[f"{PREFIX}proj_out.comfy_quant"] = np.frombuffer(b'{"format": "nvfp4"}', np.uint8)
    save_file(tensors, folder / "fp4.safetensors")
    return ["--from", folder / "fp4.safetensors"]


@layout("one VAE, vocoder or pair of connectors, with or without prefix and config")
def _(folder):
    parts = {
        "video_vae": CODECS["video_vae"],
        "audio_vae": CODECS["audio_vae"],
        "vocoder": CODECS["vocoder"],
        "connectors": text_path(SMALL),
    }
    files = [save_part(folder / f"{name}.safetensors", name, config) for name, config in list(parts.items())[:3]]
    tensors = draw_network(parts["connectors"], component=brought.COMPONENTS["connectors"])
    save_file({key.removeprefix(PREFIX): value for key, value in tensors.items()}, folder / "c.safetensors")
    return [word for file in (*files, folder / "c.safetensors") for word in ("--from", file)]


@layout("Gemma 3 12B in one file, with `spiece_model`")
def _(folder):
    return ["--from", brought.save_comfy_gemma(folder / "gemma_3_12B_it.safetensors")]


@layout("Gemma 3 in one file, without a config, of another size")
def _(folder):
    return ["--from", brought.save_comfy_gemma(folder / "g.safetensors", brought.dataclasses.replace(GEMMA, width=32))]


@layout("Gemma 3 in one file, with `gemma_config` and `tokenizer_json`")
def _(folder):
    return ["--from", brought.save_packed_gemma(folder / "text_encoder.safetensors")]


@layout("Gemma 4 in one file with its text projection, beside the network's file")
def _(folder):
    network, text = folder / "transformer.safetensors", folder / "text_encoder.safetensors"
    return ["--from", split_text.save_network(network), "--from", split_text.save_text(text)]


@layout("the same file alone")
def _(folder):
    return ["--from", split_text.save_text(folder / "text_encoder.safetensors")]


@layout("Gemma 4 in one file, without `gemma_config`")
def _(folder):
    save_file(split_text.gemma_tensors(), folder / "gemma.safetensors")
    return ["--from", folder / "gemma.safetensors"]


@layout("another text model in one file")
def _(folder):
    tensors = {"encoder.embed_tokens.weight": np.zeros((4, 4)), "encoder.block.0.layer.0.layer_norm.weight": np.ones(4)}
    save_file(tensors, folder / "t5.safetensors")
    return ["--from", folder / "t5.safetensors"]


@layout("folder of a pipeline")
def _(folder):
    return ["--from", brought.save_pipeline(folder / "pipeline")]


@layout("folder of one component")
def _(folder):
    return ["--from", brought.save_pipeline(folder / "pipeline") / "transformer"]


@layout("file out of a component's folder")
def _(folder):
    return ["--from", brought.save_pipeline(folder / "p") / "transformer/diffusion_pytorch_model.safetensors"]


@layout("folder of Gemma 3")
def _(folder):
    return ["--from", brought.save_gemma_folder(folder / "gemma")]


@layout("folder of Gemma 4 12B (`gemma4_unified`)")
def _(folder):
    return ["--from", split_text.save_folder(folder / "gemma")]


@layout("folder of another Gemma, such as Gemma 4 E2B")
def _(folder):
    path = split_text.save_folder(folder / "gemma")
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | {"model_type": "gemma4"}))
    return ["--from", path]


@layout("one of several shards")
def _(folder):
    save_file({"a": np.zeros(2)}, folder / "model-00001-of-00003.safetensors")
    return ["--from", folder / "model-00001-of-00003.safetensors"]


@layout("latent upsampler in a file of its own")
def _(folder):
    return ["--from", save_upsampler(folder / "upscaler.safetensors")]


@layout("the same without a config")
def _(folder):
    return ["--from", brought.save_pipeline(folder / "p") / "latent_upsampler/diffusion_pytorch_model.safetensors"]


@layout("pointer of Git LFS")
def _(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 43298439168\n"
    (folder / "ltx.safetensors").write_text(pointer)
    return ["--from", folder / "ltx.safetensors"]


@layout("web page in the place of a file")
def _(folder):
    (folder / "ltx.safetensors").write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    return ["--from", folder / "ltx.safetensors"]


@layout("distributed checkpoint (`.distcp`)")
def _(folder):
    state = {"model": {"a": torch.ones(2)}}
    torch.distributed.checkpoint.save(state, checkpoint_id=folder / "dcp", no_dist=True)
    return ["--from", folder / "dcp"]


@layout("checkpoint of DeepSpeed")
def _(folder):
    (folder / "step").mkdir()
    torch.save({"module": {"a": torch.ones(1)}}, folder / "step/mp_rank_00_model_states.pt")
    return ["--from", folder / "step"]


@layout("folder with `.bin` files")
def _(folder):
    model = brought.save_gemma_folder(folder / "gemma")
    torch.save({"a": torch.ones(1)}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return ["--from", model]


def pickled(value, **options):
    def write(folder):
        torch.save(value(), folder / "model.pt", **options)
        return ["--from", folder / "model.pt"]

    return write


layout("pickled module")(pickled(lambda: torch.nn.Linear(2, 2)))
layout("file of PyTorch before 1.6")(pickled(lambda: {"a": torch.ones(1)}, _use_new_zipfile_serialization=False))
layout("tensors on PyTorch's `meta` device")(pickled(lambda: {"a": torch.empty(2, device="meta")}))


@layout("TorchScript")
def _(folder):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "model.pt")
    return ["--from", folder / "model.pt"]


@layout("PyTorch's file with another ending")
def _(folder):
    torch.save({"a": torch.ones(1)}, folder / "model.safetensors")
    return ["--from", folder / "model.safetensors"]


@layout("pipe or device")
def _(folder):
    os.mkfifo(folder / "ltx.safetensors")
    return ["--from", folder / "ltx.safetensors"]


@layout("links in a circle")
def _(folder):
    (folder / "a.safetensors").symlink_to(folder / "b.safetensors")
    (folder / "b.safetensors").symlink_to(folder / "a.safetensors")
    return ["--from", folder / "a.safetensors"]


def test_every_row_has_a_test_and_every_test_a_row():
    assert list(read_rows()) == list(LAYOUTS)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_answered_as_the_document_says(name, tmp_path, capsys):
    answer, out = read_rows()[name], tmp_path / "ours"
    command = ["convert", *map(str, LAYOUTS[name](tmp_path)), "--out", str(out)]
    if answer.startswith("converts"):
        assert main(command) == 0
        told = capsys.readouterr().out
        is_student = "student" in answer
        if (out / "transformer").is_dir():
            assert ("sampler" in read_config(out)) == is_student
            assert read_config(out / "transformer")["rotary"]["kind"] == ("interleaved" if is_student else "split")
        for words in re.findall(r"`(.+?)`", answer):
            assert words in told or (out / "text" / words).is_file()
        assert list(out.glob("*/model.safetensors"))
        return
    line = refused(capsys, *command)
    assert answer.startswith("refused: ")
    for words in answer.removeprefix("refused: ").split("; "):
        assert words.strip("`") in line.replace("`", "")
    assert not out.exists()
