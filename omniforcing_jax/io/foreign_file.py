"""Files that are not what a reader hoped for, told by their first bytes or by what they are in the file system.

A download that went wrong, a file that Git left a note of, or a pipe is named as such, with what to do about it.
Nothing here reads a format.
"""

import os
import re
import stat

from omniforcing_jax.io.atomic_write import AnyPath

HEAD = 512  # bytes that tell
NOTE = re.compile(rb"version https://git-lfs\.github\.com/spec/")
ZIP, GGUF, HDF5, PICKLE = b"PK\x03\x04", b"GGUF", b"\x89HDF\r\n", re.compile(rb"\x80[\x02-\x05]")


def require_file(path: AnyPath) -> None:
    """Check that a path is a plain file, or a link to one, so that opening it cannot wait for anybody.

    Raises:
        ValueError: It is missing, a folder, a pipe, a device or a link in a circle; names the path.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path}: Is a directory")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: is a pipe or a device, must be a file")


def name_foreign(head: bytes) -> str | None:
    """Say what a file is that is neither safetensors nor JSON, and what to do; None if its head tells nothing.

    Args:
        head: The first `HEAD` bytes.
    """
    text = head.lstrip().lower()
    if NOTE.match(head):
        return "is a pointer of Git LFS, not the file itself; `git lfs pull` in its folder fetches the file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file; the download went wrong"
    if text.startswith((b"entry not found", b"access to model", b"invalid credentials", b"repository not found")):
        return f"is an answer of the hub, not the file: {head.decode(errors='replace').split(chr(10))[0]!r}"
    if head.startswith(GGUF):
        return "is a GGUF file; its name must end in .gguf"
    if head.startswith(ZIP) or PICKLE.match(head):
        return "is a pickle or a zip archive, as PyTorch writes them; its name must end in .pt"
    return "is an HDF5 file, which is not read" if head.startswith(HDF5) else None
