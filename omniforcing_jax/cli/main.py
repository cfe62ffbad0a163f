"""The command line: what can be asked, and how a bad request is answered.

    python -m omniforcing_jax stream --prompt TEXT --seconds S --out FILE.mp4 [--save-state DIR]
    python -m omniforcing_jax stream --resume DIR --seconds MORE --out FILE.mp4
    python -m omniforcing_jax sample --prompt TEXT --seconds S --out FILE.mp4
    python -m omniforcing_jax contexts --prompts FILE --weights DIR --out FILE.safetensors
    python -m omniforcing_jax bench stream --blocks K --json FILE
    python -m omniforcing_jax bench decode --json FILE
    python -m omniforcing_jax judge FILE.mp4 --json FILE

Bad input is one line on stderr and exit code 2. JAX is imported only when a request has been understood.
"""

import sys
from collections.abc import Callable, Sequence

from omniforcing_jax.cli import judge, sample
from omniforcing_jax.cli.options import BenchOptions, ContextsOptions, JudgeOptions, SampleOptions, StreamOptions
from omniforcing_jax.io.arguments import read_command

COMMANDS: dict[str, type] = {
    "stream": StreamOptions,
    "sample": SampleOptions,
    "contexts": ContextsOptions,
    "bench": BenchOptions,
    "judge": JudgeOptions,
}
Command = StreamOptions | SampleOptions | ContextsOptions | BenchOptions | JudgeOptions


def parse(arguments: Sequence[str]) -> Command:
    """Read the command line; raises as `read_command`."""
    return read_command("omniforcing_jax", __doc__, COMMANDS, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        work = prepare(command)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        work()
    except KeyboardInterrupt:
        return 130
    return 0


def prepare(command: Command) -> Callable[[], None]:
    """Check a request and load what it needs; what comes back does the work.

    Raises:
        ValueError: in one line, whatever is wrong with it.
    """
    from omniforcing_jax.cli import bench_decode, bench_stream, contexts, stream
    from omniforcing_jax.io import machine

    machine.use_compilation_cache()
    machine.use_one_heap()
    if isinstance(command, StreamOptions):
        return stream.prepare_stream(command)
    if isinstance(command, SampleOptions):
        return sample.prepare_sample(command)
    if isinstance(command, ContextsOptions):
        return contexts.prepare(command)
    if isinstance(command, JudgeOptions):
        return judge.prepare_judge(command)
    return (bench_decode if command.what == "decode" else bench_stream).prepare(command)
