"""Reading a store: its card, its files, its vectors in a stable row order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedx.core.contracts import EncoderCard
from embedx.core.digests import fingerprint
from embedx.core.errors import StoreError
from embedx.core.long_texts import TRUNCATED, LongTexts
from embedx.store import delta
from embedx.store.layout import STORE_FORMAT, StoreLayout
from embedx.store.schema import RESERVED, CarriedColumn, vectors_from_array


@dataclass(frozen=True)
class StoreCard:
    """What a store was created with; `_embedx/encoder.json`.

    Attributes:
        encoder: the encoder's card.
        precision: fp32 or bf16.
        full_bits: whether vectors keep all mantissa bits.
        canaries: (m, dim) vectors of the encoder's canary items, rounded as the store's.
        columns: the carried columns.
        content_column: the carried column that repeats the text itself, if one does.
        why_precision: how `auto` decided, for people.
        jpeg_side: to how many pixels of the shorter side JPEGs are reduced in decoding; 0 is not at all.
        long: how long texts are read.
    """

    encoder: EncoderCard
    precision: str
    full_bits: bool
    canaries: list[list[float]]
    columns: tuple[CarriedColumn, ...]
    content_column: str | None = None
    why_precision: str = ""
    jpeg_side: int = 0
    long: LongTexts = TRUNCATED

    @property
    def basis(self) -> str:
        """Fingerprint of what makes finished shards of another run fit: encoder, precision, mantissa, columns, long."""
        columns = [[column.name, column.type] for column in self.columns]
        made = [self.encoder.fingerprint, self.precision, self.full_bits, columns, self.content_column]
        # Only where it says something: runs that began before there was such a thing must stay resumable.
        said = [self.jpeg_side] if self.jpeg_side else [self.long.to_dict()] if self.long.chunks else []
        return fingerprint([*made, *said])

    def to_dict(self) -> dict[str, Any]:
        """Return the file's JSON."""
        return {
            "format": STORE_FORMAT,
            "encoder": self.encoder.to_dict(),
            "precision": self.precision,
            "why_precision": self.why_precision,
            "jpeg_side": self.jpeg_side,
            "full_bits": self.full_bits,
            "columns": [{"name": column.name, "type": column.type} for column in self.columns],
            "content_column": self.content_column,
            "long": self.long.to_dict(),
            "canaries": self.canaries,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> StoreCard:
        """Read the file's JSON.

        Raises:
            StoreError: another format, or keys are missing.
        """
        if not isinstance(data, dict) or data.get("format") != STORE_FORMAT:
            raise StoreError(
                f"{where} is not of format {STORE_FORMAT}, which this embedx reads",
                "Use the embedx version that wrote it, or extract again",
            )
        try:
            return cls(
                encoder=EncoderCard.from_dict(data["encoder"]),
                precision=data["precision"],
                full_bits=data["full_bits"],
                canaries=data["canaries"],
                columns=tuple(CarriedColumn(**column) for column in data["columns"]),
                content_column=data.get("content_column"),
                why_precision=data.get("why_precision", ""),
                jpeg_side=data.get("jpeg_side", 0),
                long=LongTexts.from_dict(data.get("long", {"mode": "truncate"})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{where} is damaged: {error}", "Run embedx verify, or restore the file") from error


def read_store_card(root: Path) -> StoreCard | None:
    """Return a store's card, or None where there is none."""
    path = StoreLayout(root).encoder
    try:
        return StoreCard.from_dict(json.loads(path.read_text()), str(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error})", "Restore the file from a backup") from error


@dataclass(frozen=True)
class Store:
    """One version of a store. Open it with `open_store`.

    Attributes:
        path: the store's folder.
        store_card: what it was created with.
        snapshot: the version's files.
    """

    path: Path
    store_card: StoreCard
    snapshot: delta.Snapshot

    @property
    def version(self) -> int:
        """The Delta version."""
        return self.snapshot.version

    @property
    def card(self) -> EncoderCard:
        """The encoder's card."""
        return self.store_card.encoder

    @property
    def canaries(self) -> list[list[float]]:
        """(m, dim) vectors of the encoder's canary items when the store was created."""
        return self.store_card.canaries

    @property
    def precision(self) -> str:
        """The precision of the vectors: fp32 or bf16."""
        return self.store_card.precision

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.card.dim

    @property
    def count(self) -> int:
        """Rows of the version: items, or where texts have chunks, these."""
        return self.snapshot.rows

    @cached_property
    def columns(self) -> list[str]:
        """Names of the carried columns; where texts have chunks, before them `parent_id`."""
        schema = self.snapshot.schema
        own = ["parent_id"] if self.store_card.long.has_rows else []
        return [*own, *(name for name in schema.names if name not in RESERVED)] if schema else []

    @property
    def files(self) -> list[Path]:
        """The version's files, sorted: the right list for any other Parquet reader."""
        return [self.path / file.path for file in self.snapshot.files]

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Load every vector.

        Returns:
            ids (n,) object array of str and vectors (n, dim) float32, in the order of `files`.
        """
        ids = np.empty(self.count, dtype=object)
        vectors = np.empty((self.count, self.dim), dtype=np.float32)
        start = 0
        for batch, part in self.iterate_batches(batch_rows=4096):
            stop = start + len(part)
            ids[start:stop] = batch.column("item_id").to_pylist()
            vectors[start:stop] = part
            start = stop
        return ids, vectors

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Load named columns, in the same row order as `vectors`.

        Raises:
            StoreError: a column does not exist.
        """
        self.check_columns(columns)
        tables = [pq.read_table(path, columns=list(columns), partitioning=None) for path in self.files]
        return pa.concat_tables(tables) if tables else self._empty(columns)

    def iterate_batches(
        self, columns: Sequence[str] = (), batch_rows: int = 16_384
    ) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Yield the rows in order, in flat memory.

        Args:
            columns: names besides `item_id`.
            batch_rows: the most rows of a batch.

        Yields:
            A record batch of `item_id` and the columns, and its vectors (m, dim) float32.
        """
        self.check_columns(columns)
        names = ["item_id", *(name for name in columns if name != "item_id")]
        for path in self.files:
            try:
                for batch in pq.ParquetFile(path).iter_batches(batch_rows, columns=[*names, "vector"]):
                    yield batch.select(names), vectors_from_array(batch.column("vector"), self.dim)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise StoreError(f"{path} cannot be read ({error})", "Run embedx verify on the store") from error

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise a StoreError that names a missing column and those there are."""
        known = ["item_id", "source", "digest", "parent_id", *self.columns]
        for name in columns:
            if name not in known:
                raise StoreError(
                    f"{self.path} has no column {name!r}",
                    f"Its columns: {', '.join(self.columns) or 'none carried'}",
                )

    def _empty(self, columns: Sequence[str]) -> pa.Table:
        schema = self.snapshot.schema or pa.schema([])
        return pa.schema([schema.field(name) for name in columns]).empty_table()


def open_store(path: str | Path, version: int | None = None) -> Store:
    """Open a store for reading.

    Args:
        path: the store's folder.
        version: an old version; None is the newest.

    Raises:
        StoreError: there is no store, nothing was published yet, or it is damaged.
    """
    root = Path(path)
    if not root.is_dir():
        raise StoreError(
            f"{root} does not exist", "Create it with: embedx extract SOURCE --encoder REF --out " + str(root)
        )
    card = read_store_card(root)
    snapshot = delta.open_snapshot(root, version)
    if card is None:
        raise StoreError(f"{root} is not an embedx store", "Pass the folder given as --out to embedx extract")
    if snapshot.version < 0:
        raise StoreError(f"{root} has no published version yet", "Run its embedx extract command again to finish it")
    return Store(root, card, snapshot)
