"""Record a case that `check` reads: inputs, what the library makes of them, and the largest error that is allowed.

The library loads the file that was converted, in float32 on the CPU, so nothing of this package is between the file and
the recording. Limits are relative to the largest value of an output. Rotary angles in float32, as the libraries compute
them, are off by up to a thousandth of a turn; a wrong name, row or setting is off by far more.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omniforcing_jax.io.atomic_write import replacing, write_json
from omniforcing_jax.io.machine import free_ram
from omniforcing_jax.io.tensor_file import write_tensors

from ...open_source import list_components
from ...overrides import Overrides
from .from_diffusers import load_diffusers
from .from_ltx_core import load_ltx_core
from .inputs import AUDIO_FRAMES, BATCH, GRID, VARIANTS, Inputs, Peer, draw_inputs

Library = Literal["ltx-core", "diffusers"]
LOAD: Mapping[str, Callable[[Path], Peer]] = {"ltx-core": load_ltx_core, "diffusers": load_diffusers}
LARGEST_ERROR = 0.005  # of the largest value of an output
COPIES = 1.5  # of the weights in float32: the most that a library holds while it loads them in bfloat16


def record_case(library: Library, source: Path, case: Path) -> str:
    """Run a library on a file and write a case.

    Args:
        library: The library to run.
        source: The file or folder that was converted.
        case: Folder and name of the case, without an ending. Nothing is overwritten.

    Returns:
        What was recorded, in words.

    Raises:
        ValueError: In one line: the case exists, the source is missing or has no transformer with a config, memory is
            short, or the library is missing or cannot read the source.
    """
    for place in _places(case):
        if place.exists():
            raise ValueError(f"{place}: exists already; choose another --case")
    _check_source(source)
    try:
        peer = LOAD[library](source)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{source}: {library} cannot read it: {str(error).splitlines()[0]}") from None
    variants = draw_inputs(peer)
    tensors = _list_inputs(variants)
    for name, inputs in variants.items():
        for stream, latent, levels, velocity in zip(
            ("video", "audio"), inputs.latents, inputs.token_sigmas, peer.run(inputs), strict=True
        ):
            tensors[f"out.{name}.{stream}_velocity"] = velocity
            tensors[f"out.{name}.{stream}_x0"] = latent - velocity * levels[..., None]
    _write(case, _describe(case.name, peer, source), tensors)
    return f"{case}: {len(VARIANTS)} forwards of {peer.name} on {source}"


def _places(case: Path) -> tuple[Path, Path]:
    return case.with_name(f"{case.name}.safetensors"), case.with_name(f"{case.name}.json")


def _check_source(source: Path) -> None:
    """Look at the source before a library needs minutes and tens of gigabytes for it."""
    found = [each for each in list_components(source, Overrides()) if each.name == "transformer"]
    if not found or found[0].component is None or found[0].is_student:
        raise ValueError(f"{source}: must have LTX-2's transformer with its config, as a teacher")
    values = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in found[0].tensors.values())
    needed, free = int(values * 4 * COPIES), free_ram()
    if free is not None and needed > free:
        raise ValueError(f"{source}: needs {needed / 1e9:.0f} GB of memory in float32, {free / 1e9:.0f} GB are free")


def _list_inputs(variants: Mapping[str, Inputs]) -> dict[str, np.ndarray]:
    scalar, token = variants["scalar"], variants["token"]
    tensors: dict[str, np.ndarray] = {"in.text_mask": token.text_mask.astype(np.int32)}
    for i, stream in enumerate(("video", "audio")):
        tensors |= {
            f"in.{stream}_latent": scalar.latents[i],
            f"in.{stream}_context": scalar.contexts[i],
            f"in.sigma_{stream}": scalar.sigmas[i],
            f"in.token_sigma_{stream}": token.token_sigmas[i][..., None],
        }
    return tensors


def _describe(name: str, peer: Peer, source: Path) -> dict[str, Any]:
    """Return the case's JSON."""
    return {
        "case": name,
        "title": f"{peer.name} on {source.name}, float32",
        "config": {
            "B": BATCH,
            "frames": GRID[0],
            "audio_frames": AUDIO_FRAMES,
            "grid": list(GRID[1:]),
            "variants": {
                variant: {
                    **peer.settings,
                    "timesteps": "per token" if by_token else "scalar, one of each stream",
                    "text_mask": True,
                }
                for variant, by_token in VARIANTS.items()
            },
        },
        "limits": [{"match": "out.*", "rel_to_largest": LARGEST_ERROR}],
    }


def _write(case: Path, meta: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write the tensors, and last the JSON, without which there is no case."""
    file, description = _places(case)
    layout = {name: (value.dtype, value.shape) for name, value in tensors.items()}
    with replacing(file) as new:
        write_tensors(new, layout, lambda name: tensors[name])
    write_json(description, meta)
