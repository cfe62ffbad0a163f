"""The cost of decoding in a stream, compared with decoding the whole clip: one JSON object per run of `bench decode`.

    omniforcing bench decode --json out/decode.json

Latents are random with unit variance, like those of a generator. No other component of the weights runs. The keys:

    device, weights        accelerator or processor; name of the weights
    picture                causal; reach (number of later latents that a frame depends on, 0 for a causal decoder);
                           rows, one per look-ahead in latent frames:
        lookahead, lag_s   how far the picture is held back, in latent frames and in seconds
        block_ms           median time of a later block, in milliseconds
        relative_rms, max  error against the whole clip, divided by its standard deviation: root mean square, largest
        psnr_db            PSNR of the picture in [-1, 1], in dB; null where nothing differs
    sound                  delay_rows (mel rows that the vocoder looks ahead, all of which a stream waits for), lag_s,
                           block_ms, max (error against the whole clip);
                           rows, one per shorter wait in mel rows, with the relative_rms that it would have

The frames that a stream returns at its end are left out, because they are exact.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax.cli.options import BenchOptions
from omniforcing_jax.codecs import video_vae, vocoder
from omniforcing_jax.codecs.audio_vae import AudioVAE
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.codecs.vocoder import Vocoder
from omniforcing_jax.io.atomic_write import check_writable, write_json
from omniforcing_jax.io.inputs import refuse_inputs
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.layout import FRAME_RATE, PIXELS_PER_LATENT, PREFIX, Layout
from omniforcing_jax.pipeline import checks
from omniforcing_jax.pipeline.loading import load_shown
from omniforcing_jax.pipeline.pipeline import Codecs
from omniforcing_jax.pipeline.shipped import STUDENT, find_weights

BLOCKS = 12
LOOKAHEADS = (0, 1, 2, 3, 4, 6, 8, 12, 22)
ROWS = (0, 1, 2, 4, 8, 12, 16, 24, 32, 40, 48)
CLIPS = 4  # clips over which the error of cut sound is averaged


def prepare_bench(command: BenchOptions, startup: Startup) -> Callable[[], None]:
    """Check the request, without touching the device.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    check_writable(command.json)
    refuse_inputs("json", command.json, {"weights": find_weights(command.weights)})
    for name in ("preset", "random_weights"):
        if getattr(command, name):
            raise ValueError(f"{name.replace('_', '-')}: `bench decode` measures a weights folder; give --weights")
    checks.check_seed(command.seed)
    blocks = BLOCKS if command.blocks is None else command.blocks
    if blocks < 3:
        raise ValueError(f"blocks={blocks}: must be at least 3, because later blocks are timed")
    folder = find_weights(command.weights, STUDENT)
    config = checks.pipeline_config(folder)
    grid = checks.check_side(config, command.height, command.width)
    return lambda: _report(command, folder, grid, blocks, startup)


def _report(command: BenchOptions, folder: Path, grid: tuple[int, int], blocks: int, startup: Startup) -> None:
    config, dtype = checks.pipeline_config(folder), jnp.dtype(command.dtype)
    codecs = load_shown(folder, config, dtype, startup, "decode", grid).codecs
    startup.ready()
    layout = PREFIX if config.sampler is None else config.sampler.layout
    figures = {
        "device": jax.devices()[0].device_kind,
        "weights": config.name,
        "picture": measure_picture(codecs, grid, layout, blocks, command.seed, dtype),
        "sound": measure_sound(codecs, layout, blocks, command.seed),
    }
    write_json(command.json, figures)
    print(tabulate(figures))


def measure_picture(
    codecs: Codecs,
    grid: tuple[int, int],
    layout: Layout,
    blocks: int,
    seed: int,
    dtype: Any,
    lookaheads: Sequence[int] = LOOKAHEADS,
) -> dict[str, Any]:
    """Stream random latents with every look-ahead that leaves something to compare.

    Args:
        codecs: The codecs.
        grid: Latent rows and columns.
        layout: Layout of the blocks.
        blocks: Length of the clip in blocks.
        seed: Random seed of the latents.
        dtype: Type to compute in.
        lookaheads: Look-aheads in latent frames. A causal decoder is measured with 0 only.
    """
    config, ends = codecs.video_config, [layout.block(k).video_end for k in range(blocks)]
    shape = (1, ends[-1], *grid, config.latent_channels)
    latents = jax.random.normal(jax.random.key(seed), shape).astype(dtype)
    whole = np.asarray(jax.jit(partial(_whole, VideoVAE(config), "decode"))(codecs.video, latents), np.float32)
    wanted = [0] if config.causal_decoder else [n for n in lookaheads if n < ends[-2]]
    rows = []
    with Bar("measuring the picture", len(wanted), "look-aheads") as bar:
        for ahead in bar.over(wanted):
            pixels, times = _stream_picture(codecs, latents, ends, ahead)
            error = _compare(pixels, whole[:, : pixels.shape[1]])
            lag = ahead * PIXELS_PER_LATENT / FRAME_RATE
            rows.append({"lookahead": ahead, "lag_s": round(lag, 3), "block_ms": _median_ms(times), **error})
    return {"causal": config.causal_decoder, "reach": config.decoder_reach, "rows": rows}


def _whole(network: Any, method: str | None, variables: Any, x: Any) -> Any:
    return network.apply(variables, x, method=method)


def _stream_picture(codecs: Codecs, latents: Any, ends: Sequence[int], ahead: int) -> tuple[np.ndarray, list[float]]:
    """Decode block by block. Returns the frames before the last `ahead` latents, and the seconds of each block."""
    first = jax.jit(partial(video_vae.decode_first, codecs.video_config, ahead=ahead))
    later = jax.jit(partial(video_vae.decode_next, codecs.video_config, ahead=ahead))
    pieces, times, carry, done = [], [], None, 0
    for end in (end for end in ends if end > ahead):
        began, seen = time.perf_counter(), latents[:, done:end]
        pixels, carry = first(codecs.video, seen) if carry is None else later(codecs.video, seen, carry)
        pieces.append(np.asarray(pixels, np.float32))
        times.append(time.perf_counter() - began)
        done = end - ahead
    return np.concatenate(pieces, axis=1), times


def measure_sound(codecs: Codecs, layout: Layout, blocks: int, seed: int, rows: Sequence[int] = ROWS) -> dict[str, Any]:
    """Stream the sound of random latents, and cut it short to measure the worth of the look-ahead."""
    config, audio = codecs.vocoder_config, codecs.audio_config
    ends = [layout.block(k).audio_end for k in range(blocks)]
    latents = jax.random.normal(jax.random.key(seed), (CLIPS, ends[-1], audio.latent_size))
    mel = jax.jit(partial(_whole, AudioVAE(audio), "decode"))(codecs.audio, latents)
    run = jax.jit(partial(_whole, Vocoder(config), None))
    whole = np.asarray(run(codecs.vocoder, mel))
    cut, each = mel.shape[1] - max(rows) - 1, config.samples_per_row
    short = np.asarray(run(codecs.vocoder, mel[:, :cut]))
    losses = [
        {
            "rows": row,
            "relative_rms": _compare(*(x[:, (cut - 1 - row) * each : (cut - row) * each] for x in (short, whole)))[
                "relative_rms"
            ],
        }
        for row in rows
        if row < cut
    ]
    samples, times = _stream_sound(codecs, mel[:1], [audio.mel_rows(end) for end in ends])
    return {
        "delay_rows": round(config.delay / each, 2),
        "lag_s": round(config.delay / config.sample_rate, 3),
        "block_ms": _median_ms(times),
        "max": _compare(samples, whole[:1])["max"],
        "rows": losses,
    }


def _stream_sound(codecs: Codecs, mel: Any, ends: Sequence[int]) -> tuple[np.ndarray, list[float]]:
    config = codecs.vocoder_config
    push = jax.jit(partial(vocoder.push, config))
    pieces, times, carry, done = [], [], None, 0
    for end in ends:
        began = time.perf_counter()
        samples, carry = push(codecs.vocoder, mel[:, done:end], carry)
        pieces.append(np.asarray(samples))
        times.append(time.perf_counter() - began)
        done = end
    assert carry is not None
    pieces.append(np.asarray(jax.jit(partial(vocoder.flush, config))(codecs.vocoder, carry)))
    return np.concatenate(pieces, axis=1)[:, config.delay :], times


def _compare(found: np.ndarray, wanted: np.ndarray) -> dict[str, float | None]:
    """Compare with the whole clip. The scale is the standard deviation of `wanted`."""
    difference = np.abs(found - wanted)
    rms, spread = math.sqrt(np.mean(np.square(difference))), float(np.std(wanted)) or 1.0
    return {
        "relative_rms": float(f"{rms / spread:.3g}"),
        "max": float(f"{difference.max() / spread:.3g}"),
        "psnr_db": round(20 * math.log10(2 / rms), 1) if rms else None,
    }


def _median_ms(times: Sequence[float]) -> float:
    """Return the median time of the blocks after those that compile."""
    return round(1000 * statistics.median(times[2:]), 2)


def tabulate(figures: dict[str, Any]) -> str:
    """Format the figures as two tables."""
    picture, sound = figures["picture"], figures["sound"]
    kind = "causal" if picture["causal"] else f"depends on {picture['reach']} latents each way"
    lines = [f"{figures['weights']}, picture ({kind})", "look-ahead  lag s  block ms  relative rms  max     PSNR dB"]
    for row in picture["rows"]:
        psnr = "exact" if row["psnr_db"] is None else row["psnr_db"]
        lines.append(
            f"{row['lookahead']:>10}  {row['lag_s']:>5}  {row['block_ms']:>8}  {row['relative_rms']:<12}  "
            f"{row['max']:<6}  {psnr}"
        )
    lines.append(
        f"sound (waits for {sound['delay_rows']} mel rows, {sound['lag_s']} s; block {sound['block_ms']} ms; "
        f"max error {sound['max']}); error with fewer rows:"
    )
    lines.append("rows          " + "  ".join(f"{row['rows']:>7}" for row in sound["rows"]))
    lines.append("relative rms  " + "  ".join(f"{row['relative_rms']:>7.2g}" for row in sound["rows"]))
    return "\n".join(lines)
