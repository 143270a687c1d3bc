"""Shard files: written whole under an exclusive name, with their receipt in the footer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedx.core.contracts import ItemFailure
from embedx.core.errors import StoreError
from embedx.store import schema as schemas
from embedx.store.files import File

RECEIPT_KEY = b"embedx.receipt"

FAILURE_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("retryable", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Receipt:
    """What one shard task did; stored in the shard's footer and returned to the driver (< 2 KB).

    Attributes:
        run: the run that planned the shard.
        shard: its number in the run's plan.
        fingerprint: of the encoder.
        precision: of the forward pass.
        rows: vectors in the file.
        failed: items of the shard that have no vector.
        failures_file: name of the attempt's failure file in the run's `failures/`; empty without failures.
        size_bytes: of the file; 0 in the footer, which cannot know it.
        sha256: of the file, where its writer says it; empty in the footer.
        first_id: smallest id of the file, for Delta's statistics; None without rows.
        last_id: largest id of the file.
        seconds: busy seconds per stage.
        counts: further sums, e.g. tokens, padded tokens, bytes read, truncated texts.
        runtime: what executed the encoder.
        host: the worker's host and process.
        started: when the task began, in seconds since the epoch.
        parents: items that have rows, where an item may have several; None: one row each.
    """

    run: str
    shard: int
    fingerprint: str
    precision: str
    rows: int
    failed: int
    failures_file: str = ""
    size_bytes: int = 0
    sha256: str = ""
    first_id: str | None = None
    last_id: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    runtime: str = ""
    host: str = ""
    started: float = 0.0
    parents: int | None = None

    @property
    def embedded(self) -> int:
        """Items of the shard that have a vector."""
        return self.rows if self.parents is None else self.parents

    @property
    def items(self) -> int:
        """Items of the shard."""
        return self.embedded + self.failed

    def to_json(self) -> str:
        """Return the footer's text."""
        return json.dumps(asdict(self), separators=(",", ":"))


def write_shard(file: File, table: pa.Table, receipt: Receipt) -> Receipt:
    """Create a shard file exclusively and durably: it exists exactly when the shard is done.

    The bytes are finished in memory and created under the final name if nothing has it. Of two attempts at a shard
    the first wins; the second returns the winner's receipt.

    Args:
        file: the shard.
        table: rows in the store's schema.
        receipt: what to put in the footer.

    Returns:
        The receipt of the file that stands there, with its size; with its sha256 where this call wrote it.
    """
    data = memoryview(encode_shard(table, receipt)).cast("B")
    if not file.create(data):
        return read_receipt(file)
    return replace(receipt, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def encode_shard(table: pa.Table, receipt: Receipt) -> pa.Buffer:
    """Return the bytes of a shard file."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **schemas.writer_options(table.schema, table.num_rows)) as writer:
        writer.write_table(table, row_group_size=schemas.ROW_GROUP_ROWS)
        # As key-value metadata: the schema's own metadata is dropped by store_schema=False.
        writer.add_key_value_metadata({RECEIPT_KEY.decode(): receipt.to_json()})
    return sink.getvalue()


def read_receipt(file: File) -> Receipt:
    """Return the receipt in a shard's footer, with the file's size.

    Raises:
        StoreError: the file is damaged or was not written by embedx.
    """
    try:
        with file.open() as opened:
            size = opened.size()
            metadata = pq.read_metadata(opened)
        fields: dict[str, Any] = json.loads(metadata.metadata[RECEIPT_KEY])
        receipt = Receipt(**{**fields, "size_bytes": size})
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{file} is not a whole shard file ({error})", "Run embedx verify on the store") from error
    if metadata.num_rows != receipt.rows:
        raise StoreError(f"{file} has {metadata.num_rows} rows, its receipt says {receipt.rows}", "Run embedx verify")
    return receipt


def write_failures(file: File, failures: list[tuple[ItemFailure, str]]) -> None:
    """Write one attempt's failed items, each with the identity its content had.

    Durable before the shard that names it; an attempt's name is its own, so nothing is overwritten.
    """
    rows = [{**failure.to_dict(), "item_id": failure.item_id, "identity": identity} for failure, identity in failures]
    table = pa.Table.from_pylist(
        [{name: row[name] for name in FAILURE_SCHEMA.names} for row in rows], schema=FAILURE_SCHEMA
    )
    write_arrow(file, table)


def write_arrow(file: File, table: pa.Table) -> None:
    """Write a table as an Arrow file, whole and durably."""
    with file.writing() as path, pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_arrow(file: File) -> pa.Table:
    """Read an Arrow file whole.

    Raises:
        StoreError: it is missing or damaged.
    """
    try:
        return pa.ipc.open_file(pa.BufferReader(file.read())).read_all()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{file} cannot be read ({' '.join(str(error).split())[:160]})", "Restore it, or run embedx verify"
        ) from error


def is_whole_arrow(file: File) -> bool:
    """Whether an Arrow file is there and has its end, which is written last."""
    try:
        with file.open() as source:
            pa.ipc.open_file(source)
    except (OSError, pa.ArrowException):
        return False
    return True
