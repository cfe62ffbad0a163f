"""Hash the bytes of a file in a thread while they are written: reading, checking, writing and hashing overlap."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

WAITING = 8  # blocks at most that are written and not hashed


class HashAside:
    """A sha256 of all blocks that it was given, in their order. A context manager."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._worker = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __call__(self, block: bytes | memoryview) -> None:
        """Take a block, which must not change any more."""
        if len(self._waiting) == WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._worker.submit(self._digest.update, block))

    def hexdigest(self) -> str:
        """Wait for the blocks, and return the hash."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._digest.hexdigest()

    def __enter__(self) -> "HashAside":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(cancel_futures=True)
