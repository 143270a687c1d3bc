"""Arrow files and streams: local ones are mapped; of remote ones, the messages and columns that are wanted are read.

Files and streams hold the same messages, one behind the other: a length, a description (a flatbuffer) and a body. A
remote one is listed by hopping from description to description, as a tar is from header to header. The shapes are
those of Arrow's `Message.fbs`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAGIC = b"ARROW1\0\0"

MAX_DESCRIPTION_BYTES = 2**26

_SCHEMA, _DICTIONARY, _RECORDS = 1, 2, 3


class ArrowFile(Protocol):
    """The record batches of an Arrow file or stream.

    Attributes:
        schema: of all of them.
        rows: of each.
    """

    schema: pa.Schema
    rows: list[int]

    def read_batch(self, number: int, columns: Sequence[str]) -> pa.RecordBatch:
        """Return some columns of a batch."""
        ...

    def has_bytes(self, column: str) -> bool:
        """Whether a column of images (structs of bytes and a path) has bytes anywhere."""
        ...


class MappedArrow:
    """A local file: only what is touched is read. Lengths are checked here, contents where they are used."""

    def __init__(self, path: str) -> None:
        source = pa.memory_map(path)
        try:
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except pa.ArrowInvalid:  # Hugging Face's files are streams
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            self._batches = list(reader)
        self.schema = reader.schema
        self.rows = [batch.num_rows for batch in self._batches]

    def read_batch(self, number: int, columns: Sequence[str]) -> pa.RecordBatch:
        """Return some columns of a batch."""
        return self._batches[number].select(list(columns))

    def has_bytes(self, column: str) -> bool:
        """Whether a column of images has bytes anywhere."""
        parts = (pc.struct_field(batch.column(column), "bytes") for batch in self._batches)
        return any(part.null_count < len(part) for part in parts)


class RemoteArrow:
    """A remote file.

    Args:
        file: it; seekable.
        size_bytes: of it.

    Raises:
        ValueError: it is damaged, or has columns that refer to dictionaries.
    """

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._messages: list[_Message] = []
        place = len(MAGIC) if file.read(len(MAGIC)) == MAGIC else 0
        schema: pa.Schema | None = None
        while message := self._describe(place, size_bytes):
            if message.kind == _SCHEMA and schema is None:
                schema = pa.ipc.read_schema(pa.py_buffer(message.prefix + message.description))
            elif message.kind == _RECORDS:
                self._messages.append(message)
            elif message.kind == _DICTIONARY:
                raise ValueError("it has columns that refer to dictionaries, which are read from local files only")
            place = message.body + message.body_bytes
        if schema is None:
            raise ValueError("it is no Arrow file: it begins without a schema")
        self.schema = schema
        self.rows = [message.rows for message in self._messages]

    def read_batch(self, number: int, columns: Sequence[str]) -> pa.RecordBatch:
        """Return some columns of a batch; the bodies of the others are not read."""
        message = self._messages[number]
        head = message.prefix + message.description
        # What is not read stays zero, and takes no memory before it is touched.
        data = np.zeros(len(head) + message.body_bytes, dtype=np.uint8)
        data[: len(head)] = np.frombuffer(head, dtype=np.uint8)
        for offset, length in self._spans(message, columns):
            self._file.seek(message.body + offset)
            piece = self._file.read(length)
            if len(piece) != length:
                raise ValueError("it is cut off")
            data[len(head) + offset : len(head) + offset + length] = np.frombuffer(piece, dtype=np.uint8)
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(data)), self.schema)
        return batch.select(list(columns))

    def has_bytes(self, column: str) -> bool:
        """Whether a column of images has bytes anywhere, from the counts of nulls in the descriptions."""
        place = self.schema.get_field_index(column)
        before = [_extent(field.type) for field in list(self.schema)[:place]]
        kind = self.schema.field(place).type
        inner = [_extent(kind.field(n).type) for n in range(kind.get_field_index("bytes"))]
        counts = [extent and extent[0] for extent in (*before, *inner)]
        if None in counts:
            return True
        node = sum(count or 0 for count in counts) + 1
        return any(message.null_count(node) < message.rows for message in self._messages)

    def _spans(self, message: _Message, columns: Sequence[str]) -> list[tuple[int, int]]:
        """Return (offset, length) in the body of what the columns need; of all of it where a type is not known."""
        first, spans = 0, []
        for field in self.schema:
            extent = _extent(field.type)
            if extent is None:
                return [(0, message.body_bytes)]
            if field.name in columns:
                spans += message.buffers[first : first + extent[1]]
            first += extent[1]
        if any(not 0 <= start <= start + length <= message.body_bytes for start, length in spans):
            raise ValueError("a buffer lies outside of its message")
        return [span for span in spans if span[1]]

    def _describe(self, place: int, size_bytes: int) -> _Message | None:
        self._file.seek(place)
        prefix = self._file.read(4)
        if prefix == b"\xff\xff\xff\xff":
            prefix += self._file.read(4)
        length = struct.unpack("<i", prefix[-4:])[0] if len(prefix) >= 4 else 0
        if length == 0:
            return None
        if not 0 < length <= MAX_DESCRIPTION_BYTES:
            raise ValueError(f"the message at byte {place:,} is damaged")
        try:
            message = _Message(prefix, self._file.read(length), place + len(prefix) + length)
        except (struct.error, IndexError):
            raise ValueError(f"the message at byte {place:,} is damaged") from None
        if message.body_bytes < 0 or message.rows < 0 or message.body + message.body_bytes > size_bytes:
            raise ValueError(f"the message at byte {place:,} is damaged or cut off")
        return message


class _Message:
    """One message: its kind, rows, and where its body and the buffers in it lie."""

    def __init__(self, prefix: bytes, description: bytes, body: int) -> None:
        self.prefix, self.description, self.body = prefix, description, body
        table = _number(description, "<I", 0)
        self.kind = self._field(table, 1, "<B")
        self.body_bytes = self._field(table, 3, "<q")
        at = self._place(table, 2)
        header = at + _number(description, "<I", at)
        self.rows = self._field(header, 0, "<q") if self.kind == _RECORDS else 0
        self.buffers = self._pairs(header, 2) if self.kind == _RECORDS else []
        self._nodes = self._pairs(header, 1) if self.kind == _RECORDS else []

    def null_count(self, node: int) -> int:
        """Return how many nulls a column or a part of one has."""
        return self._nodes[node][1]

    def _place(self, table: int, field: int) -> int:
        entries = table - _number(self.description, "<i", table)
        if 4 + 2 * field >= _number(self.description, "<H", entries):
            return 0
        offset = _number(self.description, "<H", entries + 4 + 2 * field)
        return table + offset if offset else 0

    def _field(self, table: int, field: int, kind: str) -> int:
        place = self._place(table, field)
        return _number(self.description, kind, place) if place else 0

    def _pairs(self, table: int, field: int) -> list[tuple[int, int]]:
        place = self._place(table, field)
        if not place:
            return []
        place += _number(self.description, "<I", place)
        count = _number(self.description, "<I", place)
        if count > len(self.description) // 16:
            raise IndexError
        return [struct.unpack_from("<qq", self.description, place + 4 + 16 * n) for n in range(count)]


def _number(data: bytes, kind: str, place: int) -> int:
    if place < 0:
        raise IndexError
    value: int = struct.unpack_from(kind, data, place)[0]
    return value


def _extent(kind: pa.DataType) -> tuple[int, int] | None:
    """Return how many nodes and buffers a column of a type has; None of types that are not known here."""
    types = pa.types
    if types.is_null(kind):
        return 1, 0
    if types.is_struct(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        parts = [_extent(kind.field(n).type) for n in range(kind.num_fields)]
        if None in parts:
            return None
        own = 2 if types.is_list(kind) or types.is_large_list(kind) else 1
        return 1 + sum(part[0] for part in parts if part), own + sum(part[1] for part in parts if part)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return 1, 3
    known = types.is_primitive(kind) or types.is_fixed_size_binary(kind) or types.is_decimal(kind)
    return (1, 2) if known else None
