"""Web servers: how many connections each gets from a run, when it wants to be asked again, and how it did lately."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from embedx.corpora.errors import ReadError

POLL_S = (0.01, 0.05)
"""Between two looks for a free connection: at random, so that no process is always the last to look."""


class Host:
    """One web server. Thread-safe.

    The workers of a run share its connections through files in the run's folder: a connection is a file that is locked
    while it is used, and a pause is the time of another file. A process that dies gives its locks back.

    Args:
        name: host and port.
        connections: at a time, of all workers together.
        longest_pause_s: that the server may ask for; of a clock that is wrong no more than this is waited.
        folder: shared by the workers of a run; empty is for this process alone.

    Attributes:
        failed_in_row: URLs that could not be had, since the last one that could.
    """

    def __init__(self, name: str, connections: int, longest_pause_s: float, folder: str = "") -> None:
        self.failed_in_row = 0
        self._connections = connections
        self._longest_pause_s = longest_pause_s
        self._here = threading.Semaphore(connections)
        self._not_before = 0.0
        self._files: Path | None = None
        if folder:
            self._files = Path(folder, hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:16])

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Wait for one of the connections, and for the end of a pause."""
        with self._here, self._shared():
            while (wait := min(self._wait_until() - time.time(), self._longest_pause_s)) > 0:
                time.sleep(wait)
            yield

    def pause(self, seconds: float) -> None:
        """Leave the server alone for a while, in all workers."""
        self._not_before = max(self._not_before, time.time() + seconds)
        if self._files is not None:
            until = max(self._wait_until(), self._not_before)
            pause = self._files.with_suffix(".pause")
            pause.touch()
            os.utime(pause, (until, until))

    def _wait_until(self) -> float:
        if self._files is None:
            return self._not_before
        try:
            return max(self._not_before, os.stat(self._files.with_suffix(".pause")).st_mtime)
        except FileNotFoundError:
            return self._not_before

    @contextmanager
    def _shared(self) -> Iterator[None]:
        if self._files is None:
            yield
            return
        lock = self._lock(self._files)
        try:
            yield
        finally:
            lock.release()

    def _lock(self, files: Path) -> FileLock:
        try:
            files.parent.mkdir(exist_ok=True)
            while True:
                for number in random.sample(range(self._connections), self._connections):
                    lock = FileLock(files.with_suffix(f".{number}"), timeout=0, thread_local=False)
                    try:
                        lock.acquire()
                    except Timeout:
                        continue
                    return lock
                time.sleep(random.uniform(*POLL_S))
        except OSError as error:
            # The folder goes when its run is over; whoever still reads then is not waited for.
            raise ReadError(f"{files.parent} cannot be used ({error.strerror or error})", "RunIsOver") from None
