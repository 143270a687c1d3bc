"""Reading ahead over a network: what the next items need is on its way while the present ones are embedded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from embedx.corpora.locators import Locator, is_remote

READERS = 16
"""Requests under way in a process's shard; most of their time is waiting."""

UNITS_AHEAD = 48

BYTES_AHEAD = 2**27
"""Held for items that nobody has asked for yet."""

RANGE_BYTES = 2**23
GAP_BYTES = 2**16
"""Neighbouring members of a remote tar are read as one range of so many bytes, across gaps of so few."""


@dataclass
class Unit:
    """What is read with one request.

    Attributes:
        place: the file.
        start: first byte of a range; 0 and stop 0 for a whole file.
        stop: behind the last byte.
        positions: of the items it serves.
    """

    place: str
    start: int
    stop: int
    positions: list[int]


def plan_units(locators: Sequence[Locator | None]) -> list[Unit]:
    """Return the requests that remote items need, in order; None and local items need none."""
    units: list[Unit] = []
    for position, locator in enumerate(locators):
        if locator is None or not is_remote(locator.place) or locator.kind not in ("file", "tar"):
            continue
        stop = locator.offset + locator.length
        last = units[-1] if units else None
        if (
            last is not None
            and locator.kind == "tar"
            and last.stop
            and last.place == locator.place
            and 0 <= locator.offset - last.stop <= GAP_BYTES
            and stop - last.start <= RANGE_BYTES
        ):
            last.stop = stop
            last.positions.append(position)
        else:
            units.append(Unit(locator.place, locator.offset, stop, [position]))
    return units


class Prefetcher:
    """Reads units in order, a bounded number ahead of what was asked for. Thread-safe.

    Args:
        units: of `plan_units`.
        read: reads one; its exception is for those who ask for its items.
    """

    def __init__(self, units: list[Unit], read: Callable[[Unit], bytes]) -> None:
        self._units = units
        self._read = read
        self._unit_of = {position: number for number, unit in enumerate(units) for position in unit.positions}
        self._pending: dict[int, Future[bytes]] = {}
        self._left = [len(unit.positions) for unit in units]
        self._next = 0
        self._held = 0
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="embedx-fetch") if units else None

    def take(self, position: int) -> tuple[Unit, bytes]:
        """Return the unit of an item and its bytes, waiting for them; each item is taken once or more."""
        number = self._unit_of[position]
        with self._lock:
            future = self._submit(number)
            self._submit_ahead(number)
        try:
            return self._units[number], future.result()
        finally:
            with self._lock:
                self._left[number] -= 1
                if self._left[number] <= 0 and self._pending.pop(number, None) is not None:
                    self._held -= self._size(future)

    def _submit(self, number: int) -> Future[bytes]:
        if number not in self._pending:
            assert self._pool is not None
            future = self._pool.submit(self._read, self._units[number])
            future.add_done_callback(self._count)
            self._pending[number] = future
        return self._pending[number]

    def _submit_ahead(self, number: int) -> None:
        self._next = max(self._next, number + 1)
        while (
            self._next < min(len(self._units), number + UNITS_AHEAD)
            and len(self._pending) < UNITS_AHEAD
            and self._held < BYTES_AHEAD
        ):
            self._submit(self._next)
            self._next += 1

    def _count(self, future: Future[bytes]) -> None:
        with self._lock:
            self._held += self._size(future)

    @staticmethod
    def _size(future: Future[bytes]) -> int:
        return 0 if future.cancelled() or future.exception() else len(future.result())

    def close(self) -> None:
        """Give up what is not under way yet."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
