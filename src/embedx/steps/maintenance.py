"""The delete and vacuum steps: items leave a store, and files that no version needs leave the disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from embedx.core.errors import CorpusError, StoreError
from embedx.core.reports import Report
from embedx.corpora.tables import Table, table_format
from embedx.engine.interrupts import draining_on_signals
from embedx.steps.plan import Plan
from embedx.steps.publishing import Publication, clean_up, mark_begun, publish
from embedx.steps.rewrite_shard import rewrite_shard
from embedx.steps.shard_job import Part, ShardJob
from embedx.store import cleaning, delta, runs
from embedx.store.reader import Store, open_store
from embedx.store.rewrites import Standing, write_rewrites
from embedx.store.shards import read_arrow

MAX_RETENTION_HOURS = 24.0 * 365 * 100


def delete(path: Path, ids: Iterable[str]) -> Report:
    """Remove items from a store, as one new version; old versions keep them until `vacuum`.

    Args:
        path: the store.
        ids: the items.

    Returns:
        removed, missing (ids the store does not have), version.

    Raises:
        CorpusError: none of the ids is there, or nothing would be left.
    """
    wanted = sorted(set(ids))
    open_store(path)
    with runs.writing(path) as layout, draining_on_signals() as interrupts:
        store = open_store(path)
        found = _find(store, wanted)
        if not found.num_rows:
            raise CorpusError(f"{path} has none of the {len(wanted)} ids", "Check the ids; see embedx inspect")
        if found.num_rows == store.count:
            raise CorpusError(f"all {store.count} items of {path} would go", "Remove the folder instead")
        run = layout.run(runs.new_run_name(layout, store.snapshot.sequence))
        removed = set(found.column("item_id").to_pylist())  # a text in chunks has several rows
        plan = Plan(run, store.snapshot, removed=len(removed))
        # Unlike an extraction this closes no interrupted run: what those have finished can still be adopted.
        history = runs.read_history(layout)
        publication = Publication(
            layout, plan, runs.RunHistory(history.published, {}, history.abandoned), store.store_card
        )
        if failures := runs.latest_failures(layout, history):
            plan.failures.append(read_arrow(failures))
        run.folder.mkdir(parents=True)
        try:
            standing = {file.path: Standing(file.rows, published=True) for file in store.snapshot.files}
            plan.rewrites = write_rewrites(run.file("rewrites.arrow"), found.schema, found.to_batches(), standing)
            mark_begun(publication)
            job = _job(store, run.run)
            publication.receipts = [
                rewrite_shard(Part(job, shard), rewrite.path, rewrite.group) for shard, rewrite in plan.new_rewrites
            ]
            interrupts.check("stopped before anything was removed", "Run the same command again")
            version = publish(publication)
        except BaseException:
            # Once the transaction is in the log the record belongs to a version.
            if not delta.run_markers(path, [run.run]):
                runs.discard_record(run)
                runs.discard_shards(run, set())
            raise
        missing = sorted(set(wanted) - removed)
        report = {"path": str(path), "version": version, "removed": len(removed), "missing": missing}
        clean_up(publication, report)
        return report


def read_ids(path: Path) -> list[str]:
    """Read ids from a table (column item_id or id) or a .txt file, one per line.

    Raises:
        CorpusError: the file is missing or has no ids.
    """
    kind = table_format(path)
    if not path.is_file() or kind is None:
        raise CorpusError(f"{path} is no file of ids", "Pass a .txt with one id per line, or a table with a column id")
    table = Table(path, kind)
    columns = table.columns()
    name = "text" if kind == "txt" else next((column for column in ("item_id", "id") if column in columns), None)
    if name is None:
        raise CorpusError(f"{path} has no column item_id or id", f"Its columns: {', '.join(columns)}")
    return [str(row[name]) for piece in table.iterate_pieces() for row in piece.rows if row.get(name) is not None]


def _find(store: Store, ids: list[str]) -> pa.Table:
    """Return the table (path, item_id, update, rows) of the rows to drop."""
    pieces = []
    wanted = pa.array(ids, pa.string())
    for file in store.snapshot.files:
        found = cleaning.matching_ids(store.path / file.path, wanted)
        columns = {
            "path": pa.array([file.path] * len(found), pa.string()),
            "item_id": pa.array(found, pa.string()),
            "update": pa.array([False] * len(found), pa.bool_()),
            "rows": pa.array([1] * len(found), pa.int32()),
        }
        pieces.append(pa.table(columns))
    if not pieces:
        raise CorpusError(f"{store.path} has no items", "There is nothing to delete")
    return pa.concat_tables(pieces)


def _job(store: Store, run: str) -> ShardJob:
    card = store.store_card
    return ShardJob(
        root=str(store.path.resolve()),
        run=run,
        encoder=card.encoder.spec,
        fingerprint=card.encoder.fingerprint,
        precision=card.precision,
        full_bits=card.full_bits,
        kind=card.encoder.modality,
        columns=card.columns,
        content_column=card.content_column,
        runtime="auto",
        device="auto",
        threads=0,
        long=card.long,
    )


def vacuum(path: Path, retention_hours: float = 168.0, dry_run: bool = False) -> Report:
    """Delete files that no version within the retention needs: replaced ones, and leftovers of broken runs.

    Interrupted runs that can still be adopted are not touched, nor is anything that embedx has not written.

    Args:
        path: the store.
        retention_hours: keep what an older version needed within this time.
        dry_run: only say what would go.

    Raises:
        StoreError: there is no store, or the retention is negative.
    """
    if not 0 <= retention_hours <= MAX_RETENTION_HOURS:
        raise StoreError(f"a retention of {retention_hours:g} hours makes no sense", "Pass e.g. 168")
    open_store(path)
    with runs.writing(path) as layout:
        orphans = cleaning.find_orphans(layout)
        orphan_bytes = sum(file.stat().st_size for file in orphans)
        if not dry_run:
            cleaning.remove_orphans(layout, orphans)
        replaced = delta.vacuum(path, retention_hours, dry_run)
    return {
        "path": str(path),
        "dry_run": dry_run,
        "orphans": [str(file.relative_to(path)) for file in orphans],
        "orphan_bytes": orphan_bytes,
        "replaced": replaced,
    }
