"""The extract step: plan, run shard tasks on Dask, publish one version; resumes whatever was interrupted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from embedx.core.errors import StoreError
from embedx.core.meter import Meter, metered
from embedx.core.paths import write_json
from embedx.core.phases import Phases
from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.core.specs import ExtractSpec, Resources
from embedx.engine.cluster import Cluster, open_cluster
from embedx.engine.interrupts import Interrupts, draining_on_signals
from embedx.engine.window import Outcome, Task, Window
from embedx.steps.bottleneck import write_trace
from embedx.steps.canaries import compare_canaries
from embedx.steps.extract_report import report_extraction
from embedx.steps.extract_shard import ShardJob, extract_shard
from embedx.steps.flight import Run, check_workers, make_job, raise_outcome, try_encoder
from embedx.steps.opening import open_all
from embedx.steps.planning import Planning, make_plan
from embedx.steps.poison import find_poison
from embedx.steps.publishing import RESUME, Publication, clean_up, mark_begun, publish
from embedx.steps.rewrite_shard import rewrite_shard
from embedx.store import delta, runs
from embedx.store.reader import StoreCard
from embedx.store.shards import Receipt


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
    with metered(Meter(resources.max_requests)):
        return _extract(spec, resources, progress)


def _extract(spec: ExtractSpec, resources: Resources, progress: ProgressHook) -> Report:
    phases = Phases()
    if resources.profile is not None:
        write_trace(resources.profile, phases, [])  # A path that cannot be written is said now, not after hours.
    with phases.span("open"):
        _, _, understood = open_all(spec)  # What is wrong is said before anything is written.
    with runs.writing(spec.out) as store, draining_on_signals() as interrupts:
        # Again, under the lock: another run may have created or changed the store meanwhile.
        store_card, card, corpus = open_all(spec, understood.sources)
        snapshot, history = delta.open_snapshot(spec.out), runs.read_history(store)
        layout = store.run(runs.new_run_name(store, snapshot.sequence))
        try:
            with phases.span("plan"):
                plan = make_plan(Planning(spec, corpus, card, store_card, snapshot, history, store, progress), layout)
            interrupts.check("stopped while planning", "Nothing was begun; run the same command again")
            publication = Publication(store, plan, history, store_card, spec.max_failures)
            run = Run(spec, resources, progress, card, corpus, publication, phases)
            if plan.is_empty:
                _discard_unwanted(publication)
                if resources.profile is not None:
                    write_trace(resources.profile, phases, [])
                return report_extraction(run, snapshot.version)
            if plan.shard_rows or plan.new_rewrites:
                _check_space(run)
                _compute(run, interrupts)
            with phases.span("publish"):
                version = publish(publication)
        finally:
            # Without its marker a plan is of no use to anybody.
            if not layout.file("run.json").exists():
                runs.discard_record(layout)
        report = report_extraction(run, version)
        clean_up(publication, report)
        if resources.profile is not None:
            write_trace(resources.profile, phases, publication.receipts)
        return report


def _discard_unwanted(publication: Publication) -> None:
    """Nothing is left to do, so nothing that interrupted runs have finished can be wanted."""
    used = {file.path for file in publication.plan.snapshot.files}
    for name in publication.history.interrupted:
        runs.discard_shards(publication.store.run(name), used)
        runs.discard_record(publication.store.run(name))


def _check_space(run: Run) -> None:
    """Refuse to begin what the disk cannot hold: new vectors at their raw size, which is an upper bound."""
    plan = run.publication.plan
    replaced = {rewrite.path for _, rewrite in plan.new_rewrites}
    rewritten = sum(file.size_bytes for file in plan.snapshot.files if file.path in replaced)
    wanted = plan.new_rows * run.card.dim * 4 + rewritten
    free = shutil.disk_usage(run.publication.store.root).free
    if wanted > free:
        raise StoreError(
            f"{run.publication.store.root} needs up to {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            "Make room, or choose another --out",
        )


def _compute(run: Run, interrupts: Interrupts) -> None:
    """Run the plan's shard tasks; receipts are gathered in the publication."""
    plan = run.publication.plan
    state = Progress("extract", plan.planned, plan.adopted_items, plan.adopted_failed, plan.adopted_items)
    state.note = "starting workers"
    run.progress(state)
    try:
        with ExitStack() as stack:
            with run.phases.span("start workers"):
                cluster = stack.enter_context(open_cluster(run.resources))
                job = make_job(run, cluster)
                check_workers(cluster, job)
            if plan.shard_rows:
                state.note = "loading the encoder"
                run.progress(state)
                with run.phases.span("try encoder"):
                    job = _fly(run, cluster, job, interrupts)
            mark_begun(run.publication)
            interrupts.check("stopped before the first shard", RESUME)
            state.note, state.started = "", time.monotonic()
            with run.phases.span("embed"):
                _run_tasks(run, cluster, job, state, interrupts)
    finally:
        run.progress(replace(state, note="done"))
    interrupts.check(
        f"stopped after {len(run.publication.receipts)} of {len(plan.shard_rows) + len(plan.new_rewrites)} shards",
        RESUME,
    )


def _fly(run: Run, cluster: Cluster, job: ShardJob, interrupts: Interrupts) -> ShardJob:
    """Try the encoder on a worker before the first shard; a new store gets its precision and card."""
    known = run.publication.card
    flown = try_encoder(run, cluster, job, interrupts)
    run.preflight = flown
    if known is None:
        card = StoreCard(
            encoder=run.card,
            precision=flown.precision,
            full_bits=job.full_bits,
            canaries=flown.canaries,
            columns=job.columns,
            content_column=job.content_column,
            why_precision=flown.why,
            jpeg_side=flown.jpeg_side,
            long=job.long,
        )
        write_json(run.publication.store.encoder, card.to_dict())
        run.publication.card = card
        return replace(job, precision=flown.precision, jpeg_side=flown.jpeg_side)
    compare_canaries(
        flown.canaries,
        known.canaries,
        f"{run.card.ref} computes other vectors than when {run.spec.out} was created",
        "A library, a driver or a remote model changed; use those of then, or extract to another --out",
    )
    return job


def _run_tasks(run: Run, cluster: Cluster, job: ShardJob, state: Progress, interrupts: Interrupts) -> None:
    """Run the plan's tasks; then, one at a time and alone, those that killed or hung their workers."""
    tally = _Tally(run, state, interrupts)
    for outcome in Window(cluster.client, cluster.slots, tally.should_stop).iterate(_tasks(run, job)):
        tally.accept(outcome)
    alone = Window(cluster.client, 1, tally.should_stop)
    for task in tally.suspects:
        state.note = f"looking for the item of {task.key} that kills or hangs workers"
        run.progress(state)
        _, shard = task.arguments[:2]
        rows = run.publication.plan.shard_rows[shard]
        quarantined = tuple(find_poison(alone, job, shard, rows))
        if tally.should_stop():
            break
        for outcome in alone.iterate([Task(f"{task.key}-rest", extract_shard, (job, shard, quarantined))]):
            tally.accept(outcome, alone=True)
    if tally.broken:
        raise_outcome(tally.broken[0])


@dataclass
class _Tally:
    """What came of the tasks so far."""

    run: Run
    state: Progress
    interrupts: Interrupts
    broken: list[Outcome] = field(default_factory=list)
    suspects: list[Task] = field(default_factory=list)

    def should_stop(self) -> bool:
        return bool(self.interrupts.signal_number or self.broken)

    def accept(self, outcome: Outcome | None, alone: bool = False) -> None:
        if self.interrupts.signal_number:
            self.state.note = "stopping: waiting for the shards in work"
        if outcome is not None and outcome.error is None:
            receipt: Receipt = outcome.result
            self.run.publication.receipts.append(receipt)
            runs.note_receipt(self.run.publication.plan.layout, receipt)
            if outcome.task.function is extract_shard:
                self.state.done += receipt.items
                self.state.failed += receipt.failed
        elif outcome is not None and outcome.is_suspect and not alone and outcome.task.function is extract_shard:
            self.suspects.append(outcome.task)
        elif outcome is not None:
            self.broken.append(outcome)
        self.run.progress(self.state)


def _tasks(run: Run, job: ShardJob) -> Iterator[Task]:
    plan, name = run.publication.plan, run.publication.plan.layout.run
    for shard, rewrite in plan.new_rewrites:
        yield Task(f"rewrite-{name}-{shard:05d}", rewrite_shard, (job, shard, rewrite.path, rewrite.group))
    for shard in range(len(plan.shard_rows)):
        yield Task(f"extract-{name}-{shard:05d}", extract_shard, (job, shard))
