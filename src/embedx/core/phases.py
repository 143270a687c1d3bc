"""Where the time of a run goes: named spans of wall time, in order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Span:
    """A named stretch of time.

    Attributes:
        name: of what was done.
        started: seconds since the epoch.
        seconds: how long it took.
    """

    name: str
    started: float
    seconds: float


@dataclass
class Phases:
    """The phases of a step, as they end."""

    spans: list[Span] = field(default_factory=list)
    _begun: float = field(default_factory=time.perf_counter, repr=False)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count the time of the block to a phase, also when it fails."""
        started, begun = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self.spans.append(Span(name, started, time.perf_counter() - begun))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the step began."""
        return time.perf_counter() - self._begun

    def seconds(self) -> dict[str, float]:
        """Return name -> seconds in all."""
        sums: dict[str, float] = {}
        for span in self.spans:
            sums[span.name] = sums.get(span.name, 0.0) + span.seconds
        return sums
