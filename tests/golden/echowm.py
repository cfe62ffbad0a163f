"""The second golden set: EchoWM Flash, a 2.3 network with camera attention. Its cases, network and weights."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from golden_case import Case, find_folder, list_variants, read_json
from safetensors.numpy import load_file, save_file

from converters import convert as conversion
from converters.cli import main
from converters.formats.transformer import HEADER, PREFIX
from converters.overrides import Overrides
from omniforcing_jax.config import (
    CameraConfig,
    CrossTimestep,
    GridPrecision,
    ModelConfig,
    RotaryConfig,
    RotaryKind,
    StreamConfig,
)
from omniforcing_jax.io.weights import load_component
from omniforcing_jax.model.cameras import lens_of_intrinsics
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel.spec import abstract

FOLDER = find_folder("OMNIFORCING_GOLDEN_ECHOWM", "golden_echowm")
needs_echowm = pytest.mark.skipif(
    FOLDER is None,
    reason="no golden data at $OMNIFORCING_GOLDEN_ECHOWM nor at ../shared/golden_echowm beside the project",
)
echo_case = functools.partial(Case, folder=FOLDER)
echo_json = functools.partial(read_json, folder=FOLDER)
echo_variants = functools.partial(list_variants, folder=FOLDER)


def network_of(case: Case) -> ModelConfig:
    """Build the network's config from the JSON of its weights and of a case."""
    sizes = echo_json(case.config["weights"])["config"]
    (seconds, rows, columns), camera = sizes["positional_embedding_max_pos"], sizes["camera"]
    assert rows == columns
    mark = {"video": "", "audio": "audio_"}
    streams = {
        name: StreamConfig(
            latent_channels=sizes[f"{before}in_channels"],
            heads=sizes[f"{before}num_attention_heads"],
            head_size=sizes[f"{before}attention_head_dim"],
        )
        for name, before in mark.items()
    }
    return ModelConfig(
        layers=sizes["num_layers"],
        **streams,
        caption_channels=sizes["caption_channels"],
        rotary=RotaryConfig(
            kind=RotaryKind(case.config.get("rope", "split")),
            theta=sizes["positional_embedding_theta"],
            max_seconds=float(seconds),
            max_pixels=float(rows),
            grid=GridPrecision(case.config.get("freq_grid", "float64")),
        ),
        cross_timestep=CrossTimestep.CROSS,
        gate_multiplier=float(case.config.get("av_ca_timestep_scale_multiplier", 1000)),
        gated_attention=sizes["apply_gated_attention"],
        text_adaln=sizes["cross_attention_adaln"],
        camera=CameraConfig(
            heads=camera["num_heads"],
            head_size=camera["attn_dim"] // camera["num_heads"],
            theta=camera["freq_base"] * camera["freq_scale"],
        ),
    )


@functools.cache
def load_network(weights: str, config: ModelConfig) -> Transformer:
    """Convert golden weights as users do, and load them."""
    assert config.camera is not None
    with tempfile.TemporaryDirectory() as folder:
        source, out = FOLDER / f"{weights}.safetensors", Path(folder) / "weights"
        overrides = Overrides(heads=config.video.heads, camera_heads=config.camera.heads, release="omniforcing")
        conversion.run(conversion.prepare([source], out, overrides))
        return load_component(out, "transformer", abstract(transformer_spec(config)))


def lenses_of(intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Normalise recorded intrinsics by the picture's (height, width) in pixels."""
    return lens_of_intrinsics(np.asarray(intrinsics, np.float64), *size)


def save_published(case: Case, path: Path) -> dict[str, np.ndarray]:
    """Write the weights as the published file has them: prefixed, with a header that is silent about cameras."""
    tensors = {
        PREFIX + name: value for name, value in load_file(FOLDER / f"{case.config['weights']}.safetensors").items()
    }
    save_file(tensors, path, {"config": json.dumps(HEADER.write(network_of(case)))})
    return tensors


def convert(case: Case, out: Path, *flags: str) -> None:
    """Convert the weights by the command, as they are published."""
    path, camera = out.with_suffix(".safetensors"), network_of(case).camera
    save_published(case, path)
    assert camera is not None
    words = ("convert", "--from", path, "--camera-heads", camera.heads, "--out", out, *flags)
    assert main([str(word) for word in words]) == 0


def compared_by_check(weights: Path, name: str, capsys) -> set[str]:
    """Run the command `check` on a case, which must be within its limits; return the results that it compared."""
    assert main(["check", "--weights", str(weights), "--case", str(FOLDER / name)]) == 0
    told = capsys.readouterr().out
    return {line.partition(": largest")[0] for line in told.splitlines() if ": largest error" in line}
