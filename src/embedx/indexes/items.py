"""The items of an index: ids and carried columns in row order, read only where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.core.errors import StoreError

ROW_GROUP_ROWS = 16_384
"""A hit costs the reading of one row group: small ones make that a millisecond."""


class ItemsWriter:
    """Writes `ids.parquet` from batches of any size."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0

    def __enter__(self) -> ItemsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush(everything=True)
        if self._writer is not None:
            self._writer.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the next rows."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, batch.schema, compression="zstd", compression_level=1)
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        if self._pending_rows >= ROW_GROUP_ROWS:
            self._flush(everything=False)

    def _flush(self, everything: bool) -> None:
        if self._writer is None or not self._pending:
            return
        table = pa.Table.from_batches(self._pending)
        ready = table.num_rows if everything else table.num_rows - table.num_rows % ROW_GROUP_ROWS
        self._writer.write_table(table.slice(0, ready), row_group_size=ROW_GROUP_ROWS)
        self._pending = table.slice(ready).to_batches()
        self._pending_rows = table.num_rows - ready


class Items:
    """The opened `ids.parquet` of an index. Open it with `open_items`.

    Args:
        path: the file.
        file: the same, opened.
    """

    def __init__(self, path: Path, file: pq.ParquetFile) -> None:
        self.path = path
        self._file = file
        metadata = file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._group = lru_cache(maxsize=16)(self._read_group)

    @property
    def count(self) -> int:
        """Rows."""
        return int(self._starts[-1])

    @property
    def columns(self) -> list[str]:
        """The carried columns, without `item_id`."""
        return [name for name in self._file.schema_arrow.names if name != "item_id"]

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Return `item_id` and columns of rows, in the order given; reads only the row groups they are in.

        Args:
            rows: (m,) int64.
            columns: carried columns; None is all.
        """
        names = ("item_id", *(self.columns if columns is None else columns))
        rows = np.asarray(rows, dtype=np.int64)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        parts, positions = [], []
        for group in np.unique(groups):
            (inside,) = np.nonzero(groups == group)
            parts.append(self._group(int(group), names).take(_positions(rows[inside] - self._starts[group])))
            positions.append(inside)
        if not parts:
            return pa.schema([self._file.schema_arrow.field(name) for name in names]).empty_table()
        return pa.concat_tables(parts).take(_positions(np.argsort(np.concatenate(positions))))

    def row_of(self, item_id: str) -> int | None:
        """Return an item's row, or None."""
        wanted = _text(item_id)
        for group, start in enumerate(self._starts[:-1]):
            statistics = self._file.metadata.row_group(group).column(0).statistics
            if statistics is not None and statistics.has_min_max and not statistics.min <= item_id <= statistics.max:
                continue
            position = pc.index(self._read_group(group, ("item_id",)).column(0), wanted).as_py()
            if position >= 0:
                return int(start) + int(position)
        return None

    def closest(self, item_id: str) -> str | None:
        """Return the id most like one that does not exist, or None if none is near."""
        import duckdb

        with duckdb.connect(config={"threads": 1}) as connection:
            connection.register("items", self._file.read(columns=["item_id"]))
            found = connection.execute(
                "SELECT item_id, jaro_winkler_similarity(lower(item_id), lower($asked)) AS likeness "
                "FROM items ORDER BY likeness DESC, item_id LIMIT 1",
                {"asked": item_id},
            ).fetchone()
        return str(found[0]) if found and found[1] >= 0.75 else None

    def _read_group(self, group: int, names: tuple[str, ...]) -> pa.Table:
        try:
            return self._file.read_row_group(group, columns=list(names))
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.path} is damaged ({error})", "Build the index again with embedx index") from error


# Through buffers: pa.array and pa.scalar would import pandas (0.2 s) where it is installed.


def _text(value: str) -> pa.Scalar:
    data = value.encode()
    ends = np.array([0, len(data)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(ends), pa.py_buffer(data)])[0]


def _positions(values: np.ndarray) -> pa.Array:
    values = np.ascontiguousarray(values, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def open_items(path: Path) -> Items:
    """Open the items of an index.

    Raises:
        StoreError: the file is absent or no Parquet file with an `item_id`.
    """
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error})", "Build the index again with embedx index") from error
    if file.schema_arrow.names[:1] != ["item_id"]:
        raise StoreError(f"{path} does not start with the column item_id", "Build the index again with embedx index")
    return Items(path, file)
