"""The columns of a store and how they are written to Parquet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROW_GROUP_ROWS = 16_384
"""Small row groups make a lookup by id cheap (3-40 ms in 10 M rows) and cost no size."""

MANTISSA_BITS = 10
"""Kept by default: float16's precision with float32's range; 0.44 of raw size, cosine unchanged to 1e-7."""

RESERVED = ("item_id", "vector", "source", "digest", "parent_id")

TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "long": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
}
"""Types a carried column can have, by Delta's names."""

CHUNK_ID = r"#c\d{4,}$"
"""How the ids of chunks end: `<parent>#c0003`."""

_COLUMN_NAME = re.compile(r"^[^ ,;{}()\n\t=]+$")


@dataclass(frozen=True)
class CarriedColumn:
    """A column copied from the corpus to the store."""

    name: str
    type: str = "string"

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of the column."""
        return TYPES[self.type]


def is_column_name(name: str) -> bool:
    """Whether Delta accepts a column of this name."""
    return bool(_COLUMN_NAME.match(name)) and name not in RESERVED


def vector_field() -> pa.Field:
    """The field of vectors: a plain non-null list, which every reader of Delta takes."""
    return pa.field("vector", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False)


def store_schema(columns: tuple[CarriedColumn, ...]) -> pa.Schema:
    """Return the Arrow schema of a store that carries `columns`."""
    return pa.schema(
        [
            pa.field("item_id", pa.string(), nullable=False),
            vector_field(),
            pa.field("source", pa.string(), nullable=False),
            pa.field("digest", pa.string(), nullable=False),
            pa.field("parent_id", pa.string()),
            *(pa.field(column.name, column.arrow_type) for column in columns),
        ]
    )


def owner_ids(table: pa.Table | pa.RecordBatch) -> pa.ChunkedArray | pa.Array:
    """Return the item that each row belongs to: the parent of a chunk, else the row's own id."""
    return pc.coalesce(table.column("parent_id"), table.column("item_id"))


def writer_options(schema: pa.Schema, rows: int) -> dict[str, Any]:
    """Return the Parquet options of a shard file.

    `store_schema=False`: with the Arrow schema in the footer, Polars' `scan_delta` refuses the vector column.
    The vectors' bytes are split by significance, which zstd then halves; checksums let `verify` name a bad page.
    """
    names = [field.name for field in schema if field.name != "vector"]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [name for name in names if name not in ("item_id", "digest")],
        "column_encoding": {"vector.list.element": "BYTE_STREAM_SPLIT"},
        "write_statistics": ["item_id", "source"],
        "write_page_index": True,
        "write_page_checksum": True,
        "store_schema": False,
        "bloom_filter_options": {"item_id": {"ndv": max(1, min(rows, ROW_GROUP_ROWS)), "fpp": 0.01}},
    }


def round_mantissa(vectors: np.ndarray, bits: int = MANTISSA_BITS) -> np.ndarray:
    """Round float32 values to `bits` mantissa bits (nearest, ties to even); exponents and signs are kept.

    Args:
        vectors: (n, dim) float32, finite.
        bits: mantissa bits to keep, 1 to 22.

    Returns:
        A new (n, dim) float32 array.
    """
    drop = np.uint32(23 - bits)
    raw = np.ascontiguousarray(vectors, dtype=np.float32).view(np.uint32)
    half = (np.uint32(1) << (drop - np.uint32(1))) - np.uint32(1)
    lowest_kept = (raw >> drop) & np.uint32(1)
    rounded = (raw + half + lowest_kept) & ~((np.uint32(1) << drop) - np.uint32(1))
    return rounded.view(np.float32)


def vector_array(vectors: np.ndarray) -> pa.ListArray:
    """Return (n, dim) float32 vectors as the column `vector`, without a copy of the values."""
    n, dim = vectors.shape
    offsets = pa.array(np.arange(0, (n + 1) * dim, dim, dtype=np.int32)[: n + 1])
    values = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.ListArray.from_arrays(offsets, values, type=vector_field().type)


def vectors_from_array(array: pa.Array, dim: int) -> np.ndarray:
    """Return a `vector` column as (n, dim) float32, without a copy where the array allows it.

    Raises:
        ValueError: a vector has another length than `dim`, or is null.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    values = array.flatten()
    if len(values) != len(array) * dim or array.null_count:
        raise ValueError(f"a vector is null or has another length than {dim}")
    # Through the buffer: Array.to_numpy would import pandas (0.2 s) where it is installed.
    flat = np.frombuffer(values.buffers()[1], dtype=np.float32, count=len(values), offset=4 * values.offset)
    return flat.reshape(-1, dim)
