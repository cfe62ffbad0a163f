"""ODE pairs: entries of a teacher's trajectories from noise to clip, by prompt; what stage 2 learns from.

They are a store (store.py) of kind "ode_pairs". Video latents are [n, F, H, W, C] on disk, whose bytes are those of
the tokens [n, T, C] that the network takes.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from omniforcing_jax.layout import Layout, audio_latents
from omniforcing_jax.strict_json import parse
from omniforcing_jax.train.compare import differences, refuse
from omniforcing_jax.train.store import Header, Row, Store, Writer

KIND = "ode_pairs"

log = logging.getLogger(__name__)


def pairs_header(
    *,
    count: int,
    shards: int,
    sigmas: tuple[float, ...],
    video: tuple[int, int, int, int],
    audio: tuple[int, int],
    teacher: str,
    extra: dict[str, tuple[str, tuple[int, ...]]] | None = None,
) -> Header:
    """Describe a store of pairs.

    Args:
        count: Trajectories in all, one per prompt.
        shards: Files that they lie in.
        sigmas: Noise levels of the E entries, from noise to clip.
        video: Latent frames, rows, columns and channels of an entry.
        audio: Latent frames and channels of an entry.
        teacher: Fingerprint (`weights.fingerprint`) of the weights that made them.
        extra: Further arrays of a row, dtype and shape by name, such as token ids of the prompt.

    Raises:
        ValueError: If the sigmas do not fall to 0, or the audio is neither as long as the video nor one latent longer,
            as some layouts have it.
    """
    if list(sigmas) != sorted(set(sigmas), reverse=True) or sigmas[-1] != 0:
        raise ValueError(f"sigmas={sigmas}: must fall, and end at 0")
    least = audio_latents(video[0])
    if audio[0] - least not in (0, 1):
        raise ValueError(f"audio={audio}: {video[0]} video latent frames go with {least}, or {least + 1}")
    arrays = {
        "video": ("float16", (len(sigmas), *video)),
        "audio": ("float16", (len(sigmas), *audio)),
        "seed": ("int64", ()),
    }
    facts = {"sigmas": [float(sigma) for sigma in sigmas], "teacher": teacher}
    return Header(kind=KIND, count=count, shards=shards, arrays=arrays | (extra or {}), facts=facts)


def write_pairs(
    writer: Writer,
    batch: int,
    make: Callable[[np.ndarray], tuple[jax.Array, jax.Array]],
    describe: Callable[[int], tuple[str, dict[str, np.ndarray]]],
) -> None:
    """Make and write the trajectories that a store lacks, of this process's rows.

    Args:
        writer: Of the store; its header is one of `pairs_header`.
        batch: Rows at a time; the last ones are filled up with rows over again, so that one program makes all.
        make: Takes rows [B] int32, gives the entries of their trajectories, [E, B, T, C] and [E, B, A, C]; those of a
            row must not depend on the rows beside it.
        describe: Gives a row's prompt and its extra arrays.
    """
    missing, shape = writer.missing(), writer.header.arrays["video"][1]
    for first in range(0, len(missing), batch):
        rows = missing[first : first + batch]
        video, audio = jax.device_get(make(np.resize(rows, batch).astype(np.int32)))
        for i, row in enumerate(rows):
            prompt, extra = describe(row)
            arrays = {
                "video": video[:, i].reshape(shape).astype(np.float16),
                "audio": audio[:, i].astype(np.float16),
                "seed": np.asarray(row, np.int64),
            }
            writer.put(row, Row(prompt, arrays | extra))
        log.info("%d/%d trajectories", first + len(rows), len(missing))


class Pairs:
    """Trajectories as a source of batches: `video` [E, T, C], `audio` [E, A, C], float16, and what else a row has."""

    def __init__(
        self,
        folder: Path,
        *,
        sigmas: tuple[float, ...],
        layout: Layout,
        channels: tuple[int, int] | None = None,
        teacher: str | None = None,
    ):
        """Open a store and check that it is what a student learns from.

        Args:
            folder: Of the store.
            sigmas: The student's noise levels.
            layout: The student's; the clips must be whole blocks of it.
            channels: Latent channels of video and audio; None takes any.
            teacher: Fingerprint of the weights that must have made them; None takes any.

        Raises:
            ValueError: If the store is missing, incomplete or damaged, or made for other levels, another layout, other
                latents or by another teacher; says which.
        """
        self._store = Store(folder, KIND)
        header = self._store.header
        found = parse(tuple[float, ...], header.fact("sigmas"), f"{folder}: facts.sigmas")
        if len(found) != len(sigmas) or not np.allclose(found, sigmas, rtol=0, atol=1e-6):
            raise ValueError(f"{folder}: entries at sigmas {list(found)}, expected {list(sigmas)}")
        video, audio = (header.arrays[name][1] for name in ("video", "audio"))
        try:
            layout.check_clip(video[1], audio[1])
        except ValueError as error:
            raise ValueError(f"{folder}: clips of another layout: {error}") from None
        if channels is not None:
            refuse(
                folder, "other latents", differences({"channels": [video[-1], audio[-1]]}, {"channels": [*channels]})
            )
        if teacher is not None:
            refuse(folder, "other pairs", differences({"teacher": header.fact("teacher")}, {"teacher": teacher}))
        self.prompts = self._store.prompts

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Read trajectory `index`, without its prompt and seed."""
        arrays = {name: array for name, array in self._store[index].arrays.items() if name != "seed"}
        video = arrays["video"]
        return {**arrays, "video": video.reshape(len(video), -1, video.shape[-1])}
