"""The reference's ODE pairs, an LMDB, read into our store.

Keys of the reference: `video_latents_shape` "N E F C H W", `audio_latents_shape` "N E A C" and, for each row i,
`video_latents_i_data` and `audio_latents_i_data` (float16), `sigmas_i_data` (float32) and `prompts_i_data` (UTF-8).
Older files have no sigmas.

Source: OmniForcing@50a271f:ltx_distillation/ode/create_lmdb.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from omniforcing_jax.io.extras import need
from omniforcing_jax.train.pairs import pairs_header
from omniforcing_jax.train.store import Row, fill

Get = Callable[[bytes], bytes | None]


@contextmanager
def open_lmdb(path: Path) -> Iterator[Get]:
    """Open an LMDB (a folder, or a single file) for reading, as a function from key to value.

    Raises:
        ValueError: If `lmdb` is not installed, or the path holds no LMDB.
    """
    need("lmdb", extra="lmdb")
    import lmdb  # pyright: ignore[reportMissingImports]

    try:
        environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir())
    except lmdb.Error as error:
        raise ValueError(f"{path}: is not an LMDB: {error}") from None
    with environment, environment.begin() as transaction:
        yield transaction.get


def import_pairs(
    get: Get,
    folder: Path,
    *,
    shards: int,
    teacher: str,
    sigmas: tuple[float, ...] | None = None,
    process: int = 0,
    processes: int = 1,
) -> int:
    """Copy pairs of the reference into a store; a second call goes on where the first stopped.

    Args:
        get: From key to value, such as `open_lmdb` gives.
        folder: Of our store.
        shards: Files that the rows will lie in.
        teacher: Fingerprint or name of the weights that made them.
        sigmas: Noise levels of the entries, for a file that does not say.
        process: Which of `processes` this is; each writes its own shards.
        processes: How many there are.

    Returns:
        How many rows were copied now.

    Raises:
        ValueError: If a key is missing, has the wrong number of bytes, or rows have different levels; names the key.
    """
    count, entries, frames, channels, rows, columns = _shape(get, "video_latents", 6)
    audio_shape = _shape(get, "audio_latents", 4)
    if audio_shape[:2] != (count, entries):
        raise ValueError(
            f"audio_latents_shape={audio_shape}: must begin with {(count, entries)}, as video_latents_shape"
        )
    levels = _levels(get, 0, entries, sigmas)
    header = pairs_header(
        count=count,
        shards=shards,
        sigmas=levels,
        video=(frames, rows, columns, channels),
        audio=(audio_shape[2], audio_shape[3]),
        teacher=teacher,
    )

    def read(index: int) -> Row:
        if _levels(get, index, entries, sigmas) != levels:
            raise ValueError(f"sigmas_{index}_data={_levels(get, index, entries, sigmas)}: row 0 has {levels}")
        video = _array(get, f"video_latents_{index}_data", (entries, frames, channels, rows, columns))
        audio = _array(get, f"audio_latents_{index}_data", (entries, *audio_shape[2:]))
        arrays = {"video": video.transpose(0, 1, 3, 4, 2), "audio": audio, "seed": np.asarray(index, np.int64)}
        return Row(_value(get, f"prompts_{index}_data").decode(), arrays)

    return fill(folder, header, read, process=process, processes=processes)


def _value(get: Get, key: str) -> bytes:
    value = get(key.encode())
    if value is None:
        raise ValueError(f"key '{key}' is missing; this is no LMDB of ODE pairs, or it is incomplete")
    return bytes(value)


def _shape(get: Get, name: str, axes: int) -> tuple[int, ...]:
    text = _value(get, f"{name}_shape").decode()
    numbers = text.split()
    if len(numbers) != axes or not all(number.isdigit() for number in numbers):
        raise ValueError(f"{name}_shape='{text}': must be {axes} numbers")
    return tuple(int(number) for number in numbers)


def _array(get: Get, key: str, shape: tuple[int, ...], dtype: type = np.float16) -> np.ndarray:
    data = _value(get, key)
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise ValueError(f"{key}: {len(data)} bytes, expected {expected} for {np.dtype(dtype)} {list(shape)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _levels(get: Get, index: int, entries: int, given: tuple[float, ...] | None) -> tuple[float, ...]:
    if get(f"sigmas_{index}_data".encode()) is None:
        if given is None:
            raise ValueError(f"sigmas_{index}_data is missing; say the noise levels of the {entries} entries (sigmas)")
        if len(given) != entries:
            raise ValueError(f"sigmas={given}: the rows have {entries} entries")
        return given
    found = tuple(_array(get, f"sigmas_{index}_data", (entries,), np.float32).tolist())
    if given is not None and not np.allclose(found, given, rtol=0, atol=1e-6):
        raise ValueError(f"sigmas={given}: the file has {found}")
    return found
