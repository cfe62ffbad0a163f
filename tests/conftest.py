"""What every test runs under: CPU, eight fake devices, programs that are compiled in a hurry, strict numbers.

Nearly all of the suite's time is compilation. In a hurry it goes without LLVM's optimisation and with the older
emitters of fusions (a stage's gradient: 7 s instead of 34); what is computed stays. Flags in `$XLA_FLAGS` win: `make
test-long` goes through recordings and properties once more, compiled as users do. Tests that look for copies in a
compiled program take `tiny.AS_USERS_DO`.

`strict` is for core and codec tests: implicit dtype promotion raises there. It is a
context and not global, because optax relies on promotion.
"""

import ctypes
import gc
import os
import signal

from jaxlib.version import __version_info__ as jaxlib_version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "  # in a hurry
    # Later ones have no older emitters, and end at once at a flag that they do not know.
    + ("--xla_cpu_use_fusion_emitters=false " if jaxlib_version < (0, 11, 1) else "")
    + "--xla_cpu_parallel_codegen_split_count=1 "  # the workers share the cores already
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
)

import jax
import jaxtyping
import pytest
from work_began import forbid

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts background jobs; tests interrupt commands
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.set_threshold(50_000, 20, 20)  # traces make many objects that live; they would be looked through again and again
ENOUGH_BYTES = 2_500_000_000  # held by compiled programs between two files of tests


def pytest_collection_finish():
    """Spare the collector all modules and tests, which stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def strict():
    """Make implicit dtype promotion an error inside the test."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def unchecked():
    """Orbax puts values of its own into trees, which the tests' run-time check of shapes and types refuses."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def _drop_old_programs():
    """Compiled programs are never let go by themselves; a worker would hold those of all its files."""
    from omniforcing_jax.io import machine

    yield
    if machine.resident_bytes() < ENOUGH_BYTES:
        return
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # glibc keeps what is freed otherwise


@pytest.fixture(autouse=True)
def _leave_the_users_cache_alone(monkeypatch):
    monkeypatch.setattr("omniforcing_jax.io.machine.cache_folder", lambda: None)


@pytest.fixture
def quiet(capsys):
    """Drop what a command said."""
    yield
    capsys.readouterr()


@pytest.fixture
def no_work(monkeypatch):
    """Loading weights is work: a bad request must not get there."""

    forbid(monkeypatch, "omniforcing_jax.pipeline.checks.load")


def pytest_collection_modifyitems(config, items):
    """Leave the long tests to `make test-long`."""
    if config.getoption("-m"):
        return
    skipped = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=skipped)
    items[:] = [item for item in items if not item.get_closest_marker("long")]
