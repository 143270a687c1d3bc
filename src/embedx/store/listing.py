"""The listing of a corpus: one row per item, streamed to a Parquet file and read back in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedx.store.files import File
from embedx.store.schema import CarriedColumn

BATCH_ROWS = 8_192

BATCH_CHARACTERS = 2**21
"""Of texts in a batch: the driver holds a few of them at a time, and what it once held it keeps."""

INLINE = "inline"
"""Locator of an item whose content stands in the listing itself (texts of tables)."""


@dataclass(frozen=True)
class ListingColumns:
    """Which carried columns a listing has, and which of them is the content itself.

    Attributes:
        carried: the store's carried columns, in order.
        content_column: the carried column that repeats the inline content (e.g. `text`); None if none does.
    """

    carried: tuple[CarriedColumn, ...] = ()
    content_column: str | None = None

    @property
    def listed(self) -> tuple[CarriedColumn, ...]:
        """The carried columns that are columns of the listing: all but the content itself."""
        return tuple(column for column in self.carried if column.name != self.content_column)

    @property
    def listed_names(self) -> tuple[str, ...]:
        """The names of `listed` as they stand in a listing: prefixed, so that none can clash."""
        return tuple(f"c_{column.name}" for column in self.listed)

    def schema(self) -> pa.Schema:
        """Return the listing's schema."""
        return pa.schema(
            [
                pa.field("row", pa.int64(), nullable=False),
                pa.field("item_id", pa.string(), nullable=False),
                pa.field("source", pa.string(), nullable=False),
                pa.field("locator", pa.string(), nullable=False),
                pa.field("identity", pa.string(), nullable=False),
                pa.field("problem", pa.string()),
                pa.field("content", pa.string()),
                *(pa.field(f"c_{column.name}", column.arrow_type) for column in self.listed),
            ]
        )


def write_listing(path: Path, columns: ListingColumns, batches: Iterable[pa.RecordBatch]) -> int:
    """Write a listing's batches, numbering the rows; returns how many there are."""
    # Parquet, because DuckDB knows then how long it is and picks the right side of a join to hold in memory.
    schema = columns.schema()
    row = 0
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=["source"], write_statistics=False
    ) as writer:
        for batch in batches:
            numbers = pa.array(np.arange(row, row + batch.num_rows, dtype=np.int64))
            arrays = [numbers, *(batch.column(name) for name in schema.names[1:])]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            row += batch.num_rows
    return row


def iterate_listing(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a listing in order."""
    with pq.ParquetFile(path) as opened:
        # Group by group: a reader of several would also read ahead, and a group's texts may be many.
        for group in range(opened.num_row_groups):
            yield from opened.iter_batches(BATCH_ROWS, [group])


def iterate_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow file in order."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


class GroupWriter:
    """Writes an Arrow file of one record batch per group of rows, so that a task reads exactly its group by number.

    Args:
        file: there whole on a clean exit, else not at all.
        schema: of the rows.
    """

    def __init__(self, file: File, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._group: int | str = 0
        self.groups: list[tuple[int | str, int]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(self._file.writing())
            sink = stack.enter_context(pa.OSFile(str(temporary), "wb"))
            self._writer = stack.enter_context(pa.ipc.new_file(sink, self._schema, options=_compressed()))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._stack.__exit__(kind, error, trace)

    def add(self, group: int | str, rows: pa.RecordBatch) -> None:
        """Add rows of a group; the rows of a group come one after the other."""
        if group != self._group:
            self._flush()
            self._group = group
        self._pending.append(rows)

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_batches(self._pending, schema=self._schema).combine_chunks()
            (batch,) = table.to_batches()
            self._writer.write_batch(batch)
            self.groups.append((self._group, batch.num_rows))
            self._pending = []


class PlanWriter(GroupWriter):
    """Writes `plan.arrow`: the listing rows to embed, one record batch per shard, whatever the source's format was."""

    def __init__(self, file: File, columns: ListingColumns) -> None:
        super().__init__(file, columns.schema().append(pa.field("shard", pa.int32(), nullable=False)))

    def add(self, group: int | str, rows: pa.RecordBatch) -> None:
        """Add rows of a shard; shards come in ascending order without gaps."""
        numbers = pa.array(np.full(rows.num_rows, group, dtype=np.int32))
        super().add(group, pa.RecordBatch.from_arrays([*rows.columns, numbers], schema=self._schema))


def read_group(file: File, number: int) -> pa.RecordBatch:
    """Read one group of a `GroupWriter`'s file: a shard of `plan.arrow`, a file's changes of `rewrites.arrow`."""
    with file.open() as source:
        return pa.ipc.open_file(source).get_batch(number)


def open_groups(path: Path, names: list[str]) -> pa.RecordBatchReader:
    """Stream some columns of a `GroupWriter`'s file; small groups are joined, for each batch costs its reader."""
    schema = pa.ipc.open_file(str(path)).schema
    fields = [schema.get_field_index(name) for name in names]
    chosen = pa.schema([schema.field(field) for field in fields])
    # Groups may be small: waking threads for each takes longer than unpacking it.
    how = pa.ipc.IpcReadOptions(use_threads=False, included_fields=sorted(fields))

    def joined() -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source, options=how)
            pending: list[pa.RecordBatch] = []
            rows = 0
            for number in range(reader.num_record_batches):
                pending.append(reader.get_batch(number).select(names))
                rows += pending[-1].num_rows
                if rows >= BATCH_ROWS or number + 1 == reader.num_record_batches:
                    yield from pa.Table.from_batches(pending, chosen).combine_chunks().to_batches()
                    pending, rows = [], 0

    return pa.RecordBatchReader.from_batches(chosen, joined())


def _compressed() -> pa.ipc.IpcWriteOptions:
    # A small batch takes zstd 200 microseconds to unpack, most of it for its tables, and lz4 ten; 1.4 times the size.
    return pa.ipc.IpcWriteOptions(compression="lz4")
