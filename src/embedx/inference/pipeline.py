"""The loop that embeds the items of a shard: fetch, prepare, batch, forward, check; bounded and overlapping."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedx.core.batches import TOKENS_STEP, plan_batches, round_up
from embedx.core.contracts import Broken, Encoder, Forwarded, Prepared, Runtime

MAX_BATCH_ITEMS = 512

TEXT_CHUNK = 512
IMAGE_CHUNK = 1
"""Items prepared at a time by one thread. One image: decoded, a large photo is a hundred times its cropped square."""

IMAGE_WINDOW = 256
WINDOW_BYTES = 64 * 2**20
"""Images held decoded at a time: so many, or what weighs so much. 256 squares of 224 pixels weigh 37 MiB; of 1,024
pixels they would weigh 768. A task holds two windows, a worker two tasks. Texts need no window: tokens are small, and
sorting the whole shard by length is what saves padding."""

FIRST_WINDOW = 16
"""Images of the first windows, which tell what one weighs."""

NOT_FINITE = Broken("forward", "NotFinite", "the encoder's vector has NaN or infinite values")

Fetch = Callable[[int, int], Sequence[Any]]
"""(start, stop) -> the content of those items, or a Broken in its place."""

Pending = tuple[int, list[tuple[int, Future[Prepared]]]]
"""A window that is being prepared: its start, and of each chunk its start and what will come of it."""


def _window_size(window: Prepared, size: int) -> int:
    """Return how many images may be prepared at a time, from what those of a window weigh."""
    heaviest = max((getattr(item, "nbytes", 0) for item in window.items), default=0)
    return max(1, min(IMAGE_WINDOW, WINDOW_BYTES // heaviest)) if heaviest else size


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


@dataclass(frozen=True)
class Embedded:
    """The result of a shard.

    Attributes:
        vectors: (m, dim) float32, finite, of the items that succeeded, in their order.
        positions: (m,) int64, their positions among the items.
        failures: position -> why there is no vector.
        counts: sums: tokens or images, padded, batches, truncated.
    """

    vectors: np.ndarray
    positions: np.ndarray
    failures: dict[int, Broken]
    counts: dict[str, int]


class _Gathered:
    """The results of a shard while they come in, at the rows of their items.

    Args:
        count: items of the shard.
        dim: length of a vector.
    """

    def __init__(self, count: int, dim: int) -> None:
        self.vectors = np.empty((count, dim), dtype=np.float32)
        self.done = np.zeros(count, dtype=bool)
        self.failures: dict[int, Broken] = {}
        self.sums: Counter[str] = Counter()

    def put(self, rows: np.ndarray, result: Forwarded) -> None:
        """Keep the vectors of some rows; those that failed or are not finite become failures."""
        good = np.isfinite(result.vectors).all(axis=1)
        good[list(result.failures)] = False
        self.vectors[rows[good]] = result.vectors[good]
        self.done[rows[good]] = True
        for place in np.flatnonzero(~good).tolist():
            self.failures[int(rows[place])] = result.failures.get(place, NOT_FINITE)

    def result(self) -> Embedded:
        """Return what was gathered, in the items' order."""
        positions = np.flatnonzero(self.done)
        vectors = self.vectors[positions] if len(positions) < len(self.done) else self.vectors
        return Embedded(vectors, positions, self.failures, dict(self.sums))


class Embedder:
    """An encoder on a runtime with the threads around it; shared by the tasks of a process.

    Args:
        encoder: prepares and collates.
        runtime: executes.
        prepare_threads: threads that fetch, decode and tokenise.
    """

    def __init__(self, encoder: Encoder, runtime: Runtime, prepare_threads: int) -> None:
        self.encoder = encoder
        self.runtime = runtime
        self._preparing = ThreadPoolExecutor(prepare_threads, thread_name_prefix="embedx-prepare")
        self._forwarding = ThreadPoolExecutor(runtime.parallel_requests, thread_name_prefix="embedx-forward")

    def embed(self, count: int, fetch: Fetch, clock: Clock | None = None) -> Embedded:
        """Embed items 0..count-1; failed ones come back as values and cost no other item anything."""
        clock = clock or Clock()
        card = self.encoder.card
        gathered = _Gathered(count, card.dim)
        for prepared, start in self._windows(count, fetch, clock):
            gathered.failures.update({start + position: broken for position, broken in prepared.failures.items()})
            gathered.sums["truncated"] += prepared.truncated
            gathered.sums.update(prepared.counts)
            self._forward_all(prepared, start, clock, gathered)
        return gathered.result()

    def _windows(self, count: int, fetch: Fetch, clock: Clock) -> Iterator[tuple[Prepared, int]]:
        """Yield prepared windows in order; the next one is being prepared while a window is used."""
        is_text = self.encoder.card.modality == "text"
        chunk = TEXT_CHUNK if is_text else IMAGE_CHUNK
        size = max(1, count) if is_text else FIRST_WINDOW

        def prepare(start: int, stop: int) -> Prepared:
            with clock.stage("read"):
                items = fetch(start, stop)
            with clock.stage("prepare"):
                return self.encoder.prepare(items)

        def launch(start: int, stop: int) -> Pending:
            edges = range(start, stop, chunk)
            return start, [(edge, self._preparing.submit(prepare, edge, min(stop, edge + chunk))) for edge in edges]

        launched = min(count, 2 * size)
        ahead = deque(launch(start, min(launched, start + size)) for start in range(0, launched, size))
        while ahead:
            window, start = self._joined(ahead.popleft(), clock)
            yield window, start
            size = size if is_text else _window_size(window, size)
            del window  # Two are held, not three.
            if launched < count:
                ahead.append(launch(launched, min(count, launched + size)))
                launched = min(count, launched + size)

    @staticmethod
    def _joined(pending: Pending, clock: Clock) -> tuple[Prepared, int]:
        start, parts = pending
        items: list[Any] = []
        positions = []
        failures: dict[int, Broken] = {}
        truncated = 0
        counts: Counter[str] = Counter()
        for edge, future in parts:
            with clock.stage("wait_prepare"):
                part = future.result()
            items.extend(part.items)
            positions.append(part.positions + (edge - start))
            failures.update({position + edge - start: broken for position, broken in part.failures.items()})
            truncated += part.truncated
            counts.update(part.counts)
        joined = np.concatenate(positions) if positions else np.empty(0, dtype=np.int64)
        return Prepared(items, joined, failures, truncated, dict(counts)), start

    def _forward_all(self, prepared: Prepared, start: int, clock: Clock, gathered: _Gathered) -> None:
        costs = self.encoder.cost(prepared)
        modality = self.encoder.card.modality
        step = TOKENS_STEP if modality == "text" else 1
        batches = plan_batches(costs, self.runtime.batch_budget(modality), MAX_BATCH_ITEMS, step)
        for batch in batches:
            gathered.sums["cost"] += int(costs[batch].sum())
            gathered.sums["padded_cost"] += round_up(int(costs[batch].max()), step) * len(batch)
        gathered.sums["batches"] += len(batches)

        def run(batch: np.ndarray) -> None:
            entries = [prepared.items[position] for position in batch]
            with clock.stage("collate"):
                inputs = self.encoder.collate(entries)
            with clock.stage("forward"):
                result = self.runtime.forward(inputs)
            gathered.put(prepared.positions[batch] + start, self._checked(result, len(batch)))

        with clock.stage("wait_forward"):
            # In the caller's context: a remote encoder counts its requests with the meter of the task it works for.
            futures = [self._forwarding.submit(copy_context().run, run, batch) for batch in batches]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def _checked(self, result: np.ndarray | Forwarded, count: int) -> Forwarded:
        """Return a batch's vectors, of length 1 where the encoder promises that."""
        card = self.encoder.card
        failures = result.failures if isinstance(result, Forwarded) else {}
        vectors = result.vectors if isinstance(result, Forwarded) else result
        if vectors.shape != (count, card.dim):
            raise ValueError(f"{card.ref} gave vectors of shape {vectors.shape}, not {(count, card.dim)}")
        if not card.normalized:
            return Forwarded(vectors, failures)
        # In float32 here, whatever precision the runtime used: a unit vector is promised to have length 1.
        with np.errstate(invalid="ignore", divide="ignore"):
            return Forwarded(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), failures)

    def close(self) -> None:
        """Stop the threads."""
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._forwarding.shutdown(wait=False, cancel_futures=True)
