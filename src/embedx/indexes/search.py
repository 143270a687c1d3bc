"""An opened index: search by vector or by item, with SQL filters, and the columns of what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedx.core.errors import StoreError, UsageError
from embedx.core.places import Place, parse_place
from embedx.indexes.card import IndexCard, read_card
from embedx.indexes.filters import select_rows
from embedx.indexes.flat import FlatIndex, Neighbours
from embedx.indexes.folder import VersionFiles
from embedx.indexes.items import Items, open_items
from embedx.indexes.metrics import METRICS
from embedx.indexes.versions import current_version


@dataclass(frozen=True)
class Hits:
    """What queries found: one entry per query, nearest first; an entry may hold fewer than k.

    Attributes:
        ids: of each query, the item ids.
        scores: of each query, (k,) float32, higher is nearer.
        rows: of each query, (k,) int64 rows of the index.
    """

    ids: list[list[str]]
    scores: list[np.ndarray]
    rows: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


class VectorIndex:
    """One version of an index. Open it with `open_index`.

    Args:
        files: where it lies.
        card: what it says of itself.
        flat: the structure.
        items: ids and carried columns.
    """

    def __init__(self, files: VersionFiles, card: IndexCard, flat: FlatIndex, items: Items) -> None:
        self.files = files
        self.card = card
        self._flat = flat
        self._items = items

    @property
    def count(self) -> int:
        """Items."""
        return self._flat.count

    @property
    def dim(self) -> int:
        """Values of a vector."""
        return self._flat.dim

    @property
    def version(self) -> int:
        """The version's number."""
        return self.files.number

    @property
    def columns(self) -> list[str]:
        """The carried columns."""
        return self._items.columns

    def search(self, vectors: np.ndarray, k: int = 10, where: str | None = None) -> Hits:
        """Find the k nearest items of each vector.

        Args:
            vectors: (m, dim) float32 queries from the encoder that the card names.
            k: how many; clipped to the items there are.
            where: a DuckDB condition over `item_id` and the carried columns; only what it holds for is found.

        Raises:
            UsageError: vectors of another shape or without direction, k below 1, a condition that is broken
                or that holds for no item.
        """
        vectors = self._check_queries(vectors)
        return self._hits(self._flat.search(vectors, _checked_k(k), self._mask(where)))

    def neighbours(self, item_id: str, k: int = 10, where: str | None = None) -> Hits:
        """Find the k nearest other items of an item; the answer holds one entry.

        Raises:
            UsageError: no such item, k below 1, or a condition that is broken or holds for no item.
        """
        row = self.row(item_id)
        own = np.array([row], dtype=np.int64)
        return self._hits(self._flat.search(self._flat.vectors(own), _checked_k(k), self._mask(where), own))

    def vector(self, item_id: str) -> np.ndarray:
        """Return an item's (dim,) float32 vector as it is indexed: of length 1 where the metric is cosine.

        Raises:
            UsageError: no such item.
        """
        return np.asarray(self._flat.vectors(np.array([self.row(item_id)], dtype=np.int64))[0])

    def row(self, item_id: str) -> int:
        """Return an item's row.

        Raises:
            UsageError: no such item.
        """
        row = self._items.row_of(item_id)
        if row is None:
            closest = self._items.closest(item_id)
            remedy = f"Did you mean {closest!r}?" if closest else "Its ids are in the column item_id of ids.parquet"
            raise UsageError(f"{self.files.root} has no item {item_id!r}", remedy)
        return row

    def table(self, rows: np.ndarray) -> pa.Table:
        """Return `item_id` and the carried columns of (m,) rows, in their order."""
        return self._items.take(rows)

    def _mask(self, where: str | None) -> np.ndarray | None:
        return None if where is None else select_rows(self._items, where)

    def _check_queries(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or vectors.dtype.kind not in "fiu":
            raise UsageError(
                f"queries are {vectors.dtype} of shape {vectors.shape}, not float32 of shape (m, {self.dim})",
                f"Use vectors of {self.card.encoder['ref']}, which made the index",
            )
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if problem := METRICS[self.card.metric].problem(vectors):
            raise UsageError(f"query vector {problem[0]} {problem[1]}", "Leave it out")
        return vectors

    def _hits(self, found: list[Neighbours]) -> Hits:
        rows = [neighbours.rows for neighbours in found]
        every = np.concatenate(rows) if rows else np.empty(0, np.int64)
        unique, places = np.unique(every, return_inverse=True)
        names = np.array(self._items.take(unique, columns=()).column("item_id").to_pylist(), dtype=object)
        ends = np.cumsum([len(part) for part in rows], dtype=np.int64)
        ids = [part.tolist() for part in np.split(names[places], ends)[:-1]]
        return Hits(ids=ids, scores=[neighbours.scores for neighbours in found], rows=rows)


def open_index(path: str | Place) -> VectorIndex:
    """Open the current version of an index, read only; the vectors are mapped, not loaded.

    Files are checked by size, the counts and the metric against the card; digests are `embedx verify`'s work.

    Args:
        path: the index's folder or URL; of the latter the version is fetched to the local cache.

    Raises:
        StoreError: there is no index, or its parts do not fit together.
    """
    files = current_version(parse_place(path))
    card = read_card(files.card)
    metric = METRICS.get(card.metric)
    if metric is None:
        raise StoreError(f"{files.card} names the unknown metric {card.metric!r}", "Build the index again")
    for member in (files.index, files.ids):
        _check_size(member, card)
    flat, items = FlatIndex.open(files.index, metric), open_items(files.ids)
    for what, found, promised in (
        ("vectors in index.faiss", flat.count, card.count),
        ("values of a vector in index.faiss", flat.dim, card.dim),
        ("rows in ids.parquet", items.count, card.count),
        ("columns in ids.parquet", items.columns, card.columns),
    ):
        if found != promised:
            raise StoreError(f"{files.folder}: {what}: {found}, the card says {promised}", "Build the index again")
    return VectorIndex(files, card, flat, items)


def _check_size(path: Path, card: IndexCard) -> None:
    promised = (card.files.get(path.name) or {}).get("bytes")
    found = path.stat().st_size if path.exists() else None
    if found is None or found != promised:
        state = "is missing" if found is None else f"has {found:,} bytes, the card says {promised}"
        raise StoreError(f"{path} {state}", "Copy the index again, or build it again with embedx index")


def _checked_k(k: int) -> int:
    if k < 1:
        raise UsageError(f"-k {k} asks for no hits", "Pass a number of at least 1")
    return k
