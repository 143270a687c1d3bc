"""Where the time of a shard goes: busy and waiting seconds per stage, over all threads; and what one call takes."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """Busy seconds per stage, summed over threads."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            with self._lock:
                self.seconds[name] += elapsed


def best_of(call: Callable[[], Any], turns: int = 3, most_s: float = 1.0) -> float:
    """Return the seconds of the fastest turn after a first one that does not count; fewer turns where they are long."""
    call()
    best, began = math.inf, time.perf_counter()
    for _ in range(turns):
        started = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - started)
        if now - began > most_s:
            break
    return best


def race(one: Callable[[], Any], other: Callable[[], Any], turns: int = 5, most_s: float = 2.0) -> tuple[float, float]:
    """Return the seconds of the fastest turn of each, as `best_of`; in turn, so that other work meets both alike."""
    calls = one, other
    for call in calls:
        call()
    best, began = [math.inf, math.inf], time.perf_counter()
    for _ in range(turns):
        for place, call in enumerate(calls):
            started = time.perf_counter()
            call()
            best[place] = min(best[place], time.perf_counter() - started)
        if time.perf_counter() - began > most_s:
            break
    return best[0], best[1]
