"""Feeding the embedding loop: items are fetched once, prepared in each way that an encoder needs, a window ahead."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from embedx.core.contracts import Broken, Encoder, Prepared
from embedx.inference.clock import Clock

TEXT_CHUNK = 512
IMAGE_CHUNK = 1
"""Items prepared at a time by one thread. One image: decoded, a large photo is a hundred times its cropped square."""

IMAGE_WINDOW = 256
WINDOW_BYTES = 64 * 2**20
"""Images held prepared at a time, over all ways of preparing: so many, or what weighs so much. 256 squares of 224
pixels weigh 37 MiB; of 1,024 pixels they would weigh 768. A task holds two windows, a worker two tasks. Texts need no
window: tokens are small, and sorting the whole shard by length is what saves padding."""

FIRST_WINDOW = 16
"""Images of the first windows, which tell what one weighs."""

Fetch = Callable[[int, int], Sequence[Any]]
"""(start, stop) -> the content of those items, or a Broken in its place."""


_Pending = list[tuple[int, "Future[list[Prepared]]"]]
"""(first position, what is being prepared from there on, in each way) of the pieces of a window."""


class Feed:
    """Fetches items once and prepares them in each way that some encoders need, one window ahead of its user.

    Args:
        encoders: that prepare the items.
        pool: does the work.
        fetch: gives items.
        clocks: of the encoders; what they share counts to the first.
    """

    def __init__(
        self, encoders: Sequence[Encoder], pool: ThreadPoolExecutor, fetch: Fetch, clocks: Sequence[Clock]
    ) -> None:
        self._fetch = fetch
        self._pool = pool
        self._shared = clocks[0]
        different: dict[Any, tuple[Encoder, Clock]] = {}
        keys = [preparation_of(encoder) for encoder in encoders]
        for key, encoder, clock in zip(keys, encoders, clocks):
            different.setdefault(key, (encoder, clock))
        self._encoders = list(different.values())
        self.ways = [list(different).index(key) for key in keys]
        self._is_text = encoders[0].card.modality == "text"

    def iterate(self, count: int) -> Iterator[tuple[int, list[Prepared]]]:
        """Yield (start, what was prepared in each way) of each window; the next one is being prepared meanwhile."""
        size = max(1, count) if self._is_text else FIRST_WINDOW
        launched = min(count, 2 * size)
        ahead = deque((start, self._launch(start, min(launched, start + size))) for start in range(0, launched, size))
        while ahead:
            start, window = self._joined(*ahead.popleft())
            yield start, window
            size = size if self._is_text else _window_size(window, size)
            del window  # Two are held, not three.
            if launched < count:
                ahead.append((launched, self._launch(launched, min(count, launched + size))))
                launched = min(count, launched + size)

    def _launch(self, start: int, stop: int) -> _Pending:
        chunk = TEXT_CHUNK if self._is_text else IMAGE_CHUNK
        edges = range(start, stop, chunk)
        return [(edge, self._pool.submit(self._prepare, edge, min(stop, edge + chunk))) for edge in edges]

    def _prepare(self, start: int, stop: int) -> list[Prepared]:
        with self._shared.stage("read"):
            items = self._fetch(start, stop)
        prepared = []
        for encoder, clock in self._encoders:
            with clock.stage("prepare"):
                prepared.append(encoder.prepare(items))
        return prepared

    def _joined(self, start: int, pending: _Pending) -> tuple[int, list[Prepared]]:
        edges, pieces = [], []
        for edge, future in pending:
            with self._shared.stage("wait_prepare"):
                pieces.append(future.result())
            edges.append(edge - start)
        return start, [_join(edges, list(own)) for own in zip(*pieces)]


def _window_size(window: Sequence[Prepared], size: int) -> int:
    """Return how many images may be prepared at a time, from what those of a window weigh in all ways together."""
    heaviest = sum(max((getattr(item, "nbytes", 0) for item in way.items), default=0) for way in window)
    return max(1, min(IMAGE_WINDOW // len(window), WINDOW_BYTES // heaviest)) if heaviest else size


def _join(edges: Sequence[int], pieces: Sequence[Prepared]) -> Prepared:
    """Return the pieces of a window as one; `edges` are their first positions in it."""
    items: list[Any] = []
    failures: dict[int, Broken] = {}
    counts: Counter[str] = Counter()
    for edge, piece in zip(edges, pieces):
        items.extend(piece.items)
        failures.update({position + edge: broken for position, broken in piece.failures.items()})
        counts.update(piece.counts)
    positions = np.concatenate([piece.positions + edge for edge, piece in zip(edges, pieces)])
    return Prepared(items, positions, failures, sum(piece.truncated for piece in pieces), dict(counts))


def preparation_of(encoder: Encoder) -> Any:
    """Return a key that encoders share which prepare items alike; of one that does not say, its own."""
    return getattr(encoder, "preparation", None) or id(encoder)
