"""Make training clips of videos: cut them into scenes, drop what is useless, encode the rest to latents.

A first pass measures every file: scene cuts, motion, black frames, loudness, silence. A second pass decodes each clip
at 24 frames per second and the model's sample rate, crops it to the bucket of the nearest shape, and encodes it. A
rerun goes on where the last one stopped. Several processes may work side by side, with --process P --processes N: each
takes every N-th file, and has a folder of its own. docs/videos.md has the format.

Hardware: an accelerator for the codecs of LTX-2; chime's run on a laptop.
Expect: clips by bucket, and how many were dropped for which reason.

    python -m experiments.make_latents --videos films --weights weights/ltx2 --folder clips --sizes 512x768 --seconds 5
"""

import dataclasses
import logging
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
import tyro

from experiments.cli_errors import refusing
from experiments.script import read_flags, start_logging
from experiments.videos.buckets import Bucket, parse_sizes
from experiments.videos.encode import encode
from experiments.videos.listing import list_videos
from experiments.videos.look import Clip, Search, look
from experiments.videos.scenes import Rules
from omniforcing_jax.io import machine, weights
from omniforcing_jax.io.atomic_write import replacing
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.pipeline.pipeline import Codecs, PipelineConfig, assemble_codecs
from omniforcing_jax.pipeline.weights_folder import check_components, load_components, read_pipeline_config
from omniforcing_jax.strict_json import require
from omniforcing_jax.train.clips import clips_header
from omniforcing_jax.train.store import Row, fill

CODECS = ("video_vae", "audio_vae", "vocoder")
PER_SHARD = 256  # clips of a file
LONGEST_S = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make training clips of videos."""

    videos: Path
    """Folder of videos with captions beside them (NAME.txt), or a CSV table of paths and captions."""
    weights: Path
    """Weights folder with the codecs, or the name of shipped weights."""
    folder: Path
    """Folder to write or to go on with."""
    sizes: tuple[str, ...] = ()
    """Sizes of the buckets, HEIGHTxWIDTH in pixels (default: that of the weights)."""
    seconds: tuple[int, ...] = (5,)
    """Lengths of the buckets in seconds; a scene is cut into the longest that fit."""
    path_column: str | None = None
    """Column of the paths in the table (default: path, video, file or file_name)."""
    caption_column: str | None = None
    """Column of the captions in the table (default: caption, prompt or text)."""
    rules: Annotated[Rules, tyro.conf.arg(name="")] = Rules()
    """What a clip must be like."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Type in which the picture is encoded."""
    process: int = 0
    """Which of the processes this is, from 0."""
    processes: int = 1
    """Processes that work side by side."""


class Maker(NamedTuple):
    """What makes latents: the codecs, the channels of their latents, their hash, and the type to encode pictures in."""

    codecs: Codecs
    channels: tuple[int, int]
    fingerprint: str
    dtype: jnp.dtype


def main(arguments: Arguments) -> None:
    """Look, then encode; bad input is one line on stderr and exit code 2."""
    start_logging()
    machine.use_compilation_cache()
    with refusing():
        config = read_pipeline_config(arguments.weights)
        search = make_search(arguments, config)
        check_components(Path(arguments.weights), config, CODECS)
        videos = list_videos(arguments.videos, arguments.path_column, arguments.caption_column)
        videos = videos[arguments.process :: arguments.processes]
        folder = arguments.folder / f"{arguments.process:05}-of-{arguments.processes:05}"
        clips, dropped = look(videos, folder, search)
        say(clips, dropped)
        needed = arguments.processes == 1  # the share of one process may be empty
        require(not needed or bool(clips), "videos", str(arguments.videos), "no clip is left; the log says why")
        if clips:
            write_all(arguments, config, folder, clips)


def make_search(arguments: Arguments, config: PipelineConfig) -> Search:
    """Check sizes, lengths and processes.

    Raises:
        ValueError: In one line that names the flag.
    """
    fits = 0 <= arguments.process < arguments.processes
    require(fits, "process", arguments.process, f"must be from 0 to {arguments.processes - 1}, see --processes")
    lengths = tuple(sorted(set(arguments.seconds)))
    fits = bool(lengths) and lengths[0] >= 1 and lengths[-1] <= LONGEST_S
    require(fits, "seconds", arguments.seconds, f"must be whole seconds from 1 to {LONGEST_S}")
    side = config.video_vae.spatial_compression
    sizes = parse_sizes(arguments.sizes, side) or (config.resolution,)
    return Search(sizes=sizes, lengths=lengths, rules=arguments.rules)


def say(clips: list[Clip], dropped: Counter[str]) -> None:
    """Log how many clips there are of each bucket, and what was dropped."""
    for bucket, count in sorted(Counter(clip.piece.bucket for clip in clips).items()):
        logging.info("%s: %d clips", bucket, count)
    for reason, count in dropped.most_common():
        logging.info("dropped as %s: %d", reason, count)


def write_all(arguments: Arguments, config: PipelineConfig, folder: Path, clips: list[Clip]) -> None:
    """Encode all clips into one store for each bucket, and list their captions."""
    maker = load_maker(arguments, config)
    for bucket in sorted({clip.piece.bucket for clip in clips}):
        chosen = [clip for clip in clips if clip.piece.bucket == bucket]
        count = write_bucket(folder / str(bucket), maker, bucket, chosen)
        logging.info("%s: %d clips encoded", folder / str(bucket), count)
    captions = sorted({clip.caption for clip in clips})
    with replacing(folder / "prompts.txt") as new:
        new.write_text("\n".join(captions) + "\n", encoding="utf-8")
    logging.info("%s: %d captions, for the command `contexts`", folder / "prompts.txt", len(captions))


def load_maker(arguments: Arguments, config: PipelineConfig) -> Maker:
    """Load the codecs, and nothing else of the weights."""
    dtype = jnp.dtype(arguments.dtype)
    parts = load_components(Path(arguments.weights), config, dtype, CODECS)
    made_by = weights.fingerprint({name: parts[name] for name in ("video_vae", "audio_vae")})
    channels = config.model.video.latent_channels, config.model.audio.latent_channels
    return Maker(codecs=assemble_codecs(config, parts), channels=channels, fingerprint=made_by, dtype=dtype)


def write_bucket(folder: Path, maker: Maker, bucket: Bucket, clips: list[Clip]) -> int:
    """Write the clips of a bucket that its store lacks; returns how many."""
    codecs = maker.codecs
    side = codecs.video_config.spatial_compression
    frames = latent_frames(bucket.frames)
    header = clips_header(
        count=len(clips),
        shards=-(-len(clips) // PER_SHARD),
        size=(bucket.height, bucket.width, bucket.frames),
        video=(frames, bucket.height // side, bucket.width // side),
        channels=maker.channels,
        codecs=maker.fingerprint,
    )

    def read(index: int) -> Row:
        if index % 100 == 0:
            logging.info("%s: clip %d of %d", folder, index, len(clips))
        return encode(codecs, clips[index], maker.dtype)

    return fill(folder, header, read)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
