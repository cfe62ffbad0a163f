"""Settings of the process underneath."""

import platform
import subprocess
import sys

import pytest

HEAPS = """
import ctypes, os, sys, tempfile, threading
from omniforcing_jax import machine

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
