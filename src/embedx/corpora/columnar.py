"""Columnar files, Parquet and Arrow: their columns, batches of their rows, and which of them hold images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice, repeat
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.core.places import Access
from embedx.corpora import values
from embedx.corpora.arrow_files import ArrowFile, MappedArrow, RemoteArrow
from embedx.corpora.locators import is_remote
from embedx.corpora.pages import MAX_PAGE_BYTES, HugePage, find_huge_page
from embedx.corpora.ranges import open_ranges
from embedx.corpora.storage import shared_storage

PIECE_ROWS = 8_192

PIECE_BYTES = 2**21
"""A piece ends when its rows have about this many characters: a row may hold a whole book."""

BUFFER_BYTES = 2**20
"""Read of a column at a time; without it Arrow reads a whole column of a row group at once, however large."""


class ColumnarFile:
    """An open Parquet or Arrow file; of a remote one, the same object to its end.

    Args:
        place: its path or URL.
        kind: parquet or arrow.
        access: of remote files.

    Attributes:
        group_rows: rows of each row group of Parquet, each batch of Arrow.
        token: changes whenever the file may have changed.

    Raises:
        ReadError: it cannot be read.
        ValueError: it is damaged.
    """

    def __init__(self, place: str, kind: str, access: Access) -> None:
        self.place = place = place if is_remote(place) else os.path.abspath(place)
        self.kind = kind
        self._storage = shared_storage(access)
        self._info = self._storage.info(place)
        self.token = self._info.token
        if kind == "parquet":
            source = self._open() if is_remote(place) else place
            self.parquet = pq.ParquetFile(source, buffer_size=BUFFER_BYTES)
            self.schema: pa.Schema = self.parquet.schema_arrow
            self.group_rows = [self.parquet.metadata.row_group(n).num_rows for n in range(self.parquet.num_row_groups)]
        else:
            self.arrow: ArrowFile = (
                RemoteArrow(self._open(), self._info.size_bytes) if is_remote(place) else MappedArrow(place)
            )
            self.schema, self.group_rows = self.arrow.schema, self.arrow.rows
        self.class_names = _class_names(self.schema)

    def _open(self) -> BinaryIO:
        if is_remote(self.place):
            return open_ranges(partial(self._storage.read_range, self._info), self._info.size_bytes)
        return open(self.place, "rb")

    def find_huge_page(self, group: int, column: str) -> HugePage | None:
        """Return the first page of a column of a row group that is not read, for it would take too much memory.

        Raises:
            ValueError: the file is damaged.
        """
        if self.kind != "parquet":
            return None
        metadata = self.parquet.metadata.row_group(group)
        chunks = [metadata.column(n) for n in range(metadata.num_columns)]
        heavy = [
            chunk
            for chunk in chunks
            if chunk.total_uncompressed_size > MAX_PAGE_BYTES
            and chunk.path_in_schema.partition(".")[0] == column.partition(".")[0]
        ]
        if not heavy:
            return None
        with self._open() as file:
            found = [page for chunk in heavy if (page := find_huge_page(file, chunk))]
        return min(found, key=lambda page: page.row, default=None)

    def columns(self) -> dict[str, str]:
        """Return column -> type: `string`, `long`, `double`, `boolean`, `binary`, `image` or `other`.

        An image is a struct of bytes and a path, as Hugging Face datasets have it; its path is a column of its own,
        `image.path`.
        """
        kinds: dict[str, str] = {}
        for field in self.schema:
            kinds[field.name] = "string" if field.name in self.class_names else column_type(field.type)
            if kinds[field.name] == "image":
                kinds[f"{field.name}.path"] = "string"
        return kinds

    def iterate_pieces(
        self, columns: Sequence[str] | None, tolerant: bool
    ) -> Iterator[pa.RecordBatch | list[dict[str, Any]]]:
        """Yield all rows in pieces, with some columns only; `image.path` comes as a column of this name.

        A piece is a batch, or a list of rows where a column has a page that is not read.
        """
        names = [name for name in self.columns() if columns is None or name in columns]
        if columns is None:
            names = [name for name in names if name in self.schema.names]
        for group in range(len(self.group_rows)):
            huge = {name: page for name in names if (page := self.find_huge_page(group, name))}
            readers = {name: self._iterate_values(group, name, page, tolerant) for name, page in huge.items()}
            for batch in self.iterate_batches(group, [name for name in names if name not in huge]):
                if not huge:
                    yield batch
                    continue
                rows = batch_rows(batch, tolerant)
                for name, reader in readers.items():
                    for row in rows:
                        row[name] = next(reader)
                yield rows

    def _iterate_values(self, group: int, name: str, huge: HugePage, tolerant: bool) -> Iterator[Any]:
        """Yield the values of a column up to a page that is not read, and what stands for the others."""
        if huge.row:
            one_by_one = self.parquet.iter_batches(1, row_groups=[group], columns=[name])
            for batch in islice(one_by_one, huge.row):
                yield _values(self._column(batch, name), tolerant)[0]
        yield from repeat(values.Oversized(huge.size_bytes))

    def iterate_batches(self, group: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of a row group (of Arrow: of a batch) in pieces; `image.path` under this name."""
        if not names:
            nothing = pa.RecordBatch.from_struct_array(pa.array([{}] * PIECE_ROWS, pa.struct([])))
            count = self.group_rows[group]
            yield from (nothing.slice(0, min(PIECE_ROWS, count - start)) for start in range(0, count, PIECE_ROWS))
            return
        if self.kind == "parquet":
            rows = _rows_of_a_piece(self.parquet.metadata.row_group(group), names)
            batches = self.parquet.iter_batches(rows, row_groups=[group], columns=list(names))
        else:
            whole = self.arrow.read_batch(group, list(dict.fromkeys(self._stored(name) for name in names)))
            batches = (whole.slice(start, PIECE_ROWS) for start in range(0, whole.num_rows, PIECE_ROWS))
        for batch in batches:
            arrays = [self._column(batch, name) for name in names]
            yield pa.RecordBatch.from_arrays(arrays, names=list(names))

    def _stored(self, name: str) -> str:
        return name if name in self.schema.names else name.rpartition(".")[0]

    def _column(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        if name in batch.schema.names:
            array = batch.column(name)
        else:
            parent, _, child = name.rpartition(".")
            array = pc.struct_field(batch.column(parent), child)
        if self.kind == "arrow":
            array.validate(full=True)  # offsets that lie would read foreign memory
        labels = self.class_names.get(name)
        return array if labels is None else _named(array, labels)

    def has_only_paths(self, column: str) -> bool:
        """Whether an image column holds no bytes at all, but paths of files beside it."""
        if self.kind == "arrow":
            return bool(self.group_rows) and not self.arrow.has_bytes(column)
        metadata = self.parquet.metadata
        place = next((n for n in range(metadata.num_columns) if _leaf(metadata, n) == f"{column}.bytes"), None)
        if place is None:
            return False
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(place)
            if not chunk.is_stats_set or chunk.statistics.null_count != chunk.num_values:
                return False
        return metadata.num_rows > 0


def column_type(kind: pa.DataType) -> str:
    """Return what a column of an Arrow type is to a corpus."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    if types.is_integer(kind) and kind != pa.uint64():
        return "long"
    if types.is_floating(kind):
        return "double"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "binary"
    if types.is_struct(kind) and {"bytes", "path"} <= {kind.field(n).name for n in range(kind.num_fields)}:
        is_image = column_type(kind.field("bytes").type) == "binary"
        return "image" if is_image and column_type(kind.field("path").type) == "string" else "other"
    return "boolean" if types.is_boolean(kind) else "other"


def batch_rows(batch: pa.RecordBatch, tolerant: bool) -> list[dict[str, Any]]:
    """Return a batch as dicts; of values that are not UTF-8 the bytes as lone surrogates, if tolerant."""
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [_values(column, tolerant) for column in batch.columns]
    return [dict(zip(batch.schema.names, row)) for row in zip(*columns)]


def _values(column: pa.Array, tolerant: bool) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column_type(column.type) in ("string", "binary") and not pa.types.is_string_view(column.type):
        sizes = pc.binary_length(column)
        if (pc.max(sizes).as_py() or 0) > values.MAX_CELL_BYTES:
            one_by_one = (_values(column.slice(row, 1), tolerant) for row in range(len(column)) if len(column) > 1)
            return [value for found in one_by_one for value in found] or [values.Oversized(sizes[0].as_py())]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # Parquet does not check that strings are UTF-8
        if not tolerant or column_type(column.type) != "string":
            raise
        raw = column.cast(pa.large_binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _rows_of_a_piece(group: pq.RowGroupMetaData, names: Sequence[str]) -> int:
    """Return how many rows of some columns weigh `PIECE_BYTES`; what is not read weighs nothing."""
    chunks = (group.column(place) for place in range(group.num_columns))
    wanted = tuple(f"{name}." for name in names)
    size = sum(chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(wanted))
    return max(1, min(PIECE_ROWS, PIECE_BYTES * group.num_rows // max(1, size)))


def _leaf(metadata: pq.FileMetaData, place: int) -> str:
    path: str = metadata.row_group(0).column(place).path_in_schema if metadata.num_row_groups else ""
    return path


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return column -> names of its classes, as Hugging Face datasets write them into their files."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if name in schema.names
            and isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and pa.types.is_integer(schema.field(name).type)
        }
    return {}


def _named(array: pa.Array, labels: list[str]) -> pa.Array:
    """Return the names of class numbers; -1, which says that there is no label, becomes null."""
    known = pc.and_(pc.greater_equal(array, 0), pc.less(array, len(labels)))
    return pa.array(labels, pa.string()).take(pc.if_else(known, array, None))
