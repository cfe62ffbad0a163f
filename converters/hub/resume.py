"""One large file of the hub, resumed after the process that loaded it was killed.

The client loads into a file that only its own process knows, and begins again from the first byte when it is started
anew. Here what has arrived is kept among the client's blobs, under the name that earlier versions of it used. A whole
file is put where the client looks for one, and the client does the rest.

Source: huggingface_hub@2.4.0:file_download.py.
"""

import re
from pathlib import Path

from omniforcing_jax.io.atomic_write import hash_file
from omniforcing_jax.io.extras import need

LARGE = 10 << 20  # bytes; what is smaller is loaded anew
SHA256 = re.compile(r"[0-9a-f]{64}")


def load_blob(repo: str, file: str, commit: str) -> None:
    """Load the rest of a file into the client's cache; do nothing where it is there.

    Args:
        repo: Owner and name.
        file: The file in it.
        commit: Commit to take it from.

    Raises:
        ValueError: What was resumed is not the file that the hub has; names it. The next run begins anew.
    """
    need("huggingface_hub", extra="convert")
    from huggingface_hub import HfApi, constants, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url = hf_hub_url(repo, file, revision=commit, endpoint=HfApi().endpoint)
    about = HfApi().get_hf_file_metadata(url=url)
    blob = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs" / str(about.etag)
    partial = blob.with_name(f"{blob.name}.incomplete")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(blob.with_name(f"{blob.name}.lock")):
        if blob.exists():
            return
        with partial.open("ab") as out:
            begin = out.tell()
            http_get(
                url,
                out,
                resume_size=begin,
                headers=build_hf_headers(),
                expected_size=about.size,
                displayed_filename=file,
            )
        if begin and SHA256.fullmatch(blob.name):
            _check(partial, blob.name, f"{repo}:{file}")
        partial.replace(blob)


def _check(partial: Path, digest: str, name: str) -> None:
    if hash_file(partial) != digest:
        partial.unlink()
        raise ValueError(f"{name}: the parts that were downloaded do not fit together; run the command again")
