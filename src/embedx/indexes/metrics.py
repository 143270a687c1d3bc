"""Metrics: how vectors are compared and what a score means. Higher is nearer, for every metric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_NORM = 1e18
"""Squares of longer vectors overflow float32."""

MIN_NORM = 1e-30
"""A shorter vector has no direction that float32 could hold."""


@dataclass(frozen=True)
class Metric:
    """One way to compare vectors.

    Attributes:
        name: cosine, ip or l2.
        score: what a score is, for the card.
        normalized: whether vectors are scaled to length 1 before they are indexed or asked for.
        by_distance: whether FAISS returns squared distances instead of inner products.
    """

    name: str
    score: str
    normalized: bool = False
    by_distance: bool = False

    def problem(self, vectors: np.ndarray) -> tuple[int, str] | None:
        """Find the first vector that cannot be ranked.

        Args:
            vectors: (n, dim) float32.

        Returns:
            Its row and what is wrong with it, or None.
        """
        norms = _norms(vectors)
        usable = norms <= MAX_NORM
        if self.normalized:
            usable &= norms >= MIN_NORM
        if usable.all():
            return None
        row = int(np.argmin(usable))
        if not np.isfinite(vectors[row]).all():
            return row, "holds a value that is not finite"
        return row, "has length 0, which has no cosine" if norms[row] < MIN_NORM else "is too long for float32"

    def prepare(self, vectors: np.ndarray) -> np.ndarray:
        """Return (n, dim) float32 vectors as they are indexed and asked for."""
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if not self.normalized:
            return vectors
        return vectors / _norms(vectors).astype(np.float32)[:, None]

    def exact_scores(self, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Rank by brute force in float64, independent of FAISS.

        Args:
            queries: (m, dim), raw.
            vectors: (n, dim), raw.

        Returns:
            (m, n) float64 that orders as the score does; for l2 the negated *squared* distance.
        """
        queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
        if self.normalized:
            queries, vectors = queries / _norms(queries)[:, None], vectors / _norms(vectors)[:, None]
        products: np.ndarray = queries @ vectors.T
        if not self.by_distance:
            return products
        lengths = (queries**2).sum(axis=1)[:, None] + (vectors**2).sum(axis=1)[None, :]
        return np.asarray(2 * products - lengths)

    def rounding(self, queries: np.ndarray, longest: float) -> np.ndarray:
        """Return (m,) float64: how far float32 arithmetic may move an `exact_scores` value.

        Two scores closer than this are a tie.

        Args:
            queries: (m, dim), raw.
            longest: length of the longest vector compared with.
        """
        lengths = np.ones(len(queries)) if self.normalized else _norms(queries)
        longest = 1.0 if self.normalized else longest
        return 2e-6 * (lengths**2 + longest**2 if self.by_distance else lengths * longest)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("cosine", "cosine similarity, -1 to 1; higher is nearer", normalized=True),
        Metric("ip", "inner product; higher is nearer"),
        Metric("l2", "negated Euclidean distance, 0 for equal vectors; higher is nearer", by_distance=True),
    )
}


def _norms(vectors: np.ndarray) -> np.ndarray:
    # Summed in float64: squares of float32 can overflow. NaN compares false, so it counts as unusable.
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)))
