"""Rewrites: which rows of files that stand already go or get new columns, one file after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedx.core.shards import iterate_groups
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
    path: Path, schema: pa.Schema, changes: Iterable[pa.RecordBatch], standing: dict[str, Standing]
) -> list[Rewrite]:
    """Write changes to `rewrites.arrow`; nothing is written where nothing changes.

    Args:
        path: the file.
        schema: of the changes: path, item_id, update, rows, and the new columns.
        changes: ascending by path; an item without `update` is dropped from its file, with all its rows.
        standing: path -> the file.

    Returns:
        The files that change.
    """
    dropped: dict[str, int] = {}
    with GroupWriter(path, schema) as writer:
        for batch in changes:
            codes = batch.column("path").dictionary_encode()
            kept = batch.column("update").to_numpy(zero_copy_only=False)
            rows = np.where(kept, 0, batch.column("rows").to_numpy())
            for code, start, stop in iterate_groups(codes.indices.to_numpy()):
                file = codes.dictionary[code].as_py()
                dropped[file] = dropped.get(file, 0) + int(rows[start:stop].sum())
                writer.add(file, batch.slice(start, stop - start))
    if not dropped:
        path.unlink()
    return [
        Rewrite(file, standing[file].rows - lost, standing[file].published, group)
        for group, (file, lost) in enumerate(dropped.items())
    ]
