"""What pyproject.toml cannot say: which packages a wheel has, and the readme of an index page.

The wheel has one top-level package, omniforcing_jax. The folder converters/ becomes a package inside it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

PAGES = "https://github.com/omniforcing-jax/omniforcing_jax/blob/main"
FILES = "https://raw.githubusercontent.com/omniforcing-jax/omniforcing_jax/main"
PICTURES = (".png", ".webp", ".gif", ".jpg", ".svg")


def with_addresses(text: str) -> str:
    """Return Markdown whose relative links are absolute addresses: an index page has no files beside it."""

    def address(link: "re.Match[str]") -> str:
        before, path = link.groups()
        return f"{before}{FILES if path.endswith(PICTURES) else PAGES}/{path}"

    return re.sub(r"""(\]\(|\ssrc=")(?!\w+:|#)([^)"\s]+)""", address, text)


setup(
    packages=find_packages(include=["omniforcing_jax*"])
    + [f"omniforcing_jax.{name}" for name in find_packages(include=["converters*"])],
    package_dir={"omniforcing_jax.converters": "converters"},
    long_description=with_addresses(Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
