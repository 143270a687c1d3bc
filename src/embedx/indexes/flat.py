"""The exact index: every vector as it is, compared with every query. The one module that imports faiss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.errors import StoreError
from embedx.core.threads import cpu_quota
from embedx.indexes.metrics import Metric

BLAS_QUERIES = 4
"""From so many queries on, a matrix product is faster than a loop. FAISS itself waits for 128,000 values (333
queries of 384), and there it took 1,945 ms instead of 124 for 100,000 vectors on two cores."""

SPARE_HITS = 16
"""Distances from a matrix product are rough: so many more are fetched before the hits are put in exact order."""

GATHERED_ROWS = 16_384


@dataclass(frozen=True)
class Neighbours:
    """What one query found, nearest first.

    Attributes:
        rows: (k,) int64, rows of the index.
        scores: (k,) float32, higher is nearer.
    """

    rows: np.ndarray
    scores: np.ndarray


class FlatIndex:
    """An exact FAISS index in memory or mapped from its file. Make it with `allocate` or `open`.

    Args:
        index: the FAISS index.
        metric: what it was built for.
    """

    def __init__(self, index: Any, metric: Metric) -> None:
        self._index = index
        self.metric = metric

    @classmethod
    def allocate(cls, count: int, dim: int, metric: Metric) -> FlatIndex:
        """Return an index of `count` zero vectors, to be filled with `put`.

        FAISS's own `add` grows its memory geometrically and copies it each time (up to twice the matrix);
        sized once and filled in place it is exactly one.
        """
        import faiss

        index = faiss.IndexFlat(dim, faiss.METRIC_L2 if metric.by_distance else faiss.METRIC_INNER_PRODUCT)
        index.codes.resize(count * index.code_size)
        index.ntotal = count
        return cls(index, metric)

    @classmethod
    def open(cls, path: Path, metric: Metric) -> FlatIndex:
        """Map an index file into memory, read only.

        Raises:
            StoreError: it is not one of this module's files, or was built for another metric.
        """
        import faiss

        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except (RuntimeError, MemoryError) as error:
            raise StoreError(
                f"{path} is not a readable FAISS index ({_first_line(error)})", "Build it again"
            ) from error
        if not isinstance(index, faiss.IndexFlat):
            raise StoreError(f"{path} holds a {type(index).__name__}, not a flat index", "Build it again")
        if (index.metric_type == faiss.METRIC_L2) != metric.by_distance:
            raise StoreError(f"{path} was not built for the metric {metric.name} of its card", "Build it again")
        return cls(index, metric)

    @property
    def count(self) -> int:
        """Vectors."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Values of a vector."""
        return int(self._index.d)

    def put(self, start: int, vectors: np.ndarray) -> None:
        """Write (m, dim) float32 raw vectors to the rows from `start` on."""
        import faiss

        stop = start + len(vectors)
        if stop > self.count:
            raise ValueError(f"row {stop} is beyond the {self.count} rows allocated")
        memory = faiss.rev_swig_ptr(self._index.get_xb(), self.count * self.dim)
        memory.reshape(self.count, self.dim)[start:stop] = self.metric.prepare(vectors)

    def write(self, path: Path) -> None:
        """Write the index to a file.

        Raises:
            OSError: the file cannot be written.
        """
        import faiss

        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise OSError(_first_line(error)) from error

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the (m, dim) float32 vectors of rows, as they are indexed."""
        return np.asarray(self._index.reconstruct_batch(np.ascontiguousarray(rows, dtype=np.int64)))

    def search(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None = None, leave_out: np.ndarray | None = None
    ) -> list[Neighbours]:
        """Find the nearest rows of each query, exactly.

        Args:
            queries: (m, dim) float32, raw.
            k: neighbours wanted; fewer come back where fewer rows qualify.
            mask: (n,) bool, the rows that qualify; None is all.
            leave_out: (m,) int64, a row that each query must not find (itself); None leaves none out.
        """
        import faiss

        if len(queries) == 0:
            return []
        queries = self.metric.prepare(queries)
        qualified = None if mask is None else np.flatnonzero(mask)
        available = self.count if qualified is None else len(qualified)
        spare = (leave_out is not None) + (SPARE_HITS if self.metric.by_distance else 0)
        wanted = min(k + spare, available)
        if wanted < 1:
            return [Neighbours(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        # Per call: the setting is per thread, and a Dask worker starts with OMP_NUM_THREADS=1.
        faiss.omp_set_num_threads(cpu_quota())
        faiss.cvar.distance_compute_blas_threshold = BLAS_QUERIES * self.dim
        if qualified is None:
            values, rows = self._index.search(queries, wanted)
        else:
            values, rows = self._search_among(qualified, queries, wanted)
        own = np.full(len(queries), -1) if leave_out is None else leave_out
        return [self._neighbours(*found, k) for found in zip(queries, values, rows, own)]

    def _search_among(self, qualified: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search some rows, gathered block by block.

        An IDSelector would give the same hits, but it keeps FAISS from using BLAS: 333 queries over half of
        100,000 x 384 took 916 ms with it and 74 ms gathered; single queries cost the same.
        """
        import faiss

        best = faiss.ResultHeap(len(queries), k, keep_max=not self.metric.by_distance)
        for start in range(0, len(qualified), GATHERED_ROWS):
            rows = qualified[start : start + GATHERED_ROWS]
            values, places = faiss.knn(queries, self.vectors(rows), min(k, len(rows)), metric=self._index.metric_type)
            best.add_result(values, rows[places])
        best.finalize()
        return best.D, best.I

    def _neighbours(self, query: np.ndarray, values: np.ndarray, rows: np.ndarray, own: int, k: int) -> Neighbours:
        kept = (rows >= 0) & (rows != own)  # FAISS pads with -1
        rows, scores = rows[kept], values[kept]
        if self.metric.by_distance:
            # In batches FAISS computes |q|^2 + |x|^2 - 2qx, whose small values are noise: redo the few hits.
            scores = -np.linalg.norm(self.vectors(rows) - query, axis=1)
        elif self.metric.normalized:
            scores = np.clip(scores, -1.0, 1.0)
        order = np.lexsort((rows, -scores))[:k]
        return Neighbours(rows[order], scores[order].astype(np.float32))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
