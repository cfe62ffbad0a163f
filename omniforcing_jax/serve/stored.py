"""Sessions on disk: the folder of `--state`, from which a restart offers them again.

    state/<id>/session.json    the request
    state/<id>/stream/         what the source saved

Names of folders are made here and never come from a client.
"""

import contextlib
import dataclasses
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from omniforcing_jax.io.atomic_write import check_folder_writable, write_json
from omniforcing_jax.serve.messages import CameraBody, StreamRequestBody
from omniforcing_jax.serve.studio import Source
from omniforcing_jax.strict_json import read_object

SESSION, STREAM = "session.json", "stream"
ID = re.compile(r"[a-z0-9]{12}")


class StoredSession(NamedTuple):
    """A session that a folder holds."""

    id: str
    body: StreamRequestBody
    block: int
    prompt: str
    camera: str | None
    made_s: float


class Store:
    """The folder of saved sessions; with None nothing is ever saved.

    Args:
        folder: Made if it is missing.

    Raises:
        ValueError: It cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            check_folder_writable(folder)
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, session: StoredSession, source: Source) -> None:
        """Write a session. One that is there stays valid until the new one is complete."""
        assert self.folder is not None, "nothing is saved without a folder"
        place = self.folder / session.id
        place.mkdir(exist_ok=True)
        source.save(place / STREAM)
        about = {"body": dataclasses.asdict(session.body), "block": session.block, "made_s": session.made_s}
        write_json(place / SESSION, {**about, "prompt": session.prompt, "camera": session.camera})

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each session's folder by its name, the one that was saved longest ago first."""
        if self.folder is None:
            return {}
        found = []
        for place in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another thread may remove it meanwhile
                if ID.fullmatch(place.name):
                    size = sum(each.stat().st_size for each in place.rglob("*") if each.is_file())
                    found.append((place.stat().st_mtime, place.name, size))
        return {name: size for _, name, size in sorted(found)}

    def has(self, name: str) -> bool:
        """Return whether a session is saved."""
        return self.folder is not None and (self.folder / name / SESSION).is_file()

    def stream_of(self, name: str) -> Path:
        """Return the folder that a source was saved to."""
        assert self.folder is not None, "nothing is saved without a folder"
        return self.folder / name / STREAM

    def remove(self, name: str) -> None:
        """Forget a session."""
        if self.folder is not None:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def list(self) -> tuple[StoredSession, ...]:
        """Return the sessions that the folder holds. What is none is left alone."""
        if self.folder is None:
            return ()
        folders = sorted(each for each in self.folder.iterdir() if ID.fullmatch(each.name))
        return tuple(found for each in folders if (found := _read(each)) is not None)


def _read(folder: Path) -> StoredSession | None:
    try:
        values = read_object(folder / SESSION)
        body = StreamRequestBody.from_dict(values["body"])
        block, made_s = int(values["block"]), float(values["made_s"])
        camera = CameraBody(camera=values.get("camera")).camera
        return StoredSession(folder.name, body, block, str(values["prompt"]), camera, made_s)
    except (ValueError, KeyError, TypeError):
        return None
