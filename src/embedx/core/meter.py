"""Requests to remote services, counted across processes and held to a hard limit."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock

from embedx.core.errors import EmbedxError

FILE_BYTES = 256
"""The counter's file has one length, so that it is always written whole, by one call."""


class RequestLimitError(EmbedxError):
    """All requests that a command may make have been made."""


class Meter:
    """Sums of one command: requests, retries, tokens. In memory at first, in a file once several processes count.

    A request is counted before it is sent: if a process dies in between it is used up, and the limit is never passed.

    Args:
        limit: the most requests; None has no limit.
        path: the shared counter.
    """

    def __init__(self, limit: int | None = None, path: Path | None = None) -> None:
        self.limit = limit
        self._path = path
        self._sums: dict[str, int] = {}
        self._lock = threading.Lock()

    def take_request(self, is_retry: bool = False) -> None:
        """Count one request that is about to be sent.

        Raises:
            RequestLimitError: the limit is reached; it must not be sent.
        """
        with self._locked() as sums:
            if self.limit is not None and sums.get("requests", 0) >= self.limit:
                raise RequestLimitError(
                    f"all {self.limit:,} requests of --max-requests are used up",
                    "Run the same command again, with a higher --max-requests: finished shards are kept",
                )
            sums["requests"] = sums.get("requests", 0) + 1
            sums["retries"] = sums.get("retries", 0) + is_retry

    def add_tokens(self, tokens: int) -> None:
        """Add the tokens that a service says it has read."""
        if tokens:
            with self._locked() as sums:
                sums["tokens"] = sums.get("tokens", 0) + tokens

    def sums(self) -> dict[str, int]:
        """Return name -> sum so far; empty where no request was made."""
        with self._locked() as sums:
            return dict(sums)

    def move_to(self, path: Path) -> None:
        """Go on counting in a file, which other processes open by its path."""
        with self._lock:
            self._path = path
            if self._sums:
                _write(path, self._sums)

    @contextmanager
    def _locked(self) -> Iterator[dict[str, int]]:
        with self._lock:
            if self._path is None:
                yield self._sums
            elif not self._path.parent.is_dir():
                raise EmbedxError(f"the run of {self._path.parent.name} is over", "Run the same command again")
            else:
                with FileLock(f"{self._path}.lock"):
                    sums = _read(self._path)
                    before = dict(sums)
                    yield sums
                    if sums != before:
                        _write(self._path, sums)


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
