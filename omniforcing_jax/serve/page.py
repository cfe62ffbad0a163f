"""The files of the page, read once: nothing else is ever served, whatever a client asks for."""

from functools import cache
from importlib.resources import files

from starlette.responses import Response

from omniforcing_jax.serve.limits import RefusedError

MEDIA = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@cache
def page_files() -> dict[str, bytes]:
    """Return the content of all files by name."""
    folder = files("omniforcing_jax.serve").joinpath("page_files")
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


def respond(name: str) -> Response:
    """Return a file of the page.

    Raises:
        RefusedError: There is none of this name.
    """
    content = page_files().get(name)
    if content is None:
        raise RefusedError(404, "the page has no such file")
    return Response(content, media_type=MEDIA[name[name.rindex(".") :]])
