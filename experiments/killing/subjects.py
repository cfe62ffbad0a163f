"""What is killed: conversions, exports, saves of a stream, trainings; how each is done, looked at and done again."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from converters import bench
from converters.cli import main as run_converters
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io import folder_swap
from omniforcing_jax.io.atomic_write import hash_file

Content = dict[str, str]
READY = "ready"  # a file of this name says that the work proper begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Work that is killed.

    Attributes:
        name: In the table.
        begin: Makes the folder as it is before the work.
        work: The work, in a process of its own; returns its exit code.
        look: Says what a killed one has left, in a word; raises AssertionError for what must not be.
        finish: Does the work again and checks its end; raises AssertionError.
        has_sign: The work makes the file READY when it begins.
    """

    name: str
    begin: Callable[[Path], object]
    work: Callable[[Path], int]
    look: Callable[[Path], str]
    finish: Callable[[Path], object]
    has_sign: bool = False


def read_content(folder: Path) -> Content:
    """Hash all files of a folder that are not hidden, by their path."""
    names = {path: str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    shown = {path: name for path, name in names.items() if not any(part.startswith(".") for part in name.split("/"))}
    return {name: hash_file(path) for path, name in shown.items()}


def convert_over(old: Path, source: Path, new: Content) -> Subject:
    """Convert over an older folder of the same shapes."""
    before = read_content(old)

    def look(folder: Path) -> str:
        found, is_accepted = read_content(folder), in_child(lambda: run("inspect", folder)) == 0
        assert not is_accepted or found in (before, new), "a mixture passes for whole"
        folder_swap.recover(folder)
        assert read_content(folder) in (before, new), "the old content is lost"
        return "mixed, refused" if found not in (before, new) else "old" if found == before else "new"

    return Subject(
        name="convert over an older folder",
        begin=lambda folder: shutil.copytree(old, folder),
        work=lambda folder: run("convert", "--from", source, "--out", folder),
        look=look,
        finish=lambda folder: rerun(folder, new, "convert", "--from", source, "--out", folder),
    )


def convert_first(source: Path, new: Content) -> Subject:
    """Convert into a folder that does not exist yet."""

    def look(folder: Path) -> str:
        is_accepted = folder.exists() and in_child(lambda: run("inspect", folder)) == 0
        assert not is_accepted or read_content(folder) == new, "a part passes for whole"
        return "new" if is_accepted else "nothing"

    return Subject(
        name="convert into a new folder",
        begin=lambda folder: None,
        work=lambda folder: run("convert", "--from", source, "--out", folder),
        look=look,
        finish=lambda folder: rerun(folder, new, "convert", "--from", source, "--out", folder),
    )


def export_first(weights: Path, new: Content) -> Subject:
    """Export into a folder that does not exist yet."""

    def look(folder: Path) -> str:
        is_whole = (folder / "model_index.json").exists()
        assert not is_whole or read_content(folder) == new, "a part passes for whole"
        return "new" if is_whole else "nothing"

    def finish(folder: Path) -> None:
        if look(folder) == "nothing":
            rerun(folder, new, "export", "--from", weights, "--to", "diffusers", "--out", folder)

    return Subject(
        name="export into a new folder",
        begin=lambda folder: None,
        work=lambda folder: run("export", "--from", weights, "--to", "diffusers", "--out", folder),
        look=look,
        finish=finish,
    )


def save_state(state: Path) -> Subject:
    """Save a stream of chime over an older state, again and again."""

    def work(folder: Path) -> int:
        from omniforcing_jax.stream.resume import resume
        from omniforcing_jax.stream.saved import save

        stream = resume(state, "chime", None)
        (folder / READY).touch()
        for _ in range(20):
            save(stream, folder)
        return 0

    def resumes(folder: Path) -> int:
        from omniforcing_jax.stream.resume import resume
        from omniforcing_jax.stream.saved import save

        save(resume(folder, "chime", None), folder)
        return 0

    def look(folder: Path) -> str:
        assert in_child(lambda: resumes(folder)) == 0, "the state cannot be resumed"
        return "a state that resumes"

    def finish(folder: Path) -> None:
        names = sorted(path.name for path in folder.iterdir() if path.name != READY)
        assert names[1:] == ["state.json"], f"the next save leaves {names}"

    return Subject(
        name="save-state over an older state",
        begin=lambda folder: shutil.copytree(state, folder),
        work=work,
        look=look,
        finish=finish,
        has_sign=True,
    )


def make_state(folder: Path) -> int:
    """Save a stream of chime after its first block."""
    from omniforcing_jax.stream.saved import save
    from omniforcing_jax.stream.start import open_stream

    stream = open_stream("chime", "a red ball", None, 0)
    next(stream)
    save(stream, folder)
    return 0


def train_walk(folder: Path) -> int:
    """Train a random walk through the project's own loop: no step is compiled, checkpoints and metrics are real."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from omniforcing_jax.train import loop
    from omniforcing_jax.train.state import TrainState
    from omniforcing_jax.train.step import Report

    class Batches:
        position = 0

        def __next__(self) -> Any:
            self.position += 1
            return np.random.default_rng(self.position).normal(size=(256, 256)).astype(np.float32)

        def get_state(self) -> Any:
            return self.position

        def set_state(self, position: Any) -> None:
            self.position = position

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Report]:
        weights = jnp.asarray(np.asarray(state.params["w"]) * np.float32(1.001) + batch)
        report = Report(metrics={"mean": weights.mean()}, finite=jnp.array([True]), checked=("mean",))
        return dataclasses.replace(state, step=state.step + 1, params={"w": weights}), report

    folder.mkdir(exist_ok=True)
    (folder / READY).touch()
    key, weights = jax.random.key_data(jax.random.key(0)), {"w": jnp.zeros((256, 256))}
    start = TrainState(step=jnp.int32(0), params=weights, opt_state=(), ema=None, extra=None, key=key)
    config = loop.LoopConfig(folder=folder, steps=60, log_every=4, save_every=5)
    end = loop.train(config, start, step, Batches(), describe={"a": 1})
    (folder / "end").write_text(hashlib.sha256(np.asarray(end.params["w"]).tobytes()).hexdigest())
    return 0


def training(unbroken: Path) -> Subject:
    """Train; the rerun goes on from the newest checkpoint and must become the unbroken run."""

    def read_end(folder: Path) -> tuple[str, list[Any]]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return (folder / "end").read_text(), [(line["step"], line["mean"]) for line in lines]

    expected = read_end(unbroken)

    def look(folder: Path) -> str:
        steps = [path for path in folder.glob("checkpoints/*") if path.name.isdigit()]
        return f"{'some' if steps else 'no'} checkpoints"

    def finish(folder: Path) -> None:
        assert in_child(lambda: train_walk(folder)) == 0, "the rerun fails"
        assert read_end(folder) == expected, "the run is another one"
        assert not list(folder.glob("checkpoints/damaged*")), "a checkpoint is damaged"

    begin = partial(Path.mkdir, exist_ok=True)
    return Subject(name="training", begin=begin, work=train_walk, look=look, finish=finish, has_sign=True)


def run(*arguments: str | Path) -> int:
    """Run a command of the converters without a word."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        return run_converters([str(argument) for argument in arguments])


def rerun(folder: Path, expected: Content, *command: str | Path) -> None:
    """Run a command to its end in a process of its own, and check the folder that it leaves."""
    assert in_child(lambda: run(*command)) == 0, "the rerun is refused"
    assert read_content(folder) == expected, "the rerun leaves something else"
    left = [path.name for path in folder.rglob(".*")]
    assert not left, f"the rerun leaves {left}"


def start(work: Callable[[], int]) -> int:
    """Begin work in a forked process; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = work()
    finally:
        os._exit(code)


def in_child(work: Callable[[], int]) -> int:
    """Do work in a forked process; returns its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(start(work), 0)[1])


def make_subjects(folder: Path) -> list[Subject]:
    """Make sources, weights, a state and an unbroken run; returns all subjects."""
    model = bench.full_width(1)
    small = dataclasses.replace(
        model,
        video=dataclasses.replace(model.video, heads=8, head_size=64),
        audio=dataclasses.replace(model.audio, heads=8, head_size=32),
    )
    make_source(folder / "old.safetensors", small, 0)
    make_source(folder / "new.safetensors", small, 1)
    for name in ("old", "new"):
        command = ("convert", "--from", folder / f"{name}.safetensors", "--out", folder / name)
        assert in_child(partial(run, *command)) == 0
    command = ("export", "--from", folder / "new", "--to", "diffusers", "--out", folder / "exported")
    assert in_child(partial(run, *command)) == 0
    assert in_child(lambda: make_state(folder / "state")) == 0
    assert in_child(lambda: train_walk(folder / "unbroken")) == 0
    new, source = read_content(folder / "new"), folder / "new.safetensors"
    return [
        convert_over(folder / "old", source, new),
        convert_first(source, new),
        export_first(folder / "new", read_content(folder / "exported")),
        save_state(folder / "state"),
        training(folder / "unbroken"),
    ]


def make_source(path: Path, config: ModelConfig, salt: int) -> None:
    """Write a checkpoint in LTX-2's form; another salt gives other values under the same header."""
    bench.make_checkpoint(path, config)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length)
        file.write(bytes([salt, 0x3F]) * 4)
