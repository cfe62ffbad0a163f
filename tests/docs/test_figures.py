"""What the documents say of the weights that ship is what the weights are.

A table under `<!-- of: chime student, chime teacher -->` has a column for each; its rows are those of `FACTS`, and `-`
stands for what a network does not have.
"""

import dataclasses
import json
import math
import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from prose import ROOT, documents

from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.model.eight_bits import eight_bit_cache
from omniforcing_jax.pipeline.budget import count_bytes
from omniforcing_jax.pipeline.pipeline import abstract_pipeline
from omniforcing_jax.pipeline.presets import PRESETS
from omniforcing_jax.rollout import StaticConfig, make_cache

CHIME = ROOT / "omniforcing_jax" / "assets" / "chime"
TABLE = re.compile(r"<!-- of: ([^>]*) -->\n((?:\|.*\n)+)")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def size(folder: Path) -> str:
    """Say how large a folder's files are, in 10^6 bytes."""
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"


def of_network(name: str) -> dict[str, str]:
    """Say what a network is, and if it is a student, how it streams."""
    top, folder = read(CHIME / name / "config.json"), CHIME / name / "transformer"
    model, file = ModelConfig.from_dict(read(folder / "config.json")), open_tensors(folder / "model.safetensors")
    height, width = top["resolution"]
    side = model.spatial_compression
    (dtype,) = {str(entry.dtype) for entry in file.entries.values()}
    facts = {
        "layers": f"{model.layers}",
        "heads": f"{model.video.heads}",
        "width of video, audio": f"{model.video.width}, {model.audio.width}",
        "latent channels of video, audio": f"{model.video.latent_channels}, {model.audio.latent_channels}",
        "audio sinks": f"{model.sinks}",
        "parameters": f"{sum(math.prod(shape) for shape in file.shapes.values()) / 1e6:.1f} million",
        "network on disk": f"{size(folder)}, {dtype}",
        "resolution": f"{height} x {width}",
        "tokens of a latent frame": f"{(height // side) * (width // side)}",
    }
    return facts | (of_sampler(SamplerConfig.from_dict(top["sampler"])) if "sampler" in top else {})


def of_sampler(sampler: SamplerConfig) -> dict[str, str]:
    """Say how a student streams."""
    first, layout = sampler.sigmas[0], sampler.layout
    said = {True: "yes", False: "no"}
    return {
        "denoise steps": f"{sampler.steps}",
        "noise levels": f"{first:.3g} to {sampler.sigmas[-2]:.3g}, then {sampler.sigmas[-1]:g}",
        "renewal": "all fresh" if sampler.renewal is None else f"{sampler.renewal:g}",
        "context noise": f"{sampler.context_noise:g}",
        "block 0, later blocks": f"{layout.first_v} + {layout.first_a}, {layout.step_v} + {layout.step_a}",
        "trained horizon": f"{sampler.horizon_seconds} s",
        "past blocks in the ring": f"{sampler.past_blocks}",
        "block 0 pinned, keys move along": f"{said[sampler.pinned > 0]}, {said[sampler.reanchor]}",
    }


def of_codecs() -> dict[str, str]:
    """Say what the codecs are."""
    video, audio, vocoder, text = (
        read(CHIME / "codecs" / name / "config.json") for name in ("video_vae", "audio_vae", "vocoder", "text")
    )
    kinds = [block["kind"] for block in video["decoder_blocks"]]
    space = video["patch_size"] * 2 ** sum(kind in ("compress_all", "compress_space") for kind in kinds)
    time = 2 ** sum(kind in ("compress_all", "compress_time") for kind in kinds)
    rate = vocoder["row_rate"] * math.prod(vocoder["rates"])
    return {
        "picture": f"{space} times smaller in space, {time} in time",
        "video decoder": "causal" if video["causal_decoder"] else "looks ahead",
        "mel bins": f"{audio['mel_bins']}",
        "sound": f"{rate / 1000:g} kHz, {'stereo' if audio['audio_channels'] == 2 else 'mono'}",
        "vocabulary": f"{len(text['vocabulary'])} words",
        "on disk": size(CHIME / "codecs"),
    }


def of_full_size(preset: str) -> dict[str, str]:
    """Say what a stream of LTX-2 holds in bfloat16, from shapes alone."""
    config, dtype = PRESETS[preset], jnp.dtype(jnp.bfloat16)
    shapes, grid = abstract_pipeline(config, dtype), config.grid(*config.resolution)

    def cache(window: int, kind: str | None = None) -> str:
        sampler = dataclasses.replace(config.sampler, window=window)
        static = StaticConfig(config.model, sampler, grid, dtype, eight_bit_cache(kind))
        return gigabytes(jax.eval_shape(lambda: make_cache(static, 1, has_list=True)))  # as one GPU has it

    return {
        "transformer": gigabytes(shapes.transformer),
        "codecs": gigabytes(shapes.codecs),
        "cache, the trained horizon": cache(0),
        "cache, `--window 2`": cache(2),
        "cache, `--cache-dtype int8`": cache(0, "int8"),
        "cache, both": cache(2, "int8"),
    }


def gigabytes(tree) -> str:
    """Say how large a tree of shapes is, in 10^9 bytes."""
    return f"{count_bytes(tree) / 1e9:.1f} GB"


FACTS = {
    "chime student": cache(lambda: of_network("student")),
    "chime teacher": cache(lambda: of_network("teacher")),
    "chime codecs": cache(of_codecs),
    "ltx2-19b": cache(lambda: of_full_size("ltx2-19b")),
    "ltx2-22b": cache(lambda: of_full_size("ltx2-22b")),
    "chime": cache(lambda: {"on disk": size(CHIME)}),
}


def wrong_cells(text: str) -> list[str]:
    """List the cells of a document's marked tables that are not as the weights are."""
    wrong = []
    for names, table in TABLE.findall(text):
        subjects = [FACTS[name.strip()]() for name in names.split(",")]
        for row in table.splitlines()[2:]:
            what, *cells = (cell.strip() for cell in row.strip("|").split("|"))
            for facts, cell in zip(subjects, cells, strict=True):
                if cell != facts.get(what, "-"):
                    wrong.append(f"{what}: {cell}, is {facts.get(what, 'nothing that is known of these weights')}")
    return wrong


@pytest.mark.parametrize("name", documents())
def test_figures_about_shipped_weights_are_those_of_the_weights(name):
    assert not wrong_cells((ROOT / name).read_text(encoding="utf-8"))


def test_the_page_on_chime_says_all_of_its_student():
    (names, table), *_ = TABLE.findall((ROOT / "docs" / "chime.md").read_text(encoding="utf-8"))
    assert names.startswith("chime student")
    said = [row.strip("|").split("|")[0].strip() for row in table.splitlines()[2:]]
    assert said == list(of_network("student"))


def test_a_wrong_figure_is_found():
    rows = ("| | a | b |", "|---|---|---|", "| layers | 6 | 7 |", "| renewal | 1 | 1 |", "")
    page = "<!-- of: chime student, chime teacher -->\n" + "\n".join(rows)
    assert wrong_cells(page) == ["layers: 7, is 6", "renewal: 1, is nothing that is known of these weights"]
    assert wrong_cells(page.replace("| 7", "| 6").replace("1 | 1", "1 | -")) == []
