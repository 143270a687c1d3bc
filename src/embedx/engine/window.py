"""A sliding window of tasks: a few in flight per slot, each result handed over as it comes and forgotten."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from distributed import Client, Future, KilledWorker
from distributed.client import FutureCancelledError

from embedx.core.errors import BusyError

IN_FLIGHT_PER_SLOT = 2
MAX_RETRIES = 3
POLL_S = 0.5


@dataclass(frozen=True)
class Task:
    """One call.

    Attributes:
        key: unique in the cluster.
        function: importable on the workers.
        arguments: small; nothing large goes through the scheduler.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """A finished task: its result, or the exception that ended it."""

    task: Task
    result: Any = None
    error: BaseException | None = None


def iterate_outcomes(
    client: Client, tasks: Iterable[Task], slots: int, should_stop: Callable[[], bool]
) -> Iterator[Outcome | None]:
    """Run tasks and yield each outcome as it comes, or None when half a second passed without one.

    Only a window of tasks is in the scheduler at a time, so its memory does not grow with the plan. A task whose
    workers were killed is tried again; an exception of its own is its outcome. Once `should_stop` says so, no task
    is begun, but those in flight are waited for.

    Raises:
        BusyError: the scheduler went away.
    """
    left = iter(tasks)
    finished: queue.SimpleQueue[tuple[Task, Future]] = queue.SimpleQueue()
    futures: dict[str, Future] = {}
    tries: dict[str, int] = {}

    def submit(task: Task) -> None:
        tries[task.key] = tries.get(task.key, 0) + 1
        name = f"{task.key}-{tries[task.key]}"
        future = client.submit(task.function, *task.arguments, key=name, pure=False)
        futures[task.key] = future
        future.add_done_callback(lambda done, task=task: finished.put((task, done)))

    for task in islice(left, slots * IN_FLIGHT_PER_SLOT):
        submit(task)
    while futures:
        if should_stop():
            left = iter(())
            _give_back(client, futures)
        try:
            task, future = finished.get(timeout=POLL_S)
        except queue.Empty:
            if client.status not in ("running", "newly-created"):
                raise BusyError("the connection to the scheduler was lost", "The same command resumes") from None
            yield None
            continue
        if futures.pop(task.key, None) is None:
            continue
        outcome = _outcome(task, future)
        if isinstance(outcome.error, KilledWorker) and tries[task.key] <= MAX_RETRIES and not should_stop():
            submit(task)
            continue
        yield outcome
        if not should_stop():
            for following in islice(left, slots * IN_FLIGHT_PER_SLOT - len(futures)):
                submit(following)


def _outcome(task: Task, future: Future) -> Outcome:
    try:
        error = future.exception()
        if error is not None:
            return Outcome(task, error=error)
        return Outcome(task, result=future.result())
    except FutureCancelledError as lost:
        raise BusyError(f"the scheduler dropped task {task.key} ({lost})", "The same command resumes") from lost
    finally:
        future.release()


def _give_back(client: Client, futures: dict[str, Future]) -> None:
    """Cancel what no worker has begun yet; what runs is finished."""
    running = {key for keys in client.processing().values() for key in keys}
    for key, future in list(futures.items()):
        if future.status == "pending" and future.key not in running:
            future.cancel()
            del futures[key]
