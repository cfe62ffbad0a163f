"""A process that decodes one upload: a file on stdin, arrays on stdout. It is bounded in memory and time.

A picture is cut to the size that is asked for. A clip is cut to its first whole seconds and one frame, a sound to whole
seconds. An error is one line on stderr and exit code 2.
"""

import io
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

MEMORY = 3_000_000_000  # bytes of address space, libraries included
CPU_S = 15
LONGEST_S = 10  # of a clip or a sound
SOUND_RATE = 16_000


def main() -> int:
    """Decode stdin; the arguments are height and width. Returns the exit code."""
    height, width = (int(word) for word in sys.argv[1:3])
    bound_process()
    try:
        arrays = decode_here(sys.stdin.buffer.read(), (height, width))
    except (ValueError, MemoryError) as error:
        print(str(error).replace("\n", " ") or "the file takes too much memory", file=sys.stderr)
        return 2
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    sys.stdout.buffer.write(out.getvalue())
    return 0


def bound_process() -> None:
    """Let this process end, or fail, rather than take more memory or processor time than it may."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


def decode_here(data: bytes, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the arrays of a file: kind, seconds, picture and sound.

    Raises:
        ValueError: It is no media, or too short.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        path.write_bytes(data)
        try:
            return _read(path, size)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "the file")) from None


def _read(path: Path, size: tuple[int, int]) -> dict[str, np.ndarray]:
    from omniforcing_jax.layout import FRAME_RATE
    from omniforcing_jax.stream.conditioning import media

    has_sound = media.has_sound(path)
    try:
        info = media.read_picture_info(path)
    except ValueError as error:
        if not has_sound:
            raise error
        return _read_sound(path)
    seconds = min(LONGEST_S, (info.frames - 1) // FRAME_RATE)
    frames = 1 + FRAME_RATE * seconds
    (picture,) = media.read_frames(path, iter([frames]), size, "crop")
    found = {"kind": np.array(int(seconds > 0)), "seconds": np.array(float(seconds)), "picture": picture}
    if seconds and has_sound:
        sound = media.read_sound(path, SOUND_RATE, 2, seconds + 1, info.start_s)
        found["sound"] = _fit(sound, seconds)
    return found


def _read_sound(path: Path) -> dict[str, np.ndarray]:
    from omniforcing_jax.stream.conditioning import media

    sound = media.read_sound(path, SOUND_RATE, 2, LONGEST_S + 1, None)
    seconds = min(LONGEST_S, len(sound) // SOUND_RATE)
    if not seconds:
        raise ValueError(f"the file has {len(sound) / SOUND_RATE:.2f} s of sound; at least 1 s is needed")
    return {"kind": np.array(2), "seconds": np.array(float(seconds)), "sound": _fit(sound, seconds)}


def _fit(sound: np.ndarray, seconds: int) -> np.ndarray:
    """Return the first seconds of a sound, with silence where it ends early."""
    wanted = seconds * SOUND_RATE
    return np.pad(sound[:wanted], ((0, max(0, wanted - len(sound))), (0, 0))).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
