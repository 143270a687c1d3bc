"""The plan of an extraction: list the sources, compare with the store, cut what is to embed into shards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.core.contracts import EncoderCard
from embedx.core.errors import CorpusError, UsageError
from embedx.core.long_texts import TRUNCATED, LongTexts
from embedx.core.reports import Progress, ProgressHook
from embedx.core.shards import SHARD_FLOPS, ShardCutter, iterate_groups
from embedx.core.specs import Access, ExtractSpec, shard_items_override
from embedx.corpora.content import digest_images
from embedx.corpora.listing import Corpus
from embedx.store.adoption import FinishedShard
from embedx.store.database import open_database
from embedx.store.delta import Snapshot
from embedx.store.diff import Diff
from embedx.store.layout import RunLayout, StoreLayout
from embedx.store.listing import PlanWriter, iterate_batches, iterate_listing, write_listing
from embedx.store.reader import StoreCard
from embedx.store.rewrites import Rewrite, Standing, write_rewrites
from embedx.store.runs import (
    RunHistory,
    find_finished,
    identity_files,
    latest_failures,
    read_attempt_failures,
)
from embedx.store.shards import FAILURE_SCHEMA, Receipt, is_whole_arrow, read_arrow

BYTES_PER_TOKEN = 4
"""Of English text: a static estimate for cutting shards, never for batches."""

WEB_SHARD_ITEMS = 200
"""The most images of a shard that are fetched from web servers: also where all shards in work share a slow server's few
connections, they are done before the watchdog barks."""


@dataclass
class Plan:
    """What a run does.

    Attributes:
        layout: the run's paths.
        snapshot: the version it is based on.
        listed: rows of the listing.
        kinds: how many items of each kind (see `store.diff`).
        removed: items that leave the store because they left the sources.
        shard_rows: items of each shard to embed.
        adopted: finished shards of interrupted runs that are used as they are.
        rewrites: files to write again.
        failures: failed items that stand already: carried over, and adopted from interrupted runs.
        adopted_failed: how many of these are adopted.
        duplicates: listed items dropped because another has their id.
        forgotten: earlier failures that stand no longer.
        new_rows: about how many rows what is to embed will have; as many as items, unless texts have chunks.
    """

    layout: RunLayout
    snapshot: Snapshot
    listed: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    removed: int = 0
    shard_rows: list[int] = field(default_factory=list)
    adopted: list[tuple[FinishedShard, Receipt]] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    failures: list[pa.Table] = field(default_factory=list)
    adopted_failed: int = 0
    duplicates: int = 0
    forgotten: int = 0
    new_rows: int = 0

    @property
    def to_embed(self) -> int:
        """Items that are left to embed."""
        return self.kinds.get("new", 0) + self.kinds.get("changed", 0)

    @property
    def adopted_items(self) -> int:
        """Items that interrupted runs have done."""
        return self.kinds.get("adopted", 0) + self.adopted_failed

    @property
    def planned(self) -> int:
        """Items of the run: to embed, and adopted."""
        return self.to_embed + self.adopted_items

    @property
    def is_empty(self) -> bool:
        """Whether the store is up to date."""
        return not self.planned and not self.rewrites and not self.forgotten

    @property
    def new_rewrites(self) -> list[tuple[int, Rewrite]]:
        """(shard number, rewrite) of the files that get a successor; numbered after the embedded shards."""
        kept = [rewrite for rewrite in self.rewrites if rewrite.rows]
        return [(len(self.shard_rows) + number, rewrite) for number, rewrite in enumerate(kept)]


@dataclass(frozen=True)
class Planning:
    """What a plan is made from."""

    spec: ExtractSpec
    corpus: Corpus
    card: EncoderCard
    store_card: StoreCard | None
    snapshot: Snapshot
    history: RunHistory
    store: StoreLayout
    progress: ProgressHook

    @property
    def long(self) -> LongTexts:
        """How long texts are read."""
        return self.store_card.long if self.store_card else self.spec.long or TRUNCATED


def make_plan(planning: Planning, layout: RunLayout) -> Plan:
    """List, compare and cut; writes `plan.arrow` and `rewrites.arrow` into the run's folder.

    Raises:
        CorpusError: a source is broken or empty, or ids are not unique.
    """
    plan = Plan(layout, planning.snapshot)
    layout.folder.mkdir(parents=True, exist_ok=True)
    listing = layout.file("listing")  # no .parquet: a glob over the store would take it for vectors
    try:
        plan.listed = _list(planning, listing)
        with open_database(layout.folder) as database:
            diff = Diff(database, listing, planning.corpus.columns, planning.snapshot, planning.long.has_rows)
            _compare(planning, diff, plan)
            partial = _adopt(planning, diff, plan)
            if planning.spec.mirror:
                _mirror(planning, diff, plan)
            _find_rewrites(diff, partial, plan)
            plan.kinds = diff.counts()
            plan.adopted_failed = plan.kinds.get("adopted_failed", 0)
            if plan.to_embed:
                _cut(planning, diff, listing, plan)
            if planning.corpus.kind == "image" and not plan.is_empty:
                diff.write_identities(layout.file("identities.arrow"))
    finally:
        listing.unlink(missing_ok=True)
        shutil.rmtree(layout.folder / "duckdb", ignore_errors=True)
    return plan


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


def _cut(planning: Planning, diff: Diff, listing: Path, plan: Plan) -> None:
    """Copy the rows to embed from the listing into shards, in listing order."""
    card = planning.card
    cutter = ShardCutter(card.dim, shard_items_override())
    max_tokens = None if planning.long.chunks else card.input.get("max_tokens")
    wanted = diff.rows_to_embed(plan.listed)
    with PlanWriter(plan.layout.file("plan.arrow"), planning.corpus.columns) as writer:
        for batch in iterate_listing(listing):
            chosen = np.flatnonzero(wanted[batch.column("row").to_numpy()])
            if not len(chosen):
                continue
            batch = batch.take(pa.array(chosen))
            sizes = pc.fill_null(pc.binary_length(batch.column("content")), 0).to_numpy(zero_copy_only=False)
            work = np.full(len(sizes), card.flops, dtype=np.float64)
            if card.modality == "text":
                tokens = np.maximum(sizes / BYTES_PER_TOKEN, 2)
                work *= np.minimum(tokens, max_tokens) if max_tokens else tokens
                if planning.long.has_rows:
                    # Half of what the encoder reads: rather too many rows than too few for the disk.
                    plan.new_rows += int((2 * tokens / card.input["max_tokens"]).sum())
            else:
                from_web = pc.match_substring_regex(batch.column("locator"), "^https?://").to_numpy(False)
                work[from_web] = np.maximum(work[from_web], SHARD_FLOPS / WEB_SHARD_ITEMS)
            for shard, start, stop in iterate_groups(cutter.assign(work, sizes)):
                writer.add(shard, batch.slice(start, stop - start))
    plan.shard_rows = [rows for _, rows in writer.groups]
    plan.new_rows += plan.to_embed
    if sum(plan.shard_rows) != plan.to_embed:
        raise UsageError("the plan lost items", "This is a bug in embedx: please report it with the command")
