"""Cleaning a store: which files no version refers to, and which rows have certain ids."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.store import delta, runs
from embedx.store.files import Entry, File, read_all
from embedx.store.layout import DATA, StoreLayout
from embedx.store.schema import owner_ids

_COMMIT = re.compile(r"_delta_log/[^/]+\.json")

_OURS = re.compile(r"data/[^/]+/(\d{5,}\.parquet|\.\d{5,}\.parquet\.[0-9a-f]+)")
"""Shard files, and the temporary names they are written under."""


def matching_ids(file: File, wanted: pa.Array) -> list[str]:
    """Return those of the wanted ids that a shard file has; one with several rows, its chunks, as often."""
    with file.open() as opened:
        ids = owner_ids(pq.ParquetFile(opened, pre_buffer=True).read(["item_id", "parent_id"]))
    return ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist()


def find_orphans(layout: StoreLayout) -> list[Entry]:
    """Return the shard files that no version in the log refers to and no interrupted run can offer.

    The log's own vacuum knows only files that were once published; these never were.
    """
    # Listed before anything else is asked: what another writer may make from here on is not in the list.
    entries = layout.files.list(DATA)
    known = _ever_published(layout)
    open_runs = set(runs.read_history(layout).interrupted)
    found = []
    for entry in entries:
        # A dot-file is a temporary of a writer that died: with the lock held none is alive here.
        # Whatever else lies there was put there by somebody else.
        if not _OURS.fullmatch(entry.name):
            continue
        _, run, name = entry.name.split("/")
        if entry.name not in known and (name.startswith(".") or run not in open_runs):
            found.append(entry)
    return found


def remove_orphans(layout: StoreLayout, orphans: list[Entry]) -> None:
    """Delete orphaned files, their empty folders, and records of runs that can never be continued."""
    layout.files.delete(entry.name for entry in orphans)
    for name in runs.read_history(layout).abandoned:
        runs.discard_record(layout.run(name))


def _ever_published(layout: StoreLayout) -> set[str]:
    """Return every path that a commit of the log adds. Commits are kept ten years (see `delta.CONFIGURATION`)."""
    paths: set[str] = set()
    history = runs.read_history(layout)
    # Commits before a checkpoint may be gone: the run records and the present version know their files too.
    records = [layout.run(name).file("files.json") for name in history.published]
    for data in read_all(layout.files, File.read, records):
        paths.update(entry["path"] for entry in json.loads(data))
    paths.update(file.path for file in delta.open_snapshot(layout.root).files)
    commits = [entry.name for entry in layout.files.list("_delta_log/") if _COMMIT.fullmatch(entry.name)]
    for data in read_all(layout.files, layout.files.read, commits):
        for line in data.decode().splitlines():
            action = json.loads(line)
            if "add" in action:
                paths.add(unquote(action["add"]["path"]))
    return paths
