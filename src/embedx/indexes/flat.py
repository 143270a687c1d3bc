"""The exact index: every vector as it is, compared with every query. The one module that imports faiss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.errors import StoreError
from embedx.core.threads import cpu_quota
from embedx.indexes.metrics import Metric


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
        available = self.count if mask is None else int(np.count_nonzero(mask))
        wanted = min(k + (leave_out is not None), available)
        if wanted < 1:
            return [Neighbours(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        parameters = None
        if mask is not None:
            # faiss wraps both constructors at import, which its stubs do not know.
            bitmap = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))  # type: ignore[call-arg, arg-type]
            parameters = faiss.SearchParameters(sel=bitmap)  # type: ignore[call-arg]
        # Per call: the setting is per thread, and a Dask worker starts with OMP_NUM_THREADS=1.
        faiss.omp_set_num_threads(cpu_quota())
        values, rows = self._index.search(queries, wanted, params=parameters)
        own = np.full(len(queries), -1) if leave_out is None else leave_out
        return [self._neighbours(*found, k) for found in zip(queries, values, rows, own)]

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
