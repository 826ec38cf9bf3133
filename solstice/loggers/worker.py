"""A thread that runs jobs in order, so that the caller need not wait.

Sinks and checkpoints write on one. Queueing a job never blocks: it returns False if the queue is
full.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from solstice.errors import SlowWriteError

_T = TypeVar("_T")

_ROOM = 2**16
_ROOM_BYTES = 256 * 2**20


class Worker:
    """Runs jobs one after another, on a daemon thread that starts with a job and ends with `stop`.

    >>> worker, done = Worker("example"), []
    >>> worker.put(lambda: done.append("first")), worker.call(lambda: done + ["second"])
    (True, ['first', 'second'])
    >>> worker.stop()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: deque[tuple[Callable[[], object], int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.done = 0

    def put(self, job: Callable[[], object], size: int = 0) -> bool:
        """Queue a job, which must not raise; if the queue is full, drop it and return False.

        Args:
            job: What to run.
            size: The bytes that it holds while it is queued.
        """
        with self._changed:
            if self._jobs and (len(self._jobs) >= _ROOM or self._bytes + size > _ROOM_BYTES):
                return False
            self._append(job, size)
        return True

    def call(self, job: Callable[[], _T], timeout: float | None = None) -> _T:
        """Run a job after all queued ones, and return its result.

        Raises:
            TimeoutError: It was not done after `timeout` seconds; it stays in the queue.
            Exception: What the job raised.
        """
        finished = threading.Event()
        results: list[_T] = []
        errors: list[BaseException] = []

        def noting() -> None:
            try:
                results.append(job())
            except BaseException as error:  # noqa: BLE001 - raised in the thread that called
                errors.append(error)
            finished.set()

        with self._changed:
            self._append(noting, 0)
        if not finished.wait(timeout):
            raise SlowWriteError(f"{self._name} was not done after {timeout} seconds.")
        if errors:
            raise errors[0]
        return results[0]

    def stop(self) -> None:
        """End the thread once its jobs are done; another job starts a new thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def ended(self, timeout: float) -> bool:
        """Wait up to this many seconds for the thread's end after `stop`; return whether it ended.

        >>> Worker("example").ended(0.1)
        True
        """
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _append(self, job: Callable[[], object], size: int) -> None:
        self._jobs.append((job, size))
        self._bytes += size
        self._stopping = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    if self._stopping:
                        self._thread = None
                        return
                    self._changed.wait()
                job, size = self._jobs.popleft()
                self._bytes -= size
            job()
            del job  # and its references
            self.done += 1
