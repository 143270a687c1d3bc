"""Runs: the record of each run, and what interrupted runs left behind."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from embedx.core.errors import StoreError
from embedx.store import delta
from embedx.store.adoption import FinishedShard
from embedx.store.files import Entry, File, read_all
from embedx.store.layout import RUNS, RunLayout, StoreLayout
from embedx.store.receipts import read_receipts
from embedx.store.shards import FAILURE_SCHEMA, Receipt, read_arrow, read_receipt

_SHARD = re.compile(r"data/[^/]+/\d+\.parquet")


@dataclass(frozen=True)
class RunRecord:
    """What a run is based on; `run.json`.

    Attributes:
        run: its name: a sequence number, then a random part.
        sequence: one more than the newest run's when it began.
        base_version: the store's version it was planned on.
        basis: fingerprint of what makes finished shards of another run fit this one: encoder, precision,
            mantissa, columns.
        planned: items to embed.
    """

    run: str
    sequence: int
    base_version: int
    basis: str
    planned: int


def new_run_name(history: RunHistory, sequence: int) -> str:
    """Return a name for a new run that sorts after all others."""
    newest = max((int(name.split("-")[0]) for name in history.files), default=0)
    return f"{max(newest, sequence) + 1:06d}-{secrets.token_hex(3)}"


def begin_run(layout: RunLayout, record: RunRecord) -> None:
    """Write `run.json`, the marker that the run's plan is complete."""
    layout.file("run.json").write_json(asdict(record))


def _record_files(layout: StoreLayout) -> dict[str, frozenset[str]]:
    """Return run -> names of the files of its record, oldest first; one listing."""
    found: dict[str, set[str]] = {}
    for entry in layout.files.list(RUNS):
        run, _, name = entry.name.removeprefix(RUNS).partition("/")
        if name and run.split("-")[0].isdigit():
            found.setdefault(run, set()).add(name)
    return {run: frozenset(found[run]) for run in sorted(found)}


@dataclass(frozen=True)
class RunHistory:
    """The runs of a store: published, and interrupted ones that can be adopted from.

    Attributes:
        published: names, oldest first.
        interrupted: name -> record, oldest first.
        abandoned: names of runs whose plan was never completed, or that a later run has closed.
        files: run -> names of the files of its record.
    """

    published: tuple[str, ...]
    interrupted: dict[str, RunRecord]
    abandoned: tuple[str, ...]
    files: dict[str, frozenset[str]] = field(default_factory=dict)


def read_history(layout: StoreLayout, snapshot: delta.Snapshot | None = None) -> RunHistory:
    """List a store's runs. Whether one was published is for the Delta log to say.

    Args:
        layout: the store's.
        snapshot: the present version, where it is open already.
    """
    files = _record_files(layout)
    if snapshot is not None:
        markers = snapshot.markers(list(files))
    else:
        markers = delta.run_markers(layout.root, list(files)) if files else {}
    published = [name for name in files if markers.get(name) == delta.PUBLISHED]
    interrupted: dict[str, RunRecord] = {}
    abandoned = []
    for name in files:
        if name in published:
            continue
        if name in markers or "run.json" not in files[name]:
            abandoned.append(name)
            continue
        try:
            interrupted[name] = RunRecord(**json.loads(layout.run(name).file("run.json").read()))
        except (OSError, ValueError, TypeError):
            abandoned.append(name)
    return RunHistory(tuple(published), interrupted, tuple(abandoned), files)


def latest_failures(layout: StoreLayout, history: RunHistory) -> File | None:
    """Return the `failures.arrow` that holds as of the newest published run."""
    found = _of_published(layout, history, "failures.arrow")
    return found[-1] if found else None


def identity_files(layout: StoreLayout, history: RunHistory) -> list[File]:
    """Return `identities.arrow` of the published runs, oldest first; the newest knows all that the older ones do."""
    return _of_published(layout, history, "identities.arrow")


def _of_published(layout: StoreLayout, history: RunHistory, file: str) -> list[File]:
    return [layout.run(run).file(file) for run in history.published if file in history.files.get(run, ())]


def find_finished(layout: StoreLayout, run: str) -> list[tuple[FinishedShard, Receipt]]:
    """Return the whole shard files of an interrupted run: one listing, and the footers of those not noted.

    A file that is not whole cannot be a committed shard (shards appear under their name when complete), so it
    is damage; it is left alone and its items are embedded again.
    """
    run_layout = layout.run(run)
    entries = [entry for entry in layout.files.list(run_layout.data) if _SHARD.fullmatch(entry.name)]
    if not entries:
        return []
    noted = read_receipts(run_layout)

    def find(entry: Entry) -> tuple[FinishedShard, Receipt] | None:
        try:
            receipt = noted.get((entry.name, entry.size_bytes)) or read_receipt(File(layout.files, entry.name))
            failed = read_attempt_failures(run_layout, receipt) if receipt.failed else None
        except (StoreError, OSError, pa.ArrowException):
            return None
        ids = tuple(failed.column("item_id").to_pylist()) if failed else ()
        name = run_layout.shard_name(receipt.shard)
        return FinishedShard(run, receipt.shard, name, receipt.rows, ids, receipt.embedded), receipt

    return [found for found in read_all(layout.files, find, entries) if found is not None]


def read_attempt_failures(layout: RunLayout, receipt: Receipt) -> pa.Table:
    """Return the failed items that a receipt names."""
    if not receipt.failures_file:
        return FAILURE_SCHEMA.empty_table()
    return read_arrow(layout.file(f"failures/{receipt.failures_file}"))


def discard_record(layout: RunLayout) -> None:
    """Delete the record of a run that was never published; its shard files are `vacuum`'s to judge."""
    layout.files.delete_below(layout.folder)


def discard_shards(layout: RunLayout, used: set[str]) -> None:
    """Delete the shard files of a closed run that no version uses."""
    layout.files.delete(entry.name for entry in layout.files.list(layout.data) if entry.name not in used)


def finish_record(layout: RunLayout, report: dict[str, Any]) -> None:
    """Write a published run's report and drop what only an open run needs."""
    layout.file("report.json").write_json(report)
    open_only = ("plan.arrow", "rewrites.arrow", "receipts.jsonl", "requests.json", "requests.json.lock")
    layout.files.delete(layout.folder + name for name in open_only)
    for folder in ("failures/", "hosts/"):
        layout.files.delete_below(layout.folder + folder)
