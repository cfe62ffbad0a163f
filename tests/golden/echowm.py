"""The second golden set: EchoWM Flash, a 2.3 network with camera attention. Its cases, network and weights."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from golden_case import Case, find_folder, list_variants, read_json

from converters import convert
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
        convert.run(convert.prepare([source], out, overrides))
        return load_component(out, "transformer", abstract(transformer_spec(config)))


def lenses_of(intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Normalise recorded intrinsics by the picture's (height, width) in pixels."""
    return lens_of_intrinsics(np.asarray(intrinsics, np.float64), *size)
