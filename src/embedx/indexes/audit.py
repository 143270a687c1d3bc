"""What an index is worth: its recall against brute force over the store, and its speed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from embedx.core.threads import cpu_quota, plan_threads
from embedx.indexes.flat import Neighbours
from embedx.indexes.metrics import Metric

K = 10
MAX_QUERIES = 1_000
MIN_QUERIES = 100
BRUTE_FORCE_FLOPS = 5e10
"""Work the brute force may do before fewer queries are asked: a few seconds on one core."""

TILE_ROWS = 1_024
SPEED_S = 2.0


class Searchable(Protocol):
    """What is measured."""

    def search(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None = None, leave_out: np.ndarray | None = None
    ) -> list[Neighbours]:
        """Find the nearest rows of each query."""


def plan_query_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Choose the rows of a store that serve as queries: uniform over all of it, seeded.

    Returns:
        (m,) int64, sorted, without repeats.
    """
    affordable = int(BRUTE_FORCE_FLOPS / max(1, 2 * count * dim))
    n_queries = min(count, MAX_QUERIES, max(MIN_QUERIES, affordable))
    rows = np.random.default_rng(seed).choice(count, n_queries, replace=False, shuffle=False)
    return np.sort(rows.astype(np.int64))


def measure_recall(
    index: Searchable,
    metric: Metric,
    queries: np.ndarray,
    own_rows: np.ndarray,
    batches: Iterable[np.ndarray],
) -> dict[str, Any]:
    """Compare what the index finds with an exact ranking in float64 of everything in the store.

    A query is an item of the store that is held out: it is left out of both answers. (With a single item
    there is nothing else to find, so it stays.) A hit counts when its exact score reaches that of the k-th
    best within float32 rounding: equally near items are interchangeable, whatever their order.

    Args:
        index: what is measured.
        metric: its metric.
        queries: (m, dim) float32, raw.
        own_rows: (m,) int64, the queries' rows.
        batches: every raw vector of the store, in row order.

    Returns:
        k, value, n_queries and method, as they stand in the card.
    """
    alone = len(own_rows) < 2
    ranking = _ExactRanking(metric, queries, None if alone else own_rows)
    found = index.search(queries, K, leave_out=None if alone else own_rows)
    ranking.watch(found)
    with threadpool_limits(limits=plan_threads(cpu_quota()).blas):
        for vectors in batches:
            for start in range(0, len(vectors), TILE_ROWS):
                ranking.update(vectors[start : start + TILE_ROWS])
    return {
        "k": ranking.k,
        "value": round(ranking.recall(), 6),
        "n_queries": len(queries),
        "method": "items of the store, each left out of its own answers, against float64 brute force; ties by score",
    }


class _ExactRanking:
    """The k best exact scores of each query so far, and the exact scores of the hits that are judged."""

    def __init__(self, metric: Metric, queries: np.ndarray, own_rows: np.ndarray | None) -> None:
        self._metric = metric
        self._queries = queries
        self._own = own_rows
        self._best = np.full((len(queries), K), -np.inf)
        self._longest = 0.0
        self._seen = 0

    def watch(self, found: list[Neighbours]) -> None:
        """Name the hits to judge; a row that is repeated counts once."""
        self._rows = np.full((len(found), K), -1, dtype=np.int64)
        for position, neighbours in enumerate(found):
            rows = np.unique(neighbours.rows)[:K]
            self._rows[position, : len(rows)] = rows
        self._scores = np.full(self._rows.shape, -np.inf)

    def update(self, vectors: np.ndarray) -> None:
        """Take the next (m, dim) vectors of the store into account."""
        scores = self._metric.exact_scores(self._queries, vectors)
        start, stop = self._seen, self._seen + len(vectors)
        if self._own is not None:
            (query,) = np.nonzero((self._own >= start) & (self._own < stop))
            scores[query, self._own[query] - start] = -np.inf
        query, place = np.nonzero((self._rows >= start) & (self._rows < stop))
        self._scores[query, place] = scores[query, self._rows[query, place] - start]
        candidates = np.concatenate([self._best, scores], axis=1)
        self._best = np.partition(candidates, -K, axis=1)[:, -K:]
        self._longest = max(self._longest, float(np.linalg.norm(vectors.astype(np.float64), axis=1).max()))
        self._seen = stop

    @property
    def k(self) -> int:
        """How many neighbours a query can have, at most K."""
        return min(K, self._seen - (self._own is not None))

    def recall(self) -> float:
        """Return the share of hits that are right."""
        threshold = np.sort(self._best, axis=1)[:, -self.k] - self._metric.rounding(self._queries, self._longest)
        right = np.count_nonzero(self._scores >= threshold[:, None], axis=1)
        return float(np.minimum(right, self.k).mean() / self.k)


def measure_speed(index: Searchable, queries: np.ndarray) -> dict[str, Any]:
    """Time single queries and one batch, on all cores, with the index in memory.

    Args:
        index: what is measured.
        queries: (m, dim) float32, raw.

    Returns:
        qps, latency_ms {median, p95}, threads and method, as they stand in the card.
    """
    index.search(queries[:1], K)
    seconds: list[float] = []
    ends = time.monotonic() + SPEED_S
    for query in queries:
        if len(seconds) >= 3 and time.monotonic() > ends:
            break
        start = time.perf_counter()
        index.search(query[None, :], K)
        seconds.append(time.perf_counter() - start)
    start, answered = time.perf_counter(), 0
    while answered == 0 or time.perf_counter() - start < SPEED_S / 10:
        index.search(queries, K)
        answered += len(queries)
    elapsed = time.perf_counter() - start
    median, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    return {
        "qps": round(answered / elapsed, 1),
        "latency_ms": {"median": round(float(median), 3), "p95": round(float(p95), 3)},
        "threads": cpu_quota(),
        "method": f"latency of {len(seconds)} single queries, qps of batches of {len(queries)}, k {K}, warm",
    }
