"""Rewrites: which rows of files that stand already go or get new columns, one file after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

from embedx.core.shards import iterate_groups
from embedx.store.files import File
from embedx.store.listing import GroupWriter


@dataclass(frozen=True)
class Rewrite:
    """A file to write again, or to drop.

    Attributes:
        path: relative to the store.
        rows: rows that stay; none means that the file just goes.
        published: whether the file is part of the store's version.
        group: its changes' record batch in `rewrites.arrow`.
    """

    path: str
    rows: int
    published: bool
    group: int


@dataclass(frozen=True)
class Standing:
    """A file that stands: how many rows it has, and whether the store's version has it."""

    rows: int
    published: bool


def write_rewrites(
    file: File, schema: pa.Schema, changes: Iterable[pa.RecordBatch], standing: dict[str, Standing]
) -> list[Rewrite]:
    """Write changes to `rewrites.arrow`; nothing is written where nothing changes.

    Args:
        file: to write.
        schema: of the changes: path, item_id, update, rows, and the new columns.
        changes: ascending by path; an item without `update` is dropped from its file, with all its rows.
        standing: path -> the file.

    Returns:
        The files that change.
    """
    dropped: dict[str, int] = {}
    filled = (batch for batch in changes if batch.num_rows)
    first = next(filled, None)
    if first is None:
        return []
    with GroupWriter(file, schema) as writer:
        for batch in chain([first], filled):
            codes = batch.column("path").dictionary_encode()
            kept = batch.column("update").to_numpy(zero_copy_only=False)
            rows = np.where(kept, 0, batch.column("rows").to_numpy())
            for code, start, stop in iterate_groups(codes.indices.to_numpy()):
                path = codes.dictionary[code].as_py()
                dropped[path] = dropped.get(path, 0) + int(rows[start:stop].sum())
                writer.add(path, batch.slice(start, stop - start))
    return [
        Rewrite(path, standing[path].rows - lost, standing[path].published, group)
        for group, (path, lost) in enumerate(dropped.items())
    ]
