"""The extract step: plan, run shard tasks on Dask, publish one version; resumes whatever was interrupted."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from embedx.core.contracts import EncoderCard
from embedx.core.errors import (
    CorpusError,
    EmbedxError,
    FingerprintMismatchError,
    StoreError,
    TooManyFailuresError,
    UsageError,
)
from embedx.core.paths import write_json
from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.core.specs import ExtractSpec, Resources
from embedx.corpora.listing import Corpus, open_corpus
from embedx.encoders.registry import open_encoder
from embedx.engine.cluster import Cluster, open_cluster
from embedx.engine.interrupts import Interrupts, draining_on_signals
from embedx.engine.window import Outcome, Task, iterate_outcomes
from embedx.inference.gates import measure_fidelity
from embedx.steps.extract_shard import Preflight, ShardJob, extract_shard, preflight, rewrite_shard
from embedx.steps.planning import Plan, Planning, make_plan
from embedx.store import delta, runs
from embedx.store.delta import DataFile, NewFile, Transition
from embedx.store.layout import RunLayout, StoreLayout
from embedx.store.reader import StoreCard, read_store_card
from embedx.store.schema import store_schema
from embedx.store.shards import FAILURE_SCHEMA, Receipt, read_receipt, write_arrow

CANARY_MIN_COSINE = 0.999
"""Between a store's canary vectors and today's: below it some library changed what the encoder computes."""

RESUME = "Run the same command again: finished shards are kept and not computed again"


@dataclass
class _Run:
    """The state of one extraction in the driver."""

    spec: ExtractSpec
    resources: Resources
    progress: ProgressHook
    store: StoreLayout
    card: EncoderCard
    corpus: Corpus
    plan: Plan
    store_card: StoreCard | None
    history: runs.RunHistory
    receipts: list[Receipt] = field(default_factory=list)
    preflight: Preflight | None = None
    workers: int = 0

    @property
    def layout(self) -> RunLayout:
        return self.plan.layout


def extract(spec: ExtractSpec, resources: Resources | None = None, progress: ProgressHook = no_progress) -> Report:
    """Embed what is new or changed in a corpus, and publish it as one new version of the store.

    Args:
        spec: what to compute.
        resources: how.
        progress: called with the present state.

    Returns:
        The report; its keys are those of DESIGN.md.

    Raises:
        EmbedxError: see `core.errors`; nothing is half-published.
    """
    resources = resources or Resources()
    store_card, card, corpus = _open_all(spec)
    with runs.writing(spec.out) as store, draining_on_signals() as interrupts:
        snapshot, history = delta.open_snapshot(spec.out), runs.read_history(store)
        layout = store.run(runs.new_run_name(store, snapshot.sequence))
        try:
            planning = Planning(spec, corpus, card, snapshot, history, store, progress)
            plan = make_plan(planning, layout)
            interrupts.check("stopped while planning", "Nothing was begun; run the same command again")
            run = _Run(spec, resources, progress, store, card, corpus, plan, store_card, history)
            if plan.is_empty:
                report = _report(run, snapshot.version)
                runs.discard_record(layout)
                return report
            if plan.shard_rows or plan.new_rewrites:
                _compute(run, interrupts)
            version = _publish(run)
        finally:
            # Without its marker a plan is of no use to anybody.
            if not layout.file("run.json").exists():
                runs.discard_record(layout)
        report = _report(run, version)
        runs.finish_record(layout, report)
        for name in (*history.interrupted, *history.abandoned):
            runs.discard_record(store.run(name))
        return report


def plan_extract(spec: ExtractSpec, progress: ProgressHook = no_progress) -> Report:
    """Say what `extract` would do, without writing to the store (`--dry-run`)."""
    store_card, card, corpus = _open_all(spec)
    runs.check_out(spec.out)
    store = StoreLayout(spec.out)
    snapshot, history = delta.open_snapshot(spec.out), runs.read_history(store)
    with TemporaryDirectory(prefix="embedx-plan-") as folder:
        layout = RunLayout(Path(folder), "plan")
        plan = make_plan(Planning(spec, corpus, card, snapshot, history, store, progress), layout)
    return {
        "dry_run": True,
        "kind": corpus.kind,
        "items": _item_counts(plan, corpus, embedded=plan.kinds.get("adopted", 0), failed=plan.adopted_failed),
        "ignored_by_type": dict(corpus.ignored),
        "shards": {
            "planned": len(plan.shard_rows) + len(plan.adopted),
            "reused": len(plan.adopted),
            "computed": 0,
        },
        "rewritten_files": len(plan.new_rewrites),
        "vector_bytes": plan.to_embed * card.dim * 4,
        "sources": [{"label": source.label, "path": str(source.path)} for source in corpus.sources],
        "positional_ids": list(corpus.positional),
        "columns": [column.name for column in corpus.columns.carried],
        "encoder": {"ref": card.ref, "fingerprint": card.fingerprint, "dim": card.dim},
        "store_exists": store_card is not None,
    }


def _open_all(spec: ExtractSpec) -> tuple[StoreCard | None, EncoderCard, Corpus]:
    """Open what can be wrong before anything is written: store, encoder, corpus."""
    runs.check_out(spec.out)
    store_card = read_store_card(spec.out)
    card = open_encoder(spec.encoder).card
    if store_card is not None:
        _check_store(spec, store_card, card)
    corpus = open_corpus(spec.corpus, store_card.columns if store_card else None)
    if corpus.kind != card.modality:
        raise UsageError(
            f"{card.ref} embeds {card.modality}s, but {corpus.sources[0].path} holds {corpus.kind}s",
            "Choose an encoder for it; see embedx encoders",
        )
    return store_card, card, corpus


def _check_store(spec: ExtractSpec, store_card: StoreCard, card: EncoderCard) -> None:
    theirs = store_card.encoder
    if theirs.fingerprint != card.fingerprint:
        raise FingerprintMismatchError(
            f"{spec.out} holds vectors of {theirs.ref} ({theirs.fingerprint[:12]}), "
            f"not of {card.ref} ({card.fingerprint[:12]})",
            "Extract to another --out, or use the store's encoder",
        )
    if spec.precision not in ("auto", store_card.precision):
        raise FingerprintMismatchError(
            f"{spec.out} was created with precision {store_card.precision}, not {spec.precision}",
            "Leave out --precision, or extract to another --out",
        )
    if spec.full_bits and not store_card.full_bits:
        raise FingerprintMismatchError(
            f"{spec.out} keeps 10 mantissa bits, not all",
            "Leave out --store-precision, or extract to another --out",
        )


# -- computing -------------------------------------------------------------------------------------------------


def _compute(run: _Run, interrupts: Interrupts) -> None:
    """Run the plan's shard tasks; receipts are gathered in `run.receipts`."""
    plan = run.plan
    state = Progress("extract", plan.planned, plan.adopted_items, plan.adopted_failed, plan.adopted_items)
    state.note = "starting workers"
    run.progress(state)
    try:
        with open_cluster(run.resources) as cluster:
            run.workers = cluster.workers
            job = _job(run, cluster)
            if plan.shard_rows:
                state.note = "loading the encoder"
                run.progress(state)
                job = _fly(run, cluster, job)
            _mark_begun(run)
            interrupts.check("stopped before the first shard", RESUME)
            state.note, state.started = "", time.monotonic()
            _run_tasks(run, cluster, job, state, interrupts)
    finally:
        run.progress(replace(state, note="done"))
    interrupts.check(
        f"stopped after {len(run.receipts)} of {len(plan.shard_rows) + len(plan.new_rewrites)} shards", RESUME
    )


def _job(run: _Run, cluster: Cluster) -> ShardJob:
    known = run.store_card
    return ShardJob(
        root=str(run.store.root.resolve()),
        run=run.layout.run,
        encoder=run.card.spec,
        fingerprint=run.card.fingerprint,
        precision=known.precision if known else "",
        full_bits=known.full_bits if known else run.spec.full_bits,
        kind=run.corpus.kind,
        columns=run.corpus.columns.carried,
        content_column=run.corpus.columns.content_column,
        runtime=run.resources.runtime,
        device=run.resources.device,
        threads=cluster.threads_per_worker,
    )


def _fly(run: _Run, cluster: Cluster, job: ShardJob) -> ShardJob:
    """Try the encoder on a worker before the first shard; a new store gets its precision and card."""
    known = run.store_card
    flown: Preflight = cluster.run(preflight, job, "" if known else run.spec.precision)
    run.preflight = flown
    if known is None:
        run.store_card = StoreCard(
            encoder=run.card,
            precision=flown.precision,
            full_bits=job.full_bits,
            canaries=flown.canaries,
            columns=job.columns,
            content_column=job.content_column,
            why_precision=flown.why,
        )
        write_json(run.store.encoder, run.store_card.to_dict())
        return replace(job, precision=flown.precision)
    fidelity = measure_fidelity(np.array(flown.canaries), np.array(known.canaries))
    if fidelity.raw_min < CANARY_MIN_COSINE:
        raise FingerprintMismatchError(
            f"{run.card.ref} computes other vectors than when {run.spec.out} was created ({fidelity.describe()})",
            "A library or driver changed; use the versions of then, or extract to another --out",
        )
    return job


def _mark_begun(run: _Run) -> None:
    """Write the run's marker, once: from here on its finished shards can be adopted."""
    plan, card = run.plan, run.store_card
    if card is None or run.layout.file("run.json").exists():
        return
    columns = [[column.name, column.type] for column in card.columns]
    record = runs.RunRecord(
        run=run.layout.run,
        sequence=int(run.layout.run.split("-")[0]),
        base_version=plan.snapshot.version,
        basis=runs.run_basis(card.encoder.fingerprint, card.precision, card.full_bits, columns),
        planned=plan.planned,
    )
    runs.begin_run(run.layout, record)


def _run_tasks(run: _Run, cluster: Cluster, job: ShardJob, state: Progress, interrupts: Interrupts) -> None:
    broken: list[Outcome] = []
    tasks = _tasks(run, job)
    for outcome in iterate_outcomes(
        cluster.client, tasks, cluster.slots, lambda: bool(interrupts.signal_number or broken)
    ):
        if interrupts.signal_number:
            state.note = "stopping: waiting for the shards in work"
        if outcome is None:
            pass
        elif outcome.error is not None:
            broken.append(outcome)
        else:
            receipt: Receipt = outcome.result
            run.receipts.append(receipt)
            if outcome.task.function is extract_shard:
                state.done += receipt.items
                state.failed += receipt.failed
        run.progress(state)
    if broken:
        error = broken[0].error
        if isinstance(error, EmbedxError):
            raise error
        raise EmbedxError(
            f"{broken[0].task.key} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "Finished shards are kept; mend the cause and run the same command",
        ) from error


def _tasks(run: _Run, job: ShardJob) -> Iterator[Task]:
    name = f"{run.layout.run}"
    for shard, rewrite in run.plan.new_rewrites:
        yield Task(f"rewrite-{name}-{shard:05d}", rewrite_shard, (job, shard, rewrite.path))
    for shard in range(len(run.plan.shard_rows)):
        yield Task(f"extract-{name}-{shard:05d}", extract_shard, (job, shard))


# -- publishing ------------------------------------------------------------------------------------------------


def _publish(run: _Run) -> int:
    """Check everything, then commit the run as one transaction; returns the version."""
    plan, spec = run.plan, run.spec
    failed, failures = _gather_failures(run)
    if not spec.max_failures.allows(failed, plan.planned):
        raise TooManyFailuresError(
            f"{failed:,} of {plan.planned:,} items failed, more than --max-failures {spec.max_failures} "
            f"({_reasons(failures)})",
            f"Nothing was published, all is kept: mend the items, or run it again with --max-failures {failed}",
        )
    new = _new_files(run)
    if not new and not plan.snapshot.files:
        raise CorpusError(f"no item could be embedded ({_reasons(failures)})", "An empty store is not published")
    write_arrow(run.layout.file("failures.arrow"), pa.concat_tables([FAILURE_SCHEMA.empty_table(), *failures]))
    replaced = {rewrite.path for rewrite in plan.rewrites if rewrite.published}
    _mark_begun(run)
    write_json(run.layout.file("files.json"), _digests(run.store.root, new))
    version = delta.publish(
        Transition(
            run=run.layout.run,
            base=plan.snapshot,
            adds=new,
            removes=[file for file in plan.snapshot.files if file.path in replaced],
            schema=store_schema(run.corpus.columns.carried),
            closes=tuple(run.history.interrupted),
        )
    )
    published = {file.path for file in delta.open_snapshot(run.store.root).files}
    if missing := [file.file.path for file in new if file.file.path not in published]:
        raise StoreError(f"version {version} lacks {missing[0]}", "Run embedx verify")
    return version


def _gather_failures(run: _Run) -> tuple[int, list[pa.Table]]:
    """Return how many items of this run failed, and every failure that the store will list."""
    own = [runs.read_attempt_failures(run.layout, receipt) for receipt in run.receipts if receipt.failed]
    failed = run.plan.adopted_failed + sum(table.num_rows for table in own)
    return failed, [*run.plan.failures, *own]


def _reasons(failures: list[pa.Table], most: int = 3) -> str:
    counts: Counter[str] = Counter()
    for table in failures:
        counts.update(table.column("message").to_pylist())
    shown = [f"{count}x {message}" for message, count in counts.most_common(most)]
    return "; ".join(shown) + ("; ..." if len(counts) > most else "")


def _new_files(run: _Run) -> list[NewFile]:
    """Return the files to add, each checked against its receipt and the plan."""
    expected = {shard: rows for shard, rows in enumerate(run.plan.shard_rows)}
    for receipt in run.receipts:
        if receipt.shard in expected and receipt.items != expected[receipt.shard]:
            raise StoreError(
                f"shard {receipt.shard} accounts for {receipt.items} of {expected[receipt.shard]} items",
                "Run it again",
            )
    want = len(run.plan.shard_rows) + len(run.plan.new_rewrites)
    if len({receipt.shard for receipt in run.receipts}) != want:
        raise StoreError(f"{len(run.receipts)} of {want} shards are there", RESUME)
    found = [(run.layout.shard_name(receipt.shard), receipt) for receipt in run.receipts]
    found += [(shard.path, receipt) for shard, receipt in run.plan.adopted]
    new = []
    for path, receipt in sorted(found, key=lambda pair: pair[0]):
        present = read_receipt(run.store.root / path)
        if (present.size_bytes, present.rows) != (receipt.size_bytes, receipt.rows):
            raise StoreError(f"{path} changed since it was written", "Run embedx verify, then the same command")
        if present.rows:
            file = DataFile(path, present.size_bytes, present.rows)
            new.append(NewFile(file, present.first_id or "", present.last_id or ""))
    return new


def _digests(root: Path, files: list[NewFile]) -> list[dict[str, Any]]:
    def digest(new: NewFile) -> dict[str, Any]:
        with (root / new.file.path).open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "path": new.file.path,
            "size_bytes": new.file.size_bytes,
            "rows": new.file.rows,
            "sha256": value,
        }

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(digest, files))


# -- reporting -------------------------------------------------------------------------------------------------


def _report(run: _Run, version: int) -> Report:
    plan = run.plan
    own_failed = sum(receipt.failed for receipt in run.receipts)
    own_rows = sum(r.rows for r in run.receipts if r.shard < len(plan.shard_rows))
    embedded = own_rows + plan.kinds.get("adopted", 0)
    seconds = time.time() - psutil.Process().create_time()
    known = run.store_card
    stages: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for receipt in run.receipts:
        stages.update(receipt.seconds)
        counts.update(receipt.counts)
    report: Report = {
        "run": run.layout.run if not plan.is_empty else None,
        "version": version,
        "items": _item_counts(plan, run.corpus, embedded, own_failed + plan.adopted_failed),
        "ignored_by_type": dict(run.corpus.ignored),
        "shards": {
            "planned": len(plan.shard_rows) + len(plan.adopted),
            "reused": len(plan.adopted),
            "computed": len(plan.shard_rows),
        },
        "rewritten_bytes": sum(r.size_bytes for r in run.receipts if r.shard >= len(plan.shard_rows)),
        "seconds": round(seconds, 3),
        "items_per_s": round(own_rows / seconds, 1) if seconds else 0.0,
        "bottleneck": describe_bottleneck(stages),
        "stage_seconds": {name: round(value, 2) for name, value in sorted(stages.items())},
        "encoder": {
            "ref": run.card.ref,
            "fingerprint": run.card.fingerprint,
            "precision": known.precision if known else None,
            "why_precision": known.why_precision if known else "",
            "dim": run.card.dim,
            "runtime": run.preflight.runtime if run.preflight else None,
            "note": run.preflight.note if run.preflight else "",
        },
        "positional_ids": list(run.corpus.positional),
        "workers": run.workers,
        "out": str(run.spec.out),
    }
    if counts.get("padded_cost"):
        report["padding_share"] = round(1 - counts["cost"] / counts["padded_cost"], 4)
    if run.corpus.kind == "text":
        report["truncated"] = counts.get("truncated", 0)
    return report


def _item_counts(plan: Plan, corpus: Corpus, embedded: int, failed: int) -> dict[str, int]:
    return {
        "listed": plan.listed,
        "planned": plan.planned,
        "embedded": embedded,
        "failed": failed,
        "unchanged": plan.kinds.get("unchanged", 0),
        "updated": plan.kinds.get("updated", 0),
        "removed": plan.removed,
        "failed_before": plan.kinds.get("failed_before", 0),
        "duplicates": plan.duplicates,
        "ignored": sum(corpus.ignored.values()),
    }


def describe_bottleneck(stages: Counter[str]) -> str:
    """Return one line on what the workers' time went to, from busy and waiting seconds per stage."""
    waited, forwarding = stages["wait_prepare"], stages["wait_forward"]
    total = waited + forwarding
    if not total:
        return "none: nothing was embedded"
    share = round(100 * waited / total)
    if share >= 40:
        heavier = "reading" if stages["read"] > stages["prepare"] else "preparing"
        return f"{heavier}: the encoder waited {share} % of the time"
    return f"encoder: it waited {share} % of the time"
