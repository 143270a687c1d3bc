"""Cells: images that stand in the rows of Parquet and Arrow files, read by row number in bounded memory.

Rows of a plan come in the order of the file, from several threads. So a Parquet row group is decoded once, block by
block, and the last blocks are kept for the threads that are a little behind.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc

from embedx.core.specs import Access
from embedx.corpora.columnar import ColumnarFile
from embedx.corpora.errors import ReadError
from embedx.corpora.locators import Locator
from embedx.corpora.pages import HugePage
from embedx.corpora.values import MAX_CELL_BYTES

BLOCK_BYTES = 2**24
"""Images decoded from their pages at a time."""

BLOCKS_KEPT = 3
"""At most, and of more than twice `BLOCK_BYTES` together only the last: a single cell may be larger than that."""

BLOCK_ROWS = 256

_heavy = threading.Lock()
"""Held while a column of huge cells is decoded: one at a time in a process, whatever the number of its tasks."""


@dataclass(frozen=True)
class Cell:
    """What a row holds: bytes, or the path of a file beside the table."""

    data: bytes | None
    path: str | None = None


class CellReader:
    """Reads one column of one file. Thread-safe.

    Args:
        locator: of any of its cells.
        access: of remote files.

    Attributes:
        token: changes whenever the file may have changed.

    Raises:
        ReadError: the file is missing or broken.
    """

    def __init__(self, locator: Locator, access: Access) -> None:
        self._place, self._column = locator.place, locator.column
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, pa.Array] = OrderedDict()
        self._ahead: Iterator[pa.RecordBatch] = iter(())
        self._ahead_group, self._ahead_row, self._ahead_is_heavy = -1, 0, False
        try:
            self._file = ColumnarFile(locator.place, locator.kind, access)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ReadError(f"{locator.place}: {' '.join(str(error).split())[:200]}", type(error).__name__) from None
        self.token = self._file.token
        self._huge: dict[int, HugePage | None] = {}
        self._starts = [0, *accumulate(self._file.group_rows)]

    def read(self, row: int) -> Cell:
        """Return the cell of a row.

        Raises:
            ReadError: the row is not there, is null, or too large.
        """
        with self._lock:
            try:
                if not 0 <= row < self._starts[-1] or self._column not in self._file.schema.names:
                    raise ReadError(f"{self._place} has no row {row} in column {self._column!r}", "SourceChanged")
                start, block = self._block(row)
                return self._cell(block, row - start, row)
            except (OSError, ValueError, pa.ArrowException) as error:
                self._ahead_group = -1
                raise ReadError(
                    f"{self._place} row {row}: {' '.join(str(error).split())[:200]}", type(error).__name__
                ) from None

    def _cell(self, block: pa.Array, position: int, row: int) -> Cell:
        path = None
        if pa.types.is_struct(block.type):
            path = pc.struct_field(block.slice(position, 1), "path")[0].as_py()
            block = pc.struct_field(block, "bytes")
        value = block[position]
        if not value.is_valid:
            if path:
                return Cell(None, path)
            raise ReadError(f"{self._place} row {row}: column {self._column!r} is null", "NullCell", False)
        # Asked before the bytes are copied.
        size = pc.binary_length(block.slice(position, 1))[0].as_py()
        if size > MAX_CELL_BYTES:
            raise ReadError(
                f"{self._place} row {row} has {size:,} bytes; more than {MAX_CELL_BYTES:,} are refused",
                "CellTooLarge",
                False,
            )
        return Cell(value.as_py(), path)

    def _block(self, row: int) -> tuple[int, pa.Array]:
        for start, block in self._blocks.items():
            if start <= row < start + len(block):
                return start, block
        group = bisect_right(self._starts, row) - 1
        if self._file.kind == "arrow":
            array = self._file.arrow.read_batch(group, [self._column]).column(0)
            array.validate(full=True)  # offsets that lie would read foreign memory
            return self._keep(self._starts[group], array)
        if group not in self._huge:
            self._huge[group] = self._file.find_huge_page(group, self._column)
        huge = self._huge[group]
        if huge is not None and row >= self._starts[group] + huge.row:
            raise ReadError(
                f"{self._place} row {row} stands in or behind a page of {huge.size_bytes:,} bytes, which is not read: "
                f"leave out what is larger than {MAX_CELL_BYTES:,} bytes, or write smaller row groups",
                "PageTooLarge",
                False,
            )
        if group != self._ahead_group or row < self._ahead_row:
            self._ahead_group, self._ahead_row = group, self._starts[group]
            rows = 1 if huge is not None else self._rows_at_once(group)
            self._ahead_is_heavy = rows == 1
            self._ahead = self._file.parquet.iter_batches(rows, row_groups=[group], columns=[self._column])
        heavy = _heavy if self._ahead_is_heavy else nullcontext()
        while True:
            with heavy:
                batch = next(self._ahead, None)
            if batch is None:
                raise ReadError(f"{self._place} has fewer rows than it says", "SourceChanged")
            start = self._ahead_row
            self._ahead_row += batch.num_rows
            if row < self._ahead_row:
                return self._keep(start, batch.column(0))

    def _keep(self, start: int, block: pa.Array) -> tuple[int, pa.Array]:
        self._blocks[start] = block
        while len(self._blocks) > 1 and (
            len(self._blocks) > BLOCKS_KEPT or sum(kept.nbytes for kept in self._blocks.values()) > 2 * BLOCK_BYTES
        ):
            self._blocks.popitem(last=False)
        return start, block

    def _rows_at_once(self, group: int) -> int:
        metadata = self._file.parquet.metadata.row_group(group)
        chunks = [metadata.column(n) for n in range(metadata.num_columns)]
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.partition(".")[0] == self._column.partition(".")[0]
        )
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES * metadata.num_rows // max(1, size)))
