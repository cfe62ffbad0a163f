"""Denoising steps on the screen: a bar that begins with the first step, because that one was compiled."""

import contextlib
from collections.abc import Callable, Iterator

from omniforcing_jax.io.progress import Bar
from omniforcing_jax.io.startup import Startup


@contextlib.contextmanager
def shown_steps(steps: int, startup: Startup) -> Iterator[Callable[[int], None]]:
    """Context manager that shows how far a clip is.

    Args:
        steps: Denoising steps in all.
        startup: The command's startup, which ends with the first step.

    Yields:
        What to call with the number of steps done.
    """
    with contextlib.ExitStack() as stack:
        bars: list[Bar] = []

        def on_step(step: int) -> None:
            if not bars:
                startup.ready()
                bars.append(stack.enter_context(Bar("sampling", steps, "steps")))
            bars[0](step, "decoding" if step == steps else "")

        yield on_step
