"""Cleaning a store: which files no version refers to, and which rows have certain ids."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.store import delta, runs
from embedx.store.layout import StoreLayout
from embedx.store.schema import owner_ids

_OURS = re.compile(r"\d{5,}\.parquet|\.\d{5,}\.parquet\.[0-9a-f]+")
"""Shard files, and the temporary names they are written under."""


def matching_ids(path: Path, wanted: pa.Array) -> list[str]:
    """Return those of the wanted ids that a shard file has; one with several rows, its chunks, as often."""
    ids = owner_ids(pq.read_table(path, columns=["item_id", "parent_id"], partitioning=None))
    return ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist()


def find_orphans(layout: StoreLayout) -> list[Path]:
    """Return the shard files that no version in the log refers to and no interrupted run can offer.

    The log's own vacuum knows only files that were once published; these never were.
    """
    known = _ever_published(layout)
    open_runs = set(runs.read_history(layout).interrupted)
    data = layout.root / "data"
    if not data.is_dir():
        return []
    found = []
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        for path in sorted(folder.iterdir()):
            name = path.relative_to(layout.root).as_posix()
            # A dot-file is a temporary of a writer that died: with the lock held none is alive here.
            # Whatever else lies there was put there by somebody else.
            if not _OURS.fullmatch(path.name):
                continue
            if name not in known and (path.name.startswith(".") or folder.name not in open_runs):
                found.append(path)
    return found


def remove_orphans(layout: StoreLayout, orphans: list[Path]) -> None:
    """Delete orphaned files, their empty folders, and records of runs that can never be continued."""
    for path in orphans:
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    for name in runs.read_history(layout).abandoned:
        runs.discard_record(layout.run(name))


def _ever_published(layout: StoreLayout) -> set[str]:
    """Return every path that a commit of the log adds. Commits are kept ten years (see `delta.CONFIGURATION`)."""
    paths: set[str] = set()
    history = runs.read_history(layout)
    # Commits before a checkpoint may be gone: the run records and the present version know their files too.
    for name in history.published:
        paths.update(entry["path"] for entry in json.loads(layout.run(name).file("files.json").read_text()))
    paths.update(file.path for file in delta.open_snapshot(layout.root).files)
    for commit in layout.delta_log.glob("*.json"):
        for line in commit.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                paths.add(unquote(action["add"]["path"]))
    return paths
