"""OmniForcing in JAX: streaming joint audio-video generation, from the model to the stream.

    import omniforcing_jax as of

    for chunk in of.open_stream("chime", "a red ball and a blue ball", seconds=5):
        print(chunk)

What is listed in `__all__` is the front door. Each name is imported when it is first used, so `import omniforcing_jax`
takes milliseconds and imports no JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniforcing_jax.io.machine import use_compilation_cache
    from omniforcing_jax.judge.judge_file import judge_file
    from omniforcing_jax.pipeline.weights_folder import load_pipeline
    from omniforcing_jax.sample.clip import sample_clip
    from omniforcing_jax.sample.two_stage import sample_two_stage
    from omniforcing_jax.stream.chunk import Chunk
    from omniforcing_jax.stream.chunk_stream import ChunkStream
    from omniforcing_jax.stream.conditioning.condition import Condition
    from omniforcing_jax.stream.remote import connect
    from omniforcing_jax.stream.resume import resume
    from omniforcing_jax.stream.saved import save
    from omniforcing_jax.stream.start import open_stream

    __version__: str

__all__ = [
    "Chunk",
    "ChunkStream",
    "Condition",
    "__version__",
    "connect",
    "judge_file",
    "load_pipeline",
    "open_stream",
    "resume",
    "sample_clip",
    "sample_two_stage",
    "save",
    "use_compilation_cache",
]

_MODULES = {
    "Chunk": "stream.chunk",
    "ChunkStream": "stream.chunk_stream",
    "connect": "stream.remote",
    "Condition": "stream.conditioning.condition",
    "judge_file": "judge.judge_file",
    "load_pipeline": "pipeline.weights_folder",
    "open_stream": "stream.start",
    "resume": "stream.resume",
    "sample_clip": "sample.clip",
    "sample_two_stage": "sample.two_stage",
    "save": "stream.saved",
    "use_compilation_cache": "io.machine",
}


def __getattr__(name: str) -> Any:
    """Import a name of the front door when it is first used (PEP 562)."""
    if name == "__version__":
        value = _read_version()
    elif name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _read_version() -> str:
    """Read the version of the installed package, or of the checkout that this file lies in."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("omniforcing_jax")
    except PackageNotFoundError:
        import tomllib
        from pathlib import Path

        project = Path(__file__).parent.parent / "pyproject.toml"
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
