"""The rows of a store, made of a plan's rows and their vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from embedx.inference.pipeline import Embedded
from embedx.steps.long_texts import EmbeddedChunks
from embedx.store.schema import CarriedColumn, store_schema, vector_array


@dataclass(frozen=True)
class StoreColumns:
    """The columns that a store carries.

    Attributes:
        carried: all of them.
        content: the one that repeats the text, if one does.
    """

    carried: tuple[CarriedColumn, ...]
    content: str | None

    def build_table(self, rows: pa.RecordBatch, embedded: Embedded, digests: list[str]) -> pa.Table:
        """Return the store's rows.

        Args:
            rows: of the plan.
            embedded: their vectors; several of one row are its chunks.
            digests: of each of the plan's rows.
        """
        good = rows.take(pa.array(embedded.positions))
        columns: dict[str, Any] = {
            "item_id": good.column("item_id"),
            "vector": vector_array(embedded.vectors),
            "source": good.column("source"),
            "digest": pa.array([digests[position] for position in embedded.positions.tolist()], pa.string()),
            "parent_id": pa.nulls(good.num_rows, pa.string()),
        }
        for column in self.carried:
            columns[column.name] = good.column("content" if column.name == self.content else f"c_{column.name}")
        if isinstance(embedded, EmbeddedChunks):
            columns |= self._chunk_columns(good.column("item_id").to_pylist(), embedded)
        schema = store_schema(self.carried)
        return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _chunk_columns(self, owners: list[str], chunks: EmbeddedChunks) -> dict[str, pa.Array]:
        """Return what is a chunk's own: its id and words, and its text's id as parent; whole texts keep theirs."""
        named = list(zip(owners, chunks.numbers.tolist()))
        columns = {
            "item_id": pa.array([own if number < 0 else f"{own}#c{number:04d}" for own, number in named], pa.string()),
            "parent_id": pa.array([None if number < 0 else own for own, number in named], pa.string()),
        }
        if self.content is not None:
            columns[self.content] = pa.array(chunks.texts, pa.string())
        return columns
