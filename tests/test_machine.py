"""Settings of the process underneath."""

import platform
import subprocess
import sys

import pytest

from omniforcing_jax.io import machine

HEAPS = """
import ctypes, os, sys, tempfile, threading
from omniforcing_jax.io import machine

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p

def heaps():
    with tempfile.NamedTemporaryFile() as file:
        out = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, out)
        libc.fclose(out)
        return file.read().count(b"<heap nr")

def hold():
    block = bytearray(100_000)
    barrier.wait()

if sys.argv[1] == "one":
    machine.use_one_heap()
before, barrier = heaps(), threading.Barrier(4)
threads = [threading.Thread(target=hold) for _ in range(3)]
for thread in threads:
    thread.start()
barrier.wait()
print(heaps() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps are glibc's")
def test_threads_share_one_heap_once_it_is_asked_for():
    def added(heaps):
        return int(subprocess.run([sys.executable, "-c", HEAPS, heaps], stdout=subprocess.PIPE, check=True).stdout)

    assert added("one") == 0
    assert added("many") > 0


FREED = """
import sys
from omniforcing_jax.io import machine

def grown(blocks):
    least = machine.resident_bytes()
    for block in blocks:
        if block == 99:  # the heap is trimmed before it
            break
        held = [bytearray(10_000) for _ in range(3_000)]
        top = bytearray(10_000)  # keeps what is below it from being given back when it is freed
        del held
    return machine.resident_bytes() - least

machine.use_one_heap()
count = range(100)
print(grown(machine.trimmed(count) if sys.argv[1] == "trimmed" else count))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_a_long_stream_gives_back_what_its_heap_does_not_use():
    def grown(how):
        return int(subprocess.run([sys.executable, "-c", FREED, how], stdout=subprocess.PIPE, check=True).stdout)

    assert grown("trimmed") < 0.1 * grown("plain")


def test_what_is_trimmed_is_passed_on():
    assert list(machine.trimmed(iter(range(250)))) == list(range(250))
