"""A file with all components, none of them without a table, comes back bit by bit."""

import dataclasses
import json

import ml_dtypes
import numpy as np
from published import SMALL, draw_network, text_path
from run import run
from safetensors.numpy import save_file

from converters.component import LTX2
from converters.registry import COMPONENTS, PREFIXES
from omniforcing_jax.presets import TINY_STREAM

CONFIGS = {
    "transformer": SMALL,
    "connectors": text_path(SMALL),
    "video_vae": dataclasses.replace(TINY_STREAM.video_vae, encoder_base_channels=8, decoder_base_channels=4),
    "audio_vae": dataclasses.replace(TINY_STREAM.audio_vae, base_channels=8),
    "vocoder": dataclasses.replace(TINY_STREAM.vocoder, channels=(32, 16, 8, 4, 2, 1), mel_bins=64),
}


def test_a_whole_file_comes_back_bit_by_bit(tmp_path, capsys):
    tensors, header = {}, {}
    for name in PREFIXES:
        component = COMPONENTS[name]
        tensors |= draw_network(CONFIGS[name], component=component, dtype=ml_dtypes.bfloat16)
        for section, values in component.namings[LTX2].write_config(CONFIGS[name]).items():
            header[section] = {**header.get(section, {}), **values}
    tensors["vae.per_channel_statistics.channel"] = np.arange(8, dtype=np.float32)
    save_file(tensors, tmp_path / "whole.safetensors", {"config": json.dumps(header)})
    run("convert", "--from", tmp_path / "whole.safetensors", "--out", tmp_path / "ours")
    told = capsys.readouterr().out
    assert "untouched" in told
    run("inspect", tmp_path / "ours")
    assert "sample: can run" in capsys.readouterr().out
    run("export", "--from", tmp_path / "ours", "--to", "ltx2", "--out", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    capsys.readouterr()
