"""Requests to remote services, counted across processes and held to a hard limit."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from embedx.core.errors import EmbedxError

FILE_BYTES = 256
"""The counter's file has one length, so that it is always written whole, by one call."""


class RequestLimitError(EmbedxError):
    """All requests that a command may make have been made."""


class Counter(Protocol):
    """Sums that several processes share."""

    def change(self, step: Callable[[dict[str, int]], None]) -> dict[str, int]:
        """Change the sums, so that no other change is lost; returns them as they are then.

        A step that raises leaves them as they were.
        """


class FileCounter:
    """Sums in a file beside its lock.

    Args:
        path: of the file; its folder stands as long as the run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def change(self, step: Callable[[dict[str, int]], None]) -> dict[str, int]:
        """See `Counter`."""
        if not self._path.parent.is_dir():
            raise EmbedxError(f"the run of {self._path.parent.name} is over", "Run the same command again")
        with FileLock(f"{self._path}.lock"):
            sums = _read(self._path)
            before = dict(sums)
            step(sums)
            if sums != before:
                _write(self._path, sums)
            return sums


class Meter:
    """Sums of one command: requests, retries, tokens. In memory at first, shared once several processes count.

    A request is counted before it is sent: if a process dies in between it is used up, and the limit is never passed.

    Args:
        limit: the most requests; None has no limit.
        shared: the shared sums, or the path of their file.
    """

    def __init__(self, limit: int | None = None, shared: Path | Counter | None = None) -> None:
        self.limit = limit
        self._shared = FileCounter(shared) if isinstance(shared, Path) else shared
        self._sums: dict[str, int] = {}
        self._lock = threading.Lock()

    def take_request(self, is_retry: bool = False) -> None:
        """Count one request that is about to be sent.

        Raises:
            RequestLimitError: the limit is reached; it must not be sent.
        """

        def take(sums: dict[str, int]) -> None:
            if self.limit is not None and sums.get("requests", 0) >= self.limit:
                raise RequestLimitError(
                    f"all {self.limit:,} requests of --max-requests are used up",
                    "Run the same command again, with a higher --max-requests: finished shards are kept",
                )
            sums["requests"] = sums.get("requests", 0) + 1
            sums["retries"] = sums.get("retries", 0) + is_retry

        self._change(take)

    def add_tokens(self, tokens: int) -> None:
        """Add the tokens that a service says it has read."""

        def add(sums: dict[str, int]) -> None:
            sums["tokens"] = sums.get("tokens", 0) + tokens

        if tokens:
            self._change(add)

    def sums(self) -> dict[str, int]:
        """Return name -> sum so far; empty where no request was made."""
        return dict(self._change(lambda sums: None))

    def move_to(self, shared: Path | Counter) -> None:
        """Go on counting where other processes count too."""
        counter = FileCounter(shared) if isinstance(shared, Path) else shared
        with self._lock:
            self._shared = counter
            if self._sums:
                counter.change(lambda sums: sums.update(self._sums))

    def _change(self, step: Callable[[dict[str, int]], None]) -> dict[str, int]:
        with self._lock:
            if self._shared is not None:
                return self._shared.change(step)
            step(self._sums)
            return self._sums


def _read(path: Path) -> dict[str, int]:
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        # Counting from nothing again would pass the limit.
        raise EmbedxError(f"the counter of requests {path} is damaged ({error})", "Run the command again") from error


def _write(path: Path, sums: dict[str, int]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.write(handle, json.dumps(sums).ljust(FILE_BYTES).encode())
    finally:
        os.close(handle)


_current: ContextVar[Meter | None] = ContextVar("embedx_meter", default=None)
_unlimited = Meter()


def current_meter() -> Meter:
    """Return the meter of the command or task that this code runs for; one without a limit where there is none."""
    return _current.get() or _unlimited


@contextmanager
def metered(meter: Meter) -> Iterator[Meter]:
    """Let `current_meter` be this one inside the block."""
    token = _current.set(meter)
    try:
        yield meter
    finally:
        _current.reset(token)
