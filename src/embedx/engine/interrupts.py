"""SIGINT and SIGTERM as a request to drain: what runs is finished, nothing new is begun."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from embedx.core.errors import InterruptedRunError


class Interrupts:
    """Remembers the first signal; the second one raises at once.

    Attributes:
        signal_number: the signal that came; 0 if none did.
    """

    signal_number = 0

    def check(self, message: str, remedy: str) -> None:
        """Raise if a signal came."""
        if self.signal_number:
            raise InterruptedRunError(message, remedy, self.signal_number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:
            raise InterruptedRunError(
                "stopped at once by a second signal",
                "The same command resumes; finished shards are kept",
                number,
            )
        self.signal_number = number


@contextmanager
def draining_on_signals() -> Iterator[Interrupts]:
    """Catch SIGINT and SIGTERM within the block; outside the main thread nothing is caught."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, interrupts._handle) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start processes whose every moment is deaf to both signals; this one gets what came when the block ends.

    The mask is inherited by the threads and processes begun within, nannies' later restarts included; a handler of
    their own would leave the second in which they import open, and Ctrl-C reaches the whole group.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # multiprocessing starts its helper with the first process, and then unblocks both in the thread that it is in.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_in_worker() -> None:
    """Ignore both signals in a worker process: Ctrl-C reaches the whole group, and the driver decides."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
