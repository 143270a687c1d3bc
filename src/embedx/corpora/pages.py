"""Pages of a Parquet file: their sizes, from their headers alone, so that a huge one is known before it is unpacked.

pyarrow shows sizes of whole column chunks only, and reads a page at once, with copies: three times its size of memory.
The headers are Thrift structs in the compact protocol; see parquet-format's `parquet.thrift`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_PAGE_BYTES = 2**29
"""Larger pages are read only where they are many values of ordinary size: some writers put a thousand into one."""

ORDINARY_BYTES = 2**24
"""A value of ordinary size, on average over a page."""

HEADER_BYTES = 2**16

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
_TYPE, _UNPACKED, _PACKED = 1, 2, 3
_DETAILS = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}
_VALUES = 1


@dataclass(frozen=True)
class HugePage:
    """A page that is not read.

    Attributes:
        row: its first row, counted from the row group's.
        size_bytes: unpacked.
    """

    row: int
    size_bytes: int


def find_huge_page(file: BinaryIO, chunk: Any) -> HugePage | None:
    """Return the first page of a column chunk that is too large to be read; None if all can be.

    Args:
        file: the Parquet file; only headers are read.
        chunk: pyarrow's metadata of a column without repetition.

    Raises:
        ValueError: a header is damaged.
    """
    if chunk.total_uncompressed_size <= MAX_PAGE_BYTES:
        return None
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        position = min(position, chunk.dictionary_page_offset)
    end = position + chunk.total_compressed_size
    row = 0
    while position < end and row < chunk.num_values:
        file.seek(position)
        header, length = _read_struct(file.read(HEADER_BYTES), 0)
        kind, unpacked, packed = (header.get(name) for name in (_TYPE, _UNPACKED, _PACKED))
        details = header.get(_DETAILS.get(kind, 0) if isinstance(kind, int) else 0, {})
        values = details.get(_VALUES, 0) if isinstance(details, dict) else 0
        if not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
            raise ValueError(f"the page header at byte {position:,} is damaged")
        if unpacked > MAX_PAGE_BYTES and unpacked > ORDINARY_BYTES * values:
            return HugePage(row, unpacked)
        row += values if kind in (DATA, DATA_V2) else 0
        position += length + packed
    return None


def _read_struct(data: bytes, place: int) -> tuple[dict[int, Any], int]:
    """Return field -> value of a struct (whole numbers and structs only), and the place behind it."""
    fields: dict[int, Any] = {}
    number = 0
    try:
        while kind := data[place]:
            place += 1
            if kind >> 4:
                number += kind >> 4
            else:
                number, place = _read_number(data, place)
            fields[number], place = _read_value(data, place, kind & 15)
    except IndexError:
        raise ValueError("a page header is damaged or longer than 64 KiB") from None
    return fields, place + 1


def _read_value(data: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true, false
        return None, place
    if kind == 3:
        return None, place + 1
    if kind in (4, 5, 6):
        return _read_number(data, place)
    if kind == 7:
        return None, place + 8
    if kind == 8:
        length, place = _read_varint(data, place)
        return None, place + length
    if kind == 12:
        return _read_struct(data, place)
    raise ValueError(f"a page header has a field of the kind {kind}, which none has")


def _read_number(data: bytes, place: int) -> tuple[int, int]:
    value, place = _read_varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a page header has a number without an end")
