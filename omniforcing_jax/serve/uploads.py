"""Files that clients give: decoded in a process of its own, with bounded memory and time, and kept as arrays.

A file never touches the disk under a name that a client chose, and no decoder runs in the server's own process.
"""

import asyncio
import io
import secrets
import sys
import time
from collections import OrderedDict

import numpy as np

from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.studio import StartMedia

SECONDS = 20.0  # that decoding may take
KEPT_S = 600.0  # after which an upload that was not used is forgotten
KEPT = 16  # uploads at once
KINDS = ("image", "clip", "sound")


class Uploads:
    """Decoded uploads by their ids. An id is made here, and is good for one client.

    Args:
        prefix: What ids begin with.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._kept: OrderedDict[str, tuple[float, str, StartMedia]] = OrderedDict()
        self._busy = asyncio.Semaphore(1)

    async def add(self, data: bytes, size: tuple[int, int], client: str) -> tuple[str, StartMedia]:
        """Decode a file and keep it.

        Args:
            data: The file.
            size: Height and width that pictures are cut to.
            client: Who may use it.

        Raises:
            ValueError: It cannot be decoded; in one line.
        """
        async with self._busy:
            media = await decode(data, size)
        self._forget(time.monotonic() - KEPT_S)
        name = self._prefix + secrets.token_hex(8)
        self._kept[name] = (time.monotonic(), client, media)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return name, media

    def find(self, name: str, client: str) -> StartMedia:
        """Return an upload.

        Raises:
            RefusedError: There is none of this id from this client.
        """
        found = self._kept.get(name)
        if found is None or found[1] != client:
            raise RefusedError(404, "there is no such upload, or it is too old: upload the file again")
        return found[2]

    def _forget(self, before: float) -> None:
        while self._kept and next(iter(self._kept.values()))[0] < before:
            self._kept.popitem(last=False)


async def decode(data: bytes, size: tuple[int, int], seconds: float = SECONDS) -> StartMedia:
    """Decode a file in a process of its own.

    Raises:
        ValueError: It is no media, or takes too much memory or time; in one line.
    """
    height, width = size
    command = (sys.executable, "-m", "omniforcing_jax.serve.decode_upload", str(height), str(width))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        out, words = await asyncio.wait_for(process.communicate(data), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ValueError(f"the file takes longer than {seconds:g} s to decode") from None
    if process.returncode != 0:
        lines = words.decode(errors="replace").strip().splitlines()
        is_said = process.returncode == 2 and lines
        raise ValueError(lines[-1][:300] if is_said else "the file takes too much memory, or breaks its decoder")
    with np.load(io.BytesIO(out), allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    kind = KINDS[int(arrays["kind"])]
    return StartMedia(
        kind=kind,
        picture=arrays.get("picture"),
        sound=arrays.get("sound"),
        seconds=float(arrays["seconds"]),
    )
