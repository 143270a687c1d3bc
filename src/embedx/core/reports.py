"""Reports and progress: what a step returns, in the shape that `--json` prints, and what it says meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Report = dict[str, Any]


@dataclass
class Progress:
    """A running count, pushed to whoever shows it.

    Attributes:
        step: what is being done, e.g. `extract`.
        total: items in all; 0 while it is not known.
        done: items finished, adopted ones included.
        failed: items that failed.
        reused: items that were already done when the run began (excluded from the rate).
        note: what is happening now.
    """

    step: str
    total: int = 0
    done: int = 0
    failed: int = 0
    reused: int = 0
    note: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Items per second of this process, adopted items excluded."""
        seconds = time.monotonic() - self.started
        return (self.done - self.reused) / seconds if seconds > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the present rate; None while there is none."""
        return (self.total - self.done) / self.rate if self.rate > 0 and self.total else None


ProgressHook = Callable[[Progress], None]


def no_progress(progress: Progress) -> None:
    """Show nothing; the default of the Python API."""
