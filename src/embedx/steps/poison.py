"""Finding the items that kill or hang workers: halve the shard until they stand alone."""

from __future__ import annotations

from collections.abc import Iterator

from embedx.engine.window import HungError, Task, Window
from embedx.steps.extract_shard import probe_rows
from embedx.steps.shard_job import Part


def find_poison(alone: Window, part: Part, rows: int) -> Iterator[tuple[int, str]]:
    """Yield (position, why) of the rows of a shard that kill or hang a worker on their own.

    A shard in which no row alone is guilty yields nothing.

    Args:
        alone: a window of one slot. Nothing else may run on the cluster meanwhile: a killed worker takes its
            neighbours with it, and they would be blamed.
        part: the suspected shard of a store.
        rows: how many rows it has.
    """
    ranges = [(0, rows)]
    while ranges:
        start, stop = ranges.pop(0)
        why = _try(alone, part, start, stop)
        if why and stop - start == 1:
            yield start, why
        elif why:
            middle = (start + stop) // 2
            ranges = [(start, middle), (middle, stop), *ranges]


def _try(alone: Window, part: Part, start: int, stop: int) -> str:
    """Embed a range on a worker; return what happened to it, or nothing."""
    # A single row is tried twice: a machine that was just then taken away must not condemn it.
    retries = 1 if stop - start == 1 else 0
    probe = Task(f"probe-{part.name}-{start}-{stop}", probe_rows, (part, start, stop), retries)
    why = ""
    for outcome in alone.iterate([probe]):
        if outcome is not None and outcome.is_suspect:
            hung = isinstance(outcome.error, HungError)
            why = "embedding it never ends" if hung else "embedding it kills the worker process"
        elif outcome is not None and outcome.error is not None:
            raise outcome.error
    return why
