"""Clips as latents, by prompt: what a network learns from that is trained on real videos.

They are stores (store.py) of kind "latents", one for each bucket of equal shapes. Writers that work side by side have
stores of their own, so a folder of clips has stores at any depth. docs/videos.md has the format.
"""

from pathlib import Path

import numpy as np

from omniforcing_jax.layout import audio_latents, latent_frames
from omniforcing_jax.strict_json import parse
from omniforcing_jax.train.compare import refuse
from omniforcing_jax.train.store import HEADER, Header, Store

KIND = "latents"
Size = tuple[int, int, int]
"""Height and width in pixels, and frames of a clip."""


def clips_header(*, count: int, shards: int, size: Size, video: Size, channels: tuple[int, int], codecs: str) -> Header:
    """Describe a store of clips.

    Args:
        count: Clips.
        shards: Files that they lie in.
        size: Height and width in pixels, and frames.
        video: Latent frames, rows and columns.
        channels: Latent channels of video and audio.
        codecs: Fingerprint of the codecs that made the latents.

    Raises:
        ValueError: The latent frames are not those of the frames.
    """
    if video[0] != latent_frames(size[2]):
        raise ValueError(f"video={video}: {size[2]} frames go with {latent_frames(size[2])} latent frames")
    arrays = {
        "video": ("float16", (*video, channels[0])),
        "audio": ("float16", (audio_latents(video[0]), channels[1])),
        "start_s": ("float32", ()),
    }
    facts = {"size": list(size), "codecs": codecs}
    return Header(kind=KIND, count=count, shards=shards, arrays=arrays, facts=facts)


class Clips:
    """Clips of one bucket as a source of batches: `clip_video` [F, h, w, C] and `clip_audio` [A, E], both float16."""

    def __init__(self, stores: list[Store]):
        """Join stores of equal shapes, at least one."""
        self.size: Size = parse(tuple[int, int, int], stores[0].header.fact("size"), "size")
        self.prompts = [prompt for store in stores for prompt in store.prompts]
        self._stores = stores

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Read a clip; raises as `Store`."""
        for store in self._stores:
            if index < len(store):
                arrays = store[index].arrays
                return {"clip_video": arrays["video"], "clip_audio": arrays["audio"]}
            index -= len(store)
        raise IndexError(index)


def open_clips(folder: Path) -> dict[Size, Clips]:
    """Open all clips of a folder, by bucket.

    Raises:
        ValueError: There are none, a store is not whole, or not all are of the same codecs; names it.
    """
    stores: dict[Size, list[Store]] = {}
    paths = sorted(path.parent for path in folder.rglob(HEADER))
    if not paths:
        raise ValueError(f"{folder}: has no clips; python -m experiments.make_latents writes them")
    codecs = {}
    for path in paths:
        store = Store(path, KIND)
        size = parse(tuple[int, int, int], store.header.fact("size"), f"{path}: size")
        stores.setdefault(size, []).append(store)
        codecs.setdefault(store.header.fact("codecs"), path)
    refuse(folder, "made by several codecs", [str(path) for path in codecs.values()] if len(codecs) > 1 else [])
    return {size: Clips(each) for size, each in sorted(stores.items())}
