"""The wheel: built from the checkout, it has one top-level package, all that a stream needs, and complete metadata."""

import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("omniforcing_jax", "converters", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the sources, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "sources" / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / "sources" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, *offline, "--wheel-dir", folder, folder / "sources"], check=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def files(folder, pattern):
    paths = (path for path in (ROOT / folder).rglob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_the_only_top_level_package_is_ours(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"omniforcing_jax"}


def test_everything_of_the_package_is_inside(wheel):
    wanted = files("omniforcing_jax", "*.py") | files("omniforcing_jax/assets", "*") | {"omniforcing_jax/py.typed"}
    wanted |= files("omniforcing_jax/serve/page_files", "*")
    wanted |= {f"omniforcing_jax/{path}" for path in files("converters", "*.py")}
    found = {name for name in wheel.namelist() if name.startswith("omniforcing_jax/")}
    assert found == wanted


def test_the_program_is_installed(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "omniforcing = omniforcing_jax.cli.main:main" in wheel.read(name).decode()


def test_a_stream_needs_ten_packages_at_most_and_no_torch(metadata):
    core = [each for each in metadata.get_all("Requires-Dist") if "extra ==" not in each]
    assert len(core) <= 10
    assert not [each for each in core if re.match("torch|librosa|matplotlib|optax|orbax|grain", each)]
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras == {"train", "judge", "convert", "record", "serve", "ray", "gpu", "tpu", "tensorboard", "lmdb", "dev"}


@pytest.mark.parametrize(
    "field", ["Summary", "Author", "License-Expression", "License-File", "Keywords", "Classifier", "Project-URL"]
)
def test_the_metadata_is_complete(metadata, field):
    assert metadata[field]


def test_the_readme_of_an_index_page_has_no_relative_address(metadata):
    page = metadata.get_payload()
    assert page.startswith("# omniforcing_jax")
    addresses = re.findall(r"""(?:\]\(|\ssrc=")([^)"\s]+)""", page)
    assert addresses
    assert [each for each in addresses if not re.match(r"https?://|#", each)] == []
