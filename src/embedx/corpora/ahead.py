"""Reading several sources at a time, in bounded memory, and taking what they give in their order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

PIECES_AHEAD = 2
"""Of each source that is being read."""


class _Stopped(Exception):
    """Nobody wants the rest."""


class _Lane(Generic[T]):
    """One source: a thread puts its pieces in, the reader takes them out."""

    def __init__(self, make: Callable[[], Iterable[T]], stop: threading.Event) -> None:
        self._make = make
        self._stop = stop
        self._pieces: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(PIECES_AHEAD)

    def fill(self) -> None:
        try:
            for piece in self._make():
                self._put("piece", piece)
            self._put("end", None)
        except _Stopped:
            pass
        except BaseException as error:  # for the reader to raise
            try:
                self._put("error", error)
            except _Stopped:
                pass

    def _put(self, kind: str, value: T | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._pieces.put((kind, value), timeout=0.2)
            except queue.Full:
                continue
        raise _Stopped

    def drain(self) -> Iterator[T]:
        while True:
            kind, value = self._pieces.get()
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]


def iterate_ahead(sources: Sequence[Callable[[], Iterable[T]]], threads: int) -> Iterator[T]:
    """Yield the pieces of each source, one source after the other, while the next ones are being read.

    Args:
        sources: each gives its pieces when called.
        threads: sources that are read at a time.
    """
    if len(sources) == 1 or threads == 1:
        for make in sources:
            yield from make()
        return
    stop = threading.Event()
    lanes = [_Lane(make, stop) for make in sources]
    with ThreadPoolExecutor(threads, thread_name_prefix="embedx-list") as pool:
        try:
            for lane in lanes:
                pool.submit(lane.fill)
            for number, lane in enumerate(lanes):
                yield from lane.drain()
                lanes[number] = None  # type: ignore[call-overload]  # its rows may go
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
