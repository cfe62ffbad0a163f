"""The program `omniforcing`: which commands there are, and how a bad request is answered.

An error is one line on stderr and exit code 2. JAX is imported only when a request has been understood. The commands
for PyTorch checkpoints belong to the converters, which a wheel has inside this package and a checkout beside it.
"""

import contextlib
import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any

import omniforcing_jax
from omniforcing_jax.chime import demo
from omniforcing_jax.chime.demo import Demo
from omniforcing_jax.cli.options import (
    BenchOptions,
    ContextsOptions,
    JudgeOptions,
    PlanOptions,
    SampleOptions,
    ServeOptions,
    StreamOptions,
)
from omniforcing_jax.io.answers import answer, take_debug
from omniforcing_jax.io.arguments import read_flags, unknown
from omniforcing_jax.io.help_page import list_commands
from omniforcing_jax.pipeline.converters_room import import_converters

PROGRAM = "omniforcing"
DOC = """
Stream video with sound from text, block by block: OmniForcing in JAX.

Try:   omniforcing demo
       omniforcing stream --prompt "a red ball and a blue ball" --seconds 12 --out out/balls.mp4
"""
Command = (
    StreamOptions | SampleOptions | ServeOptions | Demo | ContextsOptions | BenchOptions | JudgeOptions | PlanOptions
)
COMMANDS: dict[str, type] = {
    "stream": StreamOptions,
    "serve": ServeOptions,
    "sample": SampleOptions,
    "demo": Demo,
    "contexts": ContextsOptions,
    "bench": BenchOptions,
    "judge": JudgeOptions,
    "plan": PlanOptions,
}
CONVERTERS = {
    "convert": "Convert PyTorch checkpoints into a weights folder.",
    "export": "Write a weights folder in another format.",
    "inspect": "Show what a file or folder of weights holds.",
    "diff": "Compare two checkpoints; the exit code is 1 where they differ.",
    "check": "Run a converted network on recorded activations.",
}
GROUPS = {
    "Make": {name: COMMANDS[name] for name in ("stream", "serve", "sample", "demo")},
    "Measure": {name: COMMANDS[name] for name in ("judge", "bench", "plan")},
    "Prepare text": {"contexts": ContextsOptions},
    "Weights from and to PyTorch": CONVERTERS,
}
STARTING = ("stream", "sample", "bench", "contexts")  # these import JAX and compile

Work = Callable[[], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 after an error, 130 after Ctrl-C, else the command's own."""
    words, debug = take_debug(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and words[:1] and words[0] in STARTING:  # this process is the command's own
        gc.disable()  # a fifth of a start is the collector, which finds nothing; `Startup` ends it

    def work() -> int:
        with contextlib.ExitStack() as stack:
            return prepare(words, stack)()

    try:
        return answer(work, debug=debug)
    finally:
        gc.enable()


def parse(arguments: Sequence[str]) -> Any:
    """Read a command and its flags, of whichever part of the program it is; returns an instance of its dataclass.

    Raises:
        ValueError: In one line, if they cannot be read; unknown names are answered with the nearest.
        SystemExit: After printing the help that was asked for.
    """
    name, rest = arguments[0], arguments[1:]
    if name in CONVERTERS:
        return import_converters("cli").parse(arguments)
    if name in COMMANDS:
        return read_flags(f"{PROGRAM} {name}", COMMANDS[name], rest)
    raise unknown("command", name, [*COMMANDS, *CONVERTERS])


def prepare(arguments: Sequence[str], stack: contextlib.ExitStack) -> Work:
    """Read the command line, check the request and load what it needs. What comes back does the work.

    Args:
        arguments: What follows the program's name.
        stack: Closes what must be closed after the work, or after a refusal.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
        SystemExit: After printing the help that was asked for.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        return _print(list_commands(PROGRAM, DOC, GROUPS))
    if name == "--version":
        return _print(f"{PROGRAM} {omniforcing_jax.__version__}")
    if name in CONVERTERS:
        return import_converters("cli").prepare(arguments)
    return prepare_command(name, parse(arguments), stack)


def prepare_command(name: str, command: Command, stack: contextlib.ExitStack) -> Work:
    """Check a request of one of this package's own commands and load what it needs; raises as `prepare`."""
    if isinstance(command, Demo):
        return lambda: demo.main(command)
    if isinstance(command, JudgeOptions):  # it runs without JAX
        from omniforcing_jax.cli.judge import prepare_judge

        return _returning_zero(prepare_judge(command))
    if isinstance(command, ServeOptions):  # its mock runs without JAX
        from omniforcing_jax.cli.serve import prepare_serve

        return prepare_serve(command, stack, omniforcing_jax.__version__)
    if isinstance(command, BenchOptions) and command.what == "serve":  # its server is another process
        from omniforcing_jax.cli import bench_serve

        return _returning_zero(bench_serve.prepare_bench(command))
    if isinstance(command, PlanOptions):
        from omniforcing_jax.cli.plan import prepare_plan

        return prepare_plan(command)
    from omniforcing_jax.cli import bench_decode, bench_stream, contexts, sample, stream
    from omniforcing_jax.io import machine
    from omniforcing_jax.io.startup import Startup

    machine.use_compilation_cache()
    machine.use_one_heap()
    if not isinstance(command, BenchOptions):  # its first process is another one, which needs the devices
        machine.check_backend()
    startup = stack.enter_context(Startup(name))
    if isinstance(command, StreamOptions):
        return _returning_zero(stream.prepare_stream(command, startup))
    if isinstance(command, SampleOptions):
        return _returning_zero(sample.prepare_sample(command, startup))
    if isinstance(command, ContextsOptions):
        return _returning_zero(contexts.prepare_contexts(command, startup))
    bench = bench_decode if command.what == "decode" else bench_stream
    return _returning_zero(bench.prepare_bench(command, startup))


def _print(text: str) -> Work:
    return _returning_zero(lambda: print(text))


def _returning_zero(work: Callable[[], None]) -> Work:
    def run() -> int:
        work()
        return 0

    return run
