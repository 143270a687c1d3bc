"""A sliding window of tasks: a few in flight per slot, each result handed over as it comes and forgotten."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from distributed import Client, Future, KilledWorker
from distributed.client import FutureCancelledError

from embedx.core.errors import BusyError

IN_FLIGHT_PER_SLOT = 2

POLL_S = 0.5

SETTLE_S = 0.05
"""Until the driver hears of a task that has ended; it does by another connection than what it asks."""

HANG_S = 1800.0
"""A task that runs longer is taken for hung, and its worker is restarted. Shards are cut to last 30 s."""

DESERTED_S = 600.0
"""A run without any worker for so long ends: those that there were die while they start, or nobody starts them."""


@dataclass(frozen=True)
class Task:
    """One call.

    Attributes:
        key: unique in the cluster.
        function: importable on the workers.
        arguments: small; nothing large goes through the scheduler.
        retries: how often it is tried again after its worker was killed. Two, because the neighbour of a task that
            kills dies with it; who is killed three times is a suspect, and the caller finds out what in it kills.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    retries: int = 2


@dataclass(frozen=True)
class Outcome:
    """A finished task: its result, or the exception that ended it."""

    task: Task
    result: Any = None
    error: BaseException | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether the task itself may be what kills or hangs workers."""
        return isinstance(self.error, (KilledWorker, HungError))


class HungError(Exception):
    """A task ran longer than the watchdog allows."""


def watchdog_limit_s() -> float:
    """Return how long a task may run: `EMBEDX_WATCHDOG_S`, else half an hour."""
    return float(os.environ.get("EMBEDX_WATCHDOG_S") or HANG_S)


class Window:
    """Runs tasks on a cluster, a bounded number at a time, so that the scheduler's memory does not grow with a plan.

    A task whose workers were killed is tried again; an exception of its own is its outcome, and so is `HungError`
    after its worker was restarted. Once `should_stop` says so, no task is begun, but those that run are waited for.

    Args:
        client: the connection.
        slots: tasks that run at a time.
        should_stop: asked all the time.
    """

    def __init__(self, client: Client, slots: int, should_stop: Callable[[], bool]) -> None:
        self._client = client
        self._most = slots * IN_FLIGHT_PER_SLOT
        self._should_stop = should_stop
        self._finished: queue.SimpleQueue[tuple[Task, Future]] = queue.SimpleQueue()
        self._futures: dict[str, Future] = {}
        self._tasks: dict[str, Task] = {}
        self._tries: dict[str, int] = {}
        self._watchdog = Watchdog(client, watchdog_limit_s())

    def iterate(self, tasks: Iterable[Task]) -> Iterator[Outcome | None]:
        """Yield each outcome as it comes, or None when half a second passed without one.

        Raises:
            BusyError: the scheduler went away, or all workers did and none came back.
        """
        left = iter(tasks)
        self._fill(left)
        while self._futures:
            if self._should_stop():
                self._give_back()
            for name in self._watchdog.find_hung():
                yield from self._hung(name)
            outcome = self._next()
            if outcome is None or not self._retry(outcome):
                yield outcome
            self._fill(left)

    def _fill(self, left: Iterator[Task]) -> None:
        if not self._should_stop():
            for task in islice(left, self._most - len(self._futures)):
                self._submit(task)

    def _submit(self, task: Task) -> None:
        self._tries[task.key] = self._tries.get(task.key, 0) + 1
        name = f"{task.key}-{self._tries[task.key]}"
        future = self._client.submit(task.function, *task.arguments, key=name, pure=False)
        self._futures[task.key], self._tasks[task.key] = future, task
        future.add_done_callback(lambda done: self._finished.put((task, done)))

    def _next(self) -> Outcome | None:
        try:
            task, future = self._finished.get(timeout=POLL_S)
        except queue.Empty:
            if self._client.status not in ("running", "newly-created"):
                raise BusyError("the connection to the scheduler was lost", "The same command resumes") from None
            return None
        if task.key not in self._futures or self._futures[task.key] is not future:
            return None
        self._forget(task.key)
        try:
            error = future.exception()
            return Outcome(task, error=error) if error is not None else Outcome(task, result=future.result())
        except FutureCancelledError as lost:
            raise BusyError(f"the scheduler dropped task {task.key} ({lost})", "The same command resumes") from lost
        finally:
            future.release()

    def _forget(self, key: str) -> None:
        del self._futures[key], self._tasks[key]

    def _retry(self, outcome: Outcome) -> bool:
        task = outcome.task
        again = isinstance(outcome.error, KilledWorker) and self._tries[task.key] <= task.retries
        if again and not self._should_stop():
            self._submit(task)
            return True
        return False

    def _hung(self, name: str) -> Iterator[Outcome]:
        for key, future in list(self._futures.items()):
            if future.key == name:
                task = self._tasks[key]
                future.cancel()
                self._forget(key)
                yield Outcome(task, error=HungError(f"{key} did not end"))

    def _give_back(self) -> None:
        """Cancel what no worker has begun yet; what runs is finished."""
        waiting = self._waiting()
        if waiting:
            # What has just ended is neither running nor known to have ended; a moment later it is.
            time.sleep(SETTLE_S)
            waiting &= self._waiting()
        for key, future in list(self._futures.items()):
            if future.key in waiting:
                future.cancel()
                self._forget(key)

    def _waiting(self) -> set[str]:
        """Return the names of tasks that are neither running nor over."""
        running = {str(key) for keys in self._client.processing().values() for key in keys}
        return {str(future.key) for future in self._futures.values() if future.status == "pending"} - running


class Watchdog:
    """Notices tasks that run too long, and restarts the workers they hang in; and that nobody is there to run them.

    Args:
        client: the connection.
        limit_s: how long a task may run.
    """

    def __init__(self, client: Client, limit_s: float) -> None:
        self._client = client
        self._limit_s = limit_s
        self._since: dict[str, float] = {}
        self._checked = self._attended = time.monotonic()

    def find_hung(self) -> list[str]:
        """Return the names of tasks that hang; their workers are restarted.

        Raises:
            BusyError: there has been no worker for `DESERTED_S`.
        """
        now = time.monotonic()
        if now - self._checked < min(5.0, self._limit_s / 4):
            return []
        self._checked = now
        processing = self._client.processing()
        if processing:
            self._attended = now
        elif now - self._attended > DESERTED_S:
            raise BusyError(
                f"there has been no worker for {DESERTED_S / 60:.0f} minutes",
                "Find out what ends workers as they start (memory, a library), or start some; the same command resumes",
            )
        running = {str(key): address for address, keys in processing.items() for key in keys}
        # Tasks that wait in a worker for their turn stand there too and are counted from then on; the limit is many
        # times a shard's 30 s, and the window keeps only two waiting per slot.
        self._since = {key: self._since.get(key, now) for key in running}
        hung = [key for key in running if now - self._since[key] > self._limit_s]
        if hung:
            workers = sorted({running[key] for key in hung})
            # A polite restart waits for the very thread that hangs. The nanny starts a killed worker again. From a
            # thread, because a worker that holds the interpreter lock never answers, and the others must go on.
            threading.Thread(target=self._kill, args=(workers,), daemon=True).start()
            self._since = {key: since for key, since in self._since.items() if running[key] not in workers}
        return hung

    def _kill(self, workers: list[str]) -> None:
        self._client.run(_kill_this_process, workers=workers, on_error="ignore")


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
