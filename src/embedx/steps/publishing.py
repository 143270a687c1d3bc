"""Publishing a run: everything is checked against the plan and the receipts, then committed as one transaction."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from embedx.core.digests import file_sha256
from embedx.core.errors import CorpusError, StoreError, TooManyFailuresError
from embedx.core.paths import write_json
from embedx.core.reports import Report
from embedx.core.specs import FailureLimit
from embedx.steps.plan import Plan
from embedx.store import delta, runs
from embedx.store.delta import DataFile, NewFile, Transition
from embedx.store.layout import StoreLayout
from embedx.store.reader import StoreCard
from embedx.store.schema import store_schema
from embedx.store.shards import FAILURE_SCHEMA, Receipt, write_arrow

RESUME = "Run the same command again: finished shards are kept and not computed again"


@dataclass
class Publication:
    """A run on its way to becoming a version.

    Attributes:
        store: the store's paths.
        plan: what was to be done.
        history: the runs before this one.
        card: the store's card; None until a new store has one.
        max_failures: beyond it nothing is published.
        receipts: of the shard tasks of this process.
    """

    store: StoreLayout
    plan: Plan
    history: runs.RunHistory
    card: StoreCard | None
    max_failures: FailureLimit = field(default_factory=FailureLimit)
    receipts: list[Receipt] = field(default_factory=list)

    @property
    def embedded(self) -> list[Receipt]:
        """The receipts of embedded shards."""
        return [receipt for receipt in self.receipts if receipt.shard < len(self.plan.shard_rows)]

    @property
    def rewritten(self) -> list[Receipt]:
        """The receipts of rewritten files."""
        return [receipt for receipt in self.receipts if receipt.shard >= len(self.plan.shard_rows)]


def mark_begun(publication: Publication) -> None:
    """Write the run's marker, once: from here on its finished shards can be adopted."""
    plan, card = publication.plan, publication.card
    if card is None or plan.layout.file("run.json").exists():
        return
    record = runs.RunRecord(
        run=plan.layout.run,
        sequence=int(plan.layout.run.split("-")[0]),
        base_version=plan.snapshot.version,
        basis=card.basis,
        planned=plan.planned,
    )
    runs.begin_run(plan.layout, record)


def publish(publication: Publication) -> int:
    """Commit a run and return the new version.

    Raises:
        TooManyFailuresError: more items failed than the limit allows.
        CorpusError: the store would be empty.
        StoreError: a file is not as its receipt says.
    """
    plan = publication.plan
    failures = _gather_failures(publication)
    _check_failures(publication, failures)
    new = _new_files(publication)
    if not new and not plan.snapshot.files:
        raise CorpusError(f"no item could be embedded ({_reasons(failures)})", "An empty store is not published")
    if publication.card is None:
        raise StoreError(f"{publication.store.root} has no encoder card", "Run the same command again")
    mark_begun(publication)
    layout = plan.layout
    write_arrow(layout.file("failures.arrow"), pa.concat_tables([FAILURE_SCHEMA.empty_table(), *failures]))
    write_json(layout.file("files.json"), _digests(publication, new))
    replaced = {rewrite.path for rewrite in plan.rewrites if rewrite.published}
    version = delta.publish(
        Transition(
            run=layout.run,
            base=plan.snapshot,
            adds=new,
            removes=[file for file in plan.snapshot.files if file.path in replaced],
            schema=store_schema(publication.card.columns),
            closes=tuple(publication.history.interrupted),
        )
    )
    present = {file.path for file in delta.open_snapshot(publication.store.root).files}
    if missing := [file.file.path for file in new if file.file.path not in present]:
        raise StoreError(f"version {version} lacks {missing[0]}", "Run embedx verify")
    return version


def clean_up(publication: Publication, report: Report) -> None:
    """After a publish: keep the run's report, drop what only an open run needs, and the runs it has closed."""
    runs.finish_record(publication.plan.layout, report)
    if publication.plan.layout.file("identities.arrow").exists():
        for older in runs.identity_files(publication.store, publication.history):
            older.unlink(missing_ok=True)
    used = {file.path for file in delta.open_snapshot(publication.store.root).files}
    for name in publication.history.interrupted:
        # What was not adopted was never part of a version: nobody can be reading it.
        runs.discard_shards(publication.store.run(name), used)
    for name in (*publication.history.interrupted, *publication.history.abandoned):
        runs.discard_record(publication.store.run(name))


def _gather_failures(publication: Publication) -> list[pa.Table]:
    """Return every failure that the store will list: standing, adopted, and this run's own."""
    layout = publication.plan.layout
    own = [runs.read_attempt_failures(layout, receipt) for receipt in publication.receipts if receipt.failed]
    return [*publication.plan.failures, *own]


def _check_failures(publication: Publication, failures: list[pa.Table]) -> None:
    plan = publication.plan
    failed = plan.adopted_failed + sum(receipt.failed for receipt in publication.receipts)
    if not publication.max_failures.allows(failed, plan.planned):
        raise TooManyFailuresError(
            f"{failed:,} of {plan.planned:,} items failed, more than --max-failures {publication.max_failures} "
            f"({_reasons(failures)})",
            f"Nothing was published, all is kept: mend the items, or run it again with --max-failures {failed}",
        )


def _reasons(failures: list[pa.Table], most: int = 3) -> str:
    counts: Counter[str] = Counter()
    for table in failures:
        counts.update(table.column("message").to_pylist())
    shown = [f"{count}x {message}" for message, count in counts.most_common(most)]
    return "; ".join(shown) + ("; ..." if len(counts) > most else "")


def _new_files(publication: Publication) -> list[NewFile]:
    """Return the files to add, each receipt checked against the plan and each file's size against its receipt."""
    plan, root = publication.plan, publication.store.root
    for receipt in publication.embedded:
        if receipt.items != plan.shard_rows[receipt.shard]:
            raise StoreError(
                f"shard {receipt.shard} accounts for {receipt.items} of {plan.shard_rows[receipt.shard]} items",
                "Run it again",
            )
    want = len(plan.shard_rows) + len(plan.new_rewrites)
    if len({receipt.shard for receipt in publication.receipts}) != want:
        raise StoreError(f"{len(publication.receipts)} of {want} shards are there", RESUME)
    found = [(plan.layout.shard_name(receipt.shard), receipt) for receipt in publication.receipts]
    found += [(shard.path, receipt) for shard, receipt in plan.adopted]
    new = []
    for path, receipt in sorted(found, key=lambda pair: pair[0]):
        try:
            size = (root / path).stat().st_size
        except OSError as error:
            raise StoreError(f"{path} is gone ({error.strerror})", RESUME) from error
        if size != receipt.size_bytes:
            raise StoreError(f"{path} changed since it was written", "Run embedx verify, then the same command")
        if receipt.rows:
            new.append(NewFile(DataFile(path, size, receipt.rows), receipt.first_id or "", receipt.last_id or ""))
    return new


def _digests(publication: Publication, files: list[NewFile]) -> list[dict[str, Any]]:
    """Return path, size, rows and sha256 of each file: as its writer said, else read again."""
    root, plan = publication.store.root, publication.plan
    known = {plan.layout.shard_name(receipt.shard): receipt.sha256 for receipt in publication.receipts}
    known |= {shard.path: receipt.sha256 for shard, receipt in plan.adopted}

    with ThreadPoolExecutor(4) as pool:
        unknown = [new.file.path for new in files if not known[new.file.path]]
        known |= dict(zip(unknown, pool.map(lambda path: file_sha256(root / path), unknown)))
    return [
        {"path": file.path, "size_bytes": file.size_bytes, "rows": file.rows, "sha256": known[file.path]}
        for file in (new.file for new in files)
    ]
