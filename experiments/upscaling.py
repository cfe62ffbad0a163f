"""What upsampling block by block costs: error against the whole clip upsampled at once, by look-ahead.

The latents are those of a stream. Without `--weights` it is chime's, and its upsampler has LTX-2's depth at a small
width, with random weights of unit gain; the released ones are not here. With `--weights` stream and upsampler are those
of a weights folder. The norms of an upsampler look at a whole clip, so the error does not reach 0: a stream knows the
frames so far. The second row of figures forgets them too, and knows the frames of one call only.

Source: LTX-2's spatial upsampler, ltx-core@1.0.0:model/upsampler/model.py.
Hardware: two CPU cores, some minutes.
Expect: with random weights the error falls to a twentieth at a look-ahead of the network's reach, 18 latent frames.

    python -m experiments.upscaling --json out/upscaling.json
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.cli_errors import report
from experiments.lookahead import draw
from experiments.script import read_flags, start_logging
from omniforcing_jax.codecs.upsampler import Moments, init_upsampler, upsample_clip, upsample_next
from omniforcing_jax.codecs.upsampler_config import LTX23_SPATIAL_UPSAMPLER
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.weights_folder import load_pipeline
from omniforcing_jax.rollout import to_frames
from omniforcing_jax.stream.start import open_stream

WIDTH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the error of upsampling block by block."""

    json: Path
    """JSON file for the figures."""
    weights: str | None = None
    """Weights folder of a student with an upsampler; by default chime with a random one."""
    prompt: str = "a red ball and a blue ball"
    """What the stream shows."""
    seconds: int = 12
    """Length of the stream."""
    seed: int = 0
    """Random seed of the stream and of the random weights."""
    lookaheads: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 9, 18)
    """Latent frames that the picture is held back."""


def load(arguments: Arguments) -> Pipeline:
    """Load the weights, or chime with a random upsampler."""
    if arguments.weights is not None:
        return load_pipeline(arguments.weights, upsampler=True)
    chime = load_pipeline()
    channels = chime.config.video_vae.latent_channels
    config = dataclasses.replace(LTX23_SPATIAL_UPSAMPLER, latent_channels=channels, width=WIDTH)
    variables = draw(dict(init_upsampler(config)), arguments.seed)
    ones = lambda path, leaf: 1 + leaf if path[-1].key == "scale" else leaf  # noqa: E731
    codecs = dataclasses.replace(
        chime.codecs, upsampler=jax.tree_util.tree_map_with_path(ones, variables), upsampler_config=config
    )
    return dataclasses.replace(chime, codecs=codecs, config=dataclasses.replace(chime.config, upsampler=config))


def stream_latents(pipeline: Pipeline, arguments: Arguments) -> list[Float[Array, "B F h w C"]]:
    """Return the video latents of each block of a stream."""
    made: list[Any] = []

    def keep(step: str, block: int, outputs: Any) -> None:
        if step == "denoise":
            made.append(outputs.video)

    stream = open_stream(pipeline, arguments.prompt, arguments.seconds, arguments.seed, trace=keep)
    for _ in stream:
        pass
    return [to_frames(tokens, stream.static.grid) for tokens in made]


PROGRAM = jax.jit(upsample_next, static_argnames=("config", "ahead"))


def forget(carry: Any) -> Any:
    """Return an upsampler's state without the moments of its norms."""
    if not isinstance(carry, dict):
        return carry
    return {name: forget(each) for name, each in carry.items() if name not in Moments._fields}


def upsample_blocks(
    step: Callable[..., tuple[Array, Any]], blocks: Sequence[Float[Array, "B F h w C"]], ahead: int, *, remembers: bool
) -> Float[Array, "B frames h_out w_out C"]:
    """Upsample the latents of a stream as it does, `ahead` latent frames late; those seen early are seen again.

    Args:
        step: `upsample_next` of latents, state and `ahead`, compiled.
        blocks: The latents of each block.
        ahead: Latent frames.
        remembers: Keep the moments of past frames.
    """
    made, held, carry = [], blocks[0][:, :0], None
    for block in blocks:
        seen = jnp.concatenate([held, block], axis=1)
        held = seen[:, max(0, seen.shape[1] - ahead) :]
        if seen.shape[1] > ahead:
            larger, carry = step(seen, carry, ahead=ahead)
            made.append(larger[:, : seen.shape[1] - ahead])
            carry = carry if remembers else forget(carry)
    if ahead:
        made.append(step(held, carry, ahead=0)[0])
    return jnp.concatenate(made, axis=1)


def measure(arguments: Arguments) -> dict[str, Any]:
    """Measure every look-ahead, with and without the moments of past frames."""
    pipeline = load(arguments)
    codecs, blocks = pipeline.codecs, stream_latents(pipeline, arguments)
    whole = np.asarray(jax.jit(partial(upsample_clip, codecs.upsampling[0]))(
        codecs.upsampling[1], codecs.video, jnp.concatenate(blocks, axis=1)
    ))  # fmt: skip
    step, rows = partial(PROGRAM, *codecs.upsampling, codecs.video), []
    for ahead in arguments.lookaheads:
        errors = {
            name: float(np.std(np.asarray(upsample_blocks(step, blocks, ahead, remembers=remembers)) - whole))
            / float(np.std(whole))
            for name, remembers in (("so_far", True), ("one_call", False))
        }
        rows.append({"lookahead": ahead, **errors})
    return {
        "device": jax.devices()[0].device_kind,
        "weights": pipeline.config.name,
        "reach": codecs.upsampling[0].reach,
        "latent_frames": whole.shape[1],
        "rows": rows,
    }


def tabulate(figures: dict[str, Any]) -> list[str]:
    """Return the figures as a table: relative error by look-ahead."""
    rows = figures["rows"]
    lines = [
        "| look-ahead | " + " | ".join(str(row["lookahead"]) for row in rows) + " |",
        "|---" * (1 + len(rows)) + "|",
    ]
    for name, key in (("norms over all frames so far", "so_far"), ("norms over one call's frames", "one_call")):
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:.3f}" for row in rows) + " |")
    return lines


def main(arguments: Arguments) -> None:
    """Measure, print the table and write the figures; bad input is one line on stderr and exit code 2."""
    start_logging()
    report(arguments.json, lambda: measure(arguments), tabulate)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
