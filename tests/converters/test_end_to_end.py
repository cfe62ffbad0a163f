"""From files as they are published to a clip and a stream: every component converted, prompts read by Gemma."""

import dataclasses
import json

import av
import pytest
import tiny_text
from published import SMALL, calm, draw_network, save_merged, text_path
from run import run
from safetensors.numpy import save_file
from test_whole_file import CONFIGS

from converters.component import HUGGING_FACE
from converters.registry import COMPONENTS
from omniforcing_jax.cli import main
from omniforcing_jax.config import GridPrecision, RotaryConfig, RotaryKind

CAPTIONS = 24
NETWORK = dataclasses.replace(
    SMALL, caption_channels=CAPTIONS, audio=dataclasses.replace(SMALL.audio, latent_channels=16)
)
FORCED = dataclasses.replace(
    NETWORK, rotary=RotaryConfig(kind=RotaryKind.INTERLEAVED, grid=GridPrecision.FLOAT32), gate_multiplier=1.0, sinks=2
)
PARTS = CONFIGS | {
    "transformer": NETWORK,
    "connectors": text_path(NETWORK),
    "audio_vae": dataclasses.replace(CONFIGS["audio_vae"], mel_bins=64, z_channels=1, base_channels=16),
}
GEMMA = dataclasses.replace(tiny_text.ENCODER.gemma, width=CAPTIONS, is_global=(False, False, False, True) * 12)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """LTX-2's single file, Gemma's folder, and a student's shard."""
    root = tmp_path_factory.mktemp("published")
    save_merged(root / "ltx2.safetensors", PARTS)
    text = COMPONENTS["text"]
    tiny_text.save_tokenizer(root / "gemma")
    save_file(calm(draw_network(GEMMA, HUGGING_FACE, component=text)), root / "gemma/model.safetensors")
    (root / "gemma/config.json").write_text(json.dumps(text.namings[HUGGING_FACE].table.write(GEMMA)))
    save_file(calm(draw_network(FORCED, seed=3)), root / "student.safetensors")
    return root


def count_frames(path):
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def command(*arguments):
    assert main.main([str(argument) for argument in arguments]) in (None, 0)


@pytest.mark.long
def test_a_clip_from_a_converted_ltx2_file(published, tmp_path, capsys):
    ours = tmp_path / "ours"
    sources = ("--from", published / "ltx2.safetensors", "--from", published / "gemma")
    run("convert", *sources, "--height", 64, "--width", 64, "--out", ours)
    clip = tmp_path / "clip.mp4"
    how = ("--sigmas", "distilled", "--guidance", "1", "--prompt", "a red ball", "--seconds", 1)
    command("sample", "--weights", ours, *how, "--out", clip)
    assert count_frames(clip) == 25
    capsys.readouterr()


@pytest.mark.long
def test_a_stream_from_converted_files_of_three_kinds(published, tmp_path, capsys):
    ours = tmp_path / "ours"
    names = ("ltx2.safetensors", "gemma", "student.safetensors")
    sources = [part for name in names for part in ("--from", published / name)]
    size = ("--height", 64, "--width", 64, "--heads", NETWORK.video.heads, "--horizon", 2)
    run("convert", *sources, *size, "--out", ours)
    out = tmp_path / "stream.mp4"
    command("stream", "--weights", ours, "--prompt", "a red ball", "--seconds", 2, "--lookahead", 1, "--out", out)
    assert count_frames(out) == 49
    capsys.readouterr()
