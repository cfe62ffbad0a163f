"""The second pass: decode each clip at its bucket's size and rate, and encode picture and sound to latents."""

import dataclasses
from typing import Any

import numpy as np

from experiments.videos.look import Clip
from omniforcing_jax.codecs.mel import LTX2_MEL
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.pipeline.pipeline import Codecs
from omniforcing_jax.stream.conditioning.media import read_frames, read_sound
from omniforcing_jax.stream.conditioning.tracks import encode_picture, encode_sound, frame_counts
from omniforcing_jax.train.store import Row


def encode(codecs: Codecs, clip: Clip, dtype: Any) -> Row:
    """Encode a clip, a second at a time: memory does not grow with its length.

    Args:
        codecs: Codecs with their encoders.
        clip: The clip.
        dtype: Type in which the picture is encoded; sound is always float32.

    Raises:
        ValueError: As `read_frames` and `read_sound`, such as for a file that was changed since it was looked at.
    """
    bucket, start_s = clip.piece
    blocks = 1 + bucket.seconds
    sizes = iter(frame_counts(PREFIX, blocks))
    frames = read_frames(clip.path, sizes, (bucket.height, bucket.width), "crop", start_s)
    video = np.concatenate([np.asarray(each[0]) for each in encode_picture(codecs, frames, dtype)])
    mel = dataclasses.replace(LTX2_MEL, bins=codecs.audio_config.mel_bins)
    channels = codecs.audio_config.audio_channels
    samples = _pad(read_sound(clip.path, mel.sample_rate, channels, bucket.seconds + 1, start_s), blocks, mel)
    audio = np.concatenate([np.asarray(each[0]) for each in encode_sound(codecs, samples, PREFIX, blocks, mel)])
    rows, columns = (side // codecs.video_config.spatial_compression for side in bucket[:2])
    arrays = {
        "video": video.reshape(-1, rows, columns, video.shape[-1]).astype(np.float16),
        "audio": audio.astype(np.float16),
        "start_s": np.asarray(start_s, np.float32),
    }
    return Row(clip.caption, arrays)


def _pad(samples: np.ndarray, blocks: int, mel: Any) -> np.ndarray:
    """Add silence where a file's sound ends within the last hundredth of the clip."""
    needed = PREFIX.start_seconds(blocks) * mel.sample_rate
    return np.pad(samples, ((0, max(0, needed - len(samples))), (0, 0)))
