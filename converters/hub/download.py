"""Download what a name means by the client of the hub: into its cache, resumed, found there without a network.

Source: huggingface_hub@2.4.0:file_download.py.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing_jax.io.extras import need
from omniforcing_jax.io.folder_swap import require_space

from .choice import WEIGHTS, Choice, choose
from .resume import LARGE, load_blob

NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@\s]+))?(?::(?P<file>\S+))?")
LINK = re.compile(  # what a browser shows; a path has lost one of the two slashes
    r"(?:https?:/+(?:www\.)?huggingface\.co/|hf:/+)(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:/(?:blob|resolve|tree)/(?P<revision>[^/]+)(?:/(?P<file>\S+))?)?"
)
NEWEST = "main"


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A name on the hub.

    Attributes:
        repo: Owner and name.
        revision: Branch, tag or commit.
        file: File or folder in it; None for the only one that fits.
    """

    repo: str
    revision: str
    file: str | None

    def __str__(self) -> str:
        """Spell repository and revision."""
        return self.repo if self.revision == NEWEST else f"{self.repo}@{self.revision}"


def find(path: Path, *, is_lora: bool = False) -> Path:
    """Return a source that is there as it is; download it where its name is one of the hub.

    Args:
        path: What the command line says.
        is_lora: A LoRA is meant.

    Raises:
        ValueError: In one line: there is no such repository or file, it is not open to this user, several files fit,
            the hub cannot be reached, or there is no room.
    """
    name = read_name(path)
    return path if name is None else _download(name, is_lora)


def read_name(path: Path) -> HubName | None:
    """Read a name or a link; None for a path that exists, or that is meant for this machine by its folder or ending."""
    found = LINK.fullmatch(str(path)) or (None if _is_local(path) else NAME.fullmatch(str(path)))
    if found is None:
        return None
    return HubName(repo=found["repo"], revision=found["revision"] or NEWEST, file=found["file"])


def _is_local(path: Path) -> bool:
    is_there = path.exists() or any(folder.exists() for folder in path.parents if folder.name)
    return is_there or (path.suffix in WEIGHTS and ":" not in str(path))


def name_of(path: Path) -> str:
    """Name a source for people. In the hub's cache folders are called after commits, and links lead to hashes."""
    full = Path(os.path.abspath(path))
    is_commit = full.parent.name == "snapshots" and "--" in full.parent.parent.name
    return full.parent.parent.name.rpartition("--")[2] if is_commit else full.stem


def _download(name: HubName, is_lora: bool) -> Path:
    need("huggingface_hub", extra="convert")
    from huggingface_hub import HfApi, constants

    with _one_line(name):
        if constants.HF_HUB_OFFLINE:
            return _find_in_cache(name, is_lora)
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
        sizes = {each.rfilename: each.size for each in info.siblings or ()}
        choice = choose(str(name), sizes, name.file, is_lora)
        _announce(name, choice, sizes, str(info.sha))
        paths = [_load(name, file, sizes[file] or 0, str(info.sha)) for file in choice.files]
        folders = {path.parents[file.count("/")] for path, file in zip(paths, choice.files, strict=True)}
        if len(folders) != 1:
            raise ValueError(f"{name}: changed while it was downloaded; run the command again")
        return folders.pop() / choice.root


def _load(name: HubName, file: str, nbytes: int, commit: str) -> Path:
    """Load one file; returns where the cache has it."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    is_large = LARGE <= nbytes < constants.MAX_HTTP_DOWNLOAD_SIZE  # what is larger still has a protocol of its own
    if is_large and not isinstance(try_to_load_from_cache(name.repo, file, revision=commit), str):
        load_blob(name.repo, file, commit)
    return Path(HfApi().hf_hub_download(name.repo, file, revision=name.revision))


def _announce(name: HubName, choice: Choice, sizes: Mapping[str, int | None], commit: str) -> None:
    """Say how much will be downloaded, and check that there is room."""
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    left = [
        file for file in choice.files if not isinstance(try_to_load_from_cache(name.repo, file, revision=commit), str)
    ]
    total, rest = (sum(sizes[file] or 0 for file in files) for files in (choice.files, left))
    said = f"{len(left)} of them with {rest / 1e9:.2f} GB to download into {cache}" if left else f"all in {cache}"
    print(f"{name}: {len(choice.files)} files, {total / 1e9:.2f} GB; {said}", flush=True)
    require_space(cache, rest)


def _find_in_cache(name: HubName, is_lora: bool) -> Path:
    """Find a name among what was downloaded earlier."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name.repo, revision=name.revision, local_files_only=True))
    sizes = {
        str(path.relative_to(folder).as_posix()): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    return folder / choose(f"{name} in the cache", sizes, name.file, is_lora).root


@contextlib.contextmanager
def _one_line(name: HubName) -> Iterator[None]:
    """Turn what the client raises into one line that says what to do.

    Raises:
        ValueError: Always, if anything was raised.
    """
    from huggingface_hub import errors

    # The bases are OSError and the HTTPError of the library that this version of the client is built on.
    bases: tuple[Any, ...] = errors.HfHubHTTPError.__bases__
    try:
        yield
    except (*bases, errors.LocalEntryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(f"{name}: {_explain(name, error)}") from None


def _explain(name: HubName, error: Exception) -> str:
    from huggingface_hub import constants, errors

    page, log_in = f"{constants.ENDPOINT}/{name.repo}", "log in with `hf auth login`, or set HF_TOKEN"
    status = _find_status(error)
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: accept its licence at {page}, then {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {name.revision}; {page} lists them"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such file here, and no such repository at {constants.ENDPOINT}; if it is private, {log_in}"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)) and constants.HF_HUB_OFFLINE:
        return "is not in the cache, and HF_HUB_OFFLINE forbids to download it"
    if status in (401, 403):
        return f"the hub refused the access (status {status}): {log_in}, with a token that may read {page}"
    if status is not None:
        return f"the hub answered with status {status}; run the command again later, it goes on where it was"
    if isinstance(error, errors.HFValidationError):
        return str(error).splitlines()[0]
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"no such file here, and {constants.ENDPOINT} cannot be reached ({reason}); the same command resumes"


def _find_status(error: BaseException | None) -> int | None:
    """Return the hub's status. The client may say that a file is not in its cache, with the status as the cause."""
    if error is None:
        return None
    own = getattr(getattr(error, "response", None), "status_code", None)
    return _find_status(error.__cause__) if own is None else own
