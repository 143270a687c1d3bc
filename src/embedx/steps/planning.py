"""The plans of an extraction: list the sources once, compare with each store, cut what is to embed into shards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.core.errors import CorpusError
from embedx.core.reports import Progress
from embedx.core.specs import Access
from embedx.corpora.content import digest_images
from embedx.corpora.listing import Corpus
from embedx.steps.cutting import SharedShard, cut_shards
from embedx.steps.plan import Plan, Planning
from embedx.store.adoption import FinishedShard
from embedx.store.database import open_database
from embedx.store.diff import Diff
from embedx.store.layout import RunLayout
from embedx.store.listing import iterate_batches, write_listing
from embedx.store.rewrites import Standing, write_rewrites
from embedx.store.runs import (
    find_finished,
    identity_files,
    latest_failures,
    read_attempt_failures,
)
from embedx.store.shards import FAILURE_SCHEMA, is_whole_arrow, read_arrow


def make_plans(plannings: Sequence[Planning], layouts: Sequence[RunLayout]) -> tuple[list[Plan], list[SharedShard]]:
    """List, compare and cut; writes `plan.arrow` and `rewrites.arrow` into each run's folder.

    Args:
        plannings: one for each store; their corpora list the same rows.
        layouts: of their runs.

    Returns:
        The plan of each store, and the shards to embed, which are the tasks of the run.

    Raises:
        CorpusError: a source is broken or empty, or ids are not unique.
    """
    for layout in layouts:
        layout.folder.mkdir(parents=True, exist_ok=True)
    listing = layouts[0].file("listing")  # no .parquet: a glob over the store would take it for vectors
    try:
        listed = _list(plannings[0], listing)
        plans, wanted = [], []
        for planning, layout in zip(plannings, layouts):
            plan = Plan(layout, planning.snapshot, listed)
            wanted.append(_plan_store(planning, plan, listing))
            plans.append(plan)
        return plans, cut_shards(plannings, plans, wanted, listing)
    finally:
        listing.unlink(missing_ok=True)
        # What planning needed for a moment the driver would keep for the whole run.
        pa.default_memory_pool().release_unused()


def _plan_store(planning: Planning, plan: Plan, listing: Path) -> np.ndarray:
    """Fill in one store's plan but for its shards; returns (listed,) bool, the rows to embed."""
    layout = plan.layout
    try:
        with open_database(layout.folder) as database:
            diff = Diff(database, listing, planning.corpus.columns, planning.snapshot, planning.long.has_rows)
            _compare(planning, diff, plan)
            partial = _adopt(planning, diff, plan)
            if planning.spec.mirror:
                _mirror(planning, diff, plan)
            _find_rewrites(diff, partial, plan)
            plan.kinds = diff.counts()
            plan.adopted_failed = plan.kinds.get("adopted_failed", 0)
            if planning.corpus.kind == "image" and not plan.is_empty:
                diff.write_identities(layout.file("identities.arrow"))
            return diff.rows_to_embed(plan.listed)
    finally:
        shutil.rmtree(layout.folder / "duckdb", ignore_errors=True)


def _list(planning: Planning, path: Path) -> int:
    progress = Progress("extract", note="listing the sources")
    planning.progress(progress)

    def counted() -> Iterator[pa.RecordBatch]:
        for batch in planning.corpus.iterate_batches():
            progress.done += batch.num_rows
            yield batch

    try:
        return write_listing(path, planning.corpus.columns, counted())
    finally:
        planning.progress(Progress("extract", note=f"{progress.done:,} items listed, comparing with the store"))


def _compare(planning: Planning, diff: Diff, plan: Plan) -> None:
    corpus, spec = planning.corpus, planning.spec
    duplicates = diff.duplicates()
    if duplicates and corpus.spec.on_duplicate == "error":
        first = duplicates[0]
        if len(first.sources) > 1:
            raise CorpusError(
                f"id {first.item_id!r} is listed {first.count} times, in {' and '.join(first.sources)}",
                "Make ids unique across sources: --id-prefix source, another --id-column, or two stores",
            )
        others = "".join(f", {duplicate.item_id!r}" for duplicate in duplicates[1:])
        raise CorpusError(
            f"id {first.item_id!r}{others} is listed {first.count} times in {first.sources[0]}",
            "Make ids unique, name another --id-column, or pass --on-duplicate first|last",
        )
    if planning.long.has_rows and (item_id := diff.chunk_like_id()):
        raise CorpusError(
            f"id {item_id!r} ends as those of chunks do", "Name another --id-column, or pass --chunk-pool mean"
        )
    by_file = corpus.kind == "image"
    diff.compare(
        latest_failures(planning.store, planning.history),
        identity_files(planning.store, planning.history) if by_file else [],
        corpus.spec.on_duplicate,
        spec.retry_failed,
    )
    plan.duplicates = plan.listed - sum(diff.counts().values())
    if by_file and planning.snapshot.files:
        _acquit_touched(diff, plan.layout.file("suspects.arrow"), corpus.spec.access)
    _refuse_replacement(diff, corpus)
    gone = [source.label for source in corpus.sources] if spec.mirror else []
    known = latest_failures(planning.store, planning.history)
    standing = diff.surviving_failures(known, gone)
    if known is not None and standing is not None:
        plan.failures.append(standing.cast(FAILURE_SCHEMA))
        plan.forgotten = read_arrow(known).num_rows - standing.num_rows


def _refuse_replacement(diff: Diff, corpus: Corpus) -> None:
    """Two folders with files of one name are no change of the first one's, unless the user calls them alike."""
    if found := diff.find_replaced(corpus.derived_ids):
        item_id, source, stored, count = found
        raise CorpusError(
            f"{count:,} items of {source}, such as {item_id!r}, would replace other items of {stored} in the store",
            f"If {source} is what {stored} has become, name it so: {stored}=PATH; else extract to another --out",
        )


def _acquit_touched(diff: Diff, suspects: Path, access: Access) -> None:
    """Read the files whose size or time changed, and call those unchanged whose digest is the store's."""
    same = [np.empty(0, dtype=np.int64)]
    try:
        diff.write_suspects(suspects)
        for batch in iterate_batches(suspects):
            digests = digest_images(batch.column("locator").to_pylist(), access)
            is_same = [today == then for today, then in zip(digests, batch.column("old_digest").to_pylist())]
            same.append(batch.column("row").to_numpy()[np.array(is_same, dtype=bool)])
    finally:
        suspects.unlink(missing_ok=True)
    rows = np.concatenate(same)
    if len(rows):
        diff.mark_same_content(rows)


def _adopt(planning: Planning, diff: Diff, plan: Plan) -> list[FinishedShard]:
    """Take over what interrupted runs have finished, item by item; returns the shards that are wanted only in part."""
    basis = planning.store_card.basis if planning.store_card else ""
    adoptable = [run for run, record in planning.history.interrupted.items() if record.basis == basis]
    finished = [pair for run in adoptable for pair in find_finished(planning.store, run)]
    plans = {run: planning.store.run(run).file("plan.arrow") for run in adoptable}
    plans = {run: path for run, path in plans.items() if is_whole_arrow(path)}
    finished = [(shard, receipt) for shard, receipt in finished if shard.run in plans]
    if not finished:
        return []
    matched = diff.adopt(plans, [shard for shard, _ in finished], planning.spec.retry_failed)
    partial = []
    for shard, receipt in finished:
        wanted = matched.get((shard.run, shard.shard), 0)
        if wanted == shard.items and wanted:
            plan.adopted.append((shard, receipt))
        elif wanted:
            partial.append(shard)
    standing = diff.adopted_failures()
    for shard, receipt in finished:
        if ids := standing.get((shard.run, shard.shard)):
            table = read_attempt_failures(planning.store.run(shard.run), receipt)
            plan.failures.append(table.filter(pc.is_in(table.column("item_id"), pa.array(ids, pa.string()))))
    return partial


def _mirror(planning: Planning, diff: Diff, plan: Plan) -> None:
    """Remove what is gone from the listed sources, unless it is suspiciously much."""
    plan.removed = diff.mark_removed([source.label for source in planning.corpus.sources])
    limit, stored = planning.spec.max_removed, diff.stored()
    if plan.removed > limit * stored:
        raise CorpusError(
            f"--mirror would remove {plan.removed:,} of {stored:,} items, more than --max-removed {limit:.0%}",
            "Check that the sources are whole; if they are, raise --max-removed",
        )


def _find_rewrites(diff: Diff, partial: list[FinishedShard], plan: Plan) -> None:
    """Find the files that lose or change rows, and write `rewrites.arrow` for the tasks that copy them."""
    standing = {file.path: Standing(file.rows, published=True) for file in plan.snapshot.files}
    standing |= {shard.path: Standing(shard.rows, published=False) for shard in partial}
    changes = diff.iterate_rewrites(partial)
    plan.rewrites = write_rewrites(plan.layout.file("rewrites.arrow"), changes.schema, changes, standing)
