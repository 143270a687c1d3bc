"""Labels of a store's rows: from a carried column, or joined by id from a table of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.core.errors import CorpusError, UsageError
from embedx.corpora.tables import Table, table_format
from embedx.corpora.values import text_of
from embedx.store.reader import Store
from embedx.store.schema import owner_ids

ID_COLUMNS = ("item_id", "id")


@dataclass(frozen=True)
class RowLabels:
    """Labels in the store's row order.

    Attributes:
        ids: (n,) object array of str.
        labels: (n,) object array of str, None where a row has no label.
        groups: (n,) object array of str; None when no group was asked for and each row is an item.
        parents: (n,) object array of str, the text that each row belongs to; None where each row is an item.
        n_unmatched: ids of the labels' table that are not in the store.
    """

    ids: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None
    parents: np.ndarray | None
    n_unmatched: int

    @property
    def labelled(self) -> np.ndarray:
        """(m,) int64, the rows that have a label."""
        return np.flatnonzero(np.array([label is not None for label in self.labels], dtype=bool))


def read_labels(store: Store, label: str, table: Path | None = None, group: str | None = None) -> RowLabels:
    """Read the label, and perhaps the group, of every row of a store.

    A label is text; empty or blank ones and nulls are no labels.

    Args:
        store: the store.
        label: name of the column.
        table: a table with ids and labels; None takes both from the store's carried columns.
        group: name of the group's column, in the table if it has it, else in the store.

    Raises:
        StoreError: the store has no such column.
        UsageError: the table has no such column, or nothing is labelled.
        CorpusError: the table cannot be read, or labels an id twice.
    """
    in_table = _read_table(Path(table), label, group) if table else {}
    own = [name for name in (label, group) if name is not None and name not in in_table]
    rows = store.table(["item_id", *dict.fromkeys(["parent_id", *own])])
    owners = owner_ids(rows).combine_chunks()
    ids = rows.column("item_id").cast(pa.string()).combine_chunks()
    columns = {name: rows.column(name) for name in own}
    n_unmatched = 0
    if in_table:
        keys = in_table.pop("")
        # A label of a text is one of all its chunks.
        position = pc.index_in(owners, value_set=keys)
        n_distinct = pc.count_distinct(keys, mode="all").as_py()
        n_unmatched = n_distinct - pc.count_distinct(position, mode="only_valid").as_py()
        if n_unmatched == n_distinct:
            raise UsageError(
                f"no id of {table} is in {store.path} (the table has e.g. {keys[0].as_py()!r}, "
                f"the store {ids[0].as_py()!r})",
                "Give the table a column item_id or id with the store's ids",
            )
        columns.update({name: values.take(position) for name, values in in_table.items()})
    labels = _texts(columns[label])
    if all(value is None for value in labels):
        raise UsageError(
            f"the column {label!r} of {table or store.path} is empty in every row of the store",
            "Name another column, or give labels with --labels FILE",
        )
    parents = _objects(owners) if store.store_card.long.has_rows else None
    # Chunks of one text are too alike to be learned from and judged by.
    groups = parents if group is None else _texts(columns[group])
    _check_groups(groups, labels, ids, group)
    _check_parents(parents, groups, labels, group)
    return RowLabels(_objects(ids), labels, groups, parents, n_unmatched)


def _read_table(path: Path, label: str, group: str | None) -> dict[str, pa.Array]:
    """Return the ids under "" and the columns that the table has, in its row order."""
    kind = table_format(path)
    if not path.is_file():
        raise CorpusError(f"{path} does not exist", "Check the path given as --labels")
    if kind in (None, "txt"):
        raise UsageError(f"--labels {path} is no table with columns", "Pass a .csv, .tsv, .jsonl or .parquet file")
    source = Table(path, kind or "")
    names = list(source.columns())
    id_column = next((name for name in ID_COLUMNS if name in names), None)
    for wanted, name in ((label, label), ("item_id or id", id_column)):
        if name not in names:
            raise UsageError(f"{path} has no column {wanted!r}", f"Its columns: {', '.join(names)}")
    wanted_names = [name for name in dict.fromkeys((label, group)) if name is not None and name in names]
    ids: list[str | None] = []
    values: dict[str, list[str | None]] = {name: [] for name in wanted_names}
    for piece in source.iterate_pieces():
        ids.extend(text_of(row.get(str(id_column))) for row in piece.rows)
        for name, column in values.items():
            column.extend(text_of(row.get(name)) for row in piece.rows)
    _check_repeats(path, ids, values[label])
    return {"": pa.array(ids, pa.string()), **{name: pa.array(column, pa.string()) for name, column in values.items()}}


def _check_repeats(path: Path, ids: list[str | None], labels: list[str | None]) -> None:
    """An id may be repeated with the same label, never with another."""
    seen: dict[str | None, str | None] = {}
    for item, label in zip(ids, labels):
        if seen.setdefault(item, label) != label:
            raise CorpusError(f"{path} labels {item!r} both {seen[item]!r} and {label!r}", "Keep one row for each id")


def _check_groups(groups: np.ndarray | None, labels: np.ndarray, ids: pa.Array, name: str | None) -> None:
    if groups is None:
        return
    missing = [row for row in range(len(labels)) if labels[row] is not None and groups[row] is None]
    if missing:
        raise UsageError(
            f"{len(missing):,} labelled rows have no {name!r} (e.g. {ids[missing[0]].as_py()!r})",
            "Fill the column: a row of an unknown group could leak from training to test",
        )


def _check_parents(parents: np.ndarray | None, groups: np.ndarray | None, labels: np.ndarray, name: str | None) -> None:
    """Refuse groups that would part the chunks of a text, of which one would be learned from and another judged by."""
    if parents is None or groups is None or groups is parents:
        return
    seen: dict[str, str] = {}
    for parent, group, label in zip(parents, groups, labels):
        if label is not None and seen.setdefault(parent, group) != group:
            raise UsageError(
                f"the chunks of {parent!r} are in several groups of {name!r}: {seen[parent]!r} and {group!r}",
                "Group by a column of the text, or leave --group out: the chunks of a text then stay together",
            )


def _texts(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a column as (n,) object array of str, blank ones and nulls as None."""
    if not pa.types.is_string(column.type):
        column = column.cast(pa.string())
    values = column.to_pylist()
    return _objects([None if value is None or not value.strip() else value for value in values])


def _objects(values: pa.Array | Sequence[str | None]) -> np.ndarray:
    listed = values.to_pylist() if isinstance(values, pa.Array) else values
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array
