"""The decoder's process, forked from one that has imported everything: hundreds of uploads take seconds.

Run as a program it is that one: requests come pickled on stdin, answers go pickled to stdout.
"""

import asyncio
import importlib
import io
import os
import pickle
import subprocess
import sys

from omniforcing_jax.serve import decode_upload


class Forked:
    """A process as `asyncio.create_subprocess_exec` returns them. It has the decoder's own bounds and words."""

    server = None

    def __init__(self, *command, **pipes):
        self.arguments, self.returncode = command[3:], None

    @classmethod
    async def create(cls, *command, **pipes):
        return cls(*command, **pipes)

    @classmethod
    def stop(cls):
        if cls.server is not None:
            cls.server.kill()
            cls.server.communicate()
        cls.server = None

    async def communicate(self, data):
        return await asyncio.to_thread(self._ask, data)

    def _ask(self, data):
        if Forked.server is None:
            pipe = subprocess.PIPE
            Forked.server = subprocess.Popen([sys.executable, "-W", "ignore", __file__], stdin=pipe, stdout=pipe)
        pickle.dump((self.arguments, data), Forked.server.stdin)
        Forked.server.stdin.flush()
        self.returncode, out, words = pickle.load(Forked.server.stdout)
        return out, words

    def kill(self):
        self.stop()

    async def wait(self):
        pass


def decode(arguments, data):
    """Decode in this process; returns its exit code, and what it wrote to stdout and stderr."""
    sys.argv, out, words = ["decode", *arguments], io.BytesIO(), io.StringIO()
    sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO(data)), io.TextIOWrapper(out), words
    code = decode_upload.main()
    sys.stdout.flush()
    return code, out.getvalue(), words.getvalue().encode()


def decode_in_child(arguments, data):
    """Decode in a child. One that its bounds have ended, or that broke, has only an exit code."""
    end, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        with open(begin, "wb") as pipe:
            pickle.dump(decode(arguments, data), pipe)
        os._exit(0)
    os.close(begin)
    with open(end, "rb") as pipe:
        found = pipe.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(found) if found else (os.waitstatus_to_exitcode(status), b"", b"")


def main():
    for name in ("av", "scipy.signal", "omniforcing_jax.codecs.mel", "omniforcing_jax.stream.conditioning.media"):
        importlib.import_module(name)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(decode_in_child(*request), answers)
        answers.flush()


if __name__ == "__main__":
    main()
