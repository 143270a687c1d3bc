"""The extract step: plan, run shard tasks on Dask, publish one version of each store; resumes what was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from embedx.core.errors import EmbedxError, StoreError
from embedx.core.meter import Meter, current_meter, metered
from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.core.specs import ExtractSpec, Resources
from embedx.engine.cluster import Cluster, open_cluster_ahead
from embedx.engine.interrupts import Interrupts, draining_on_signals
from embedx.steps.bottleneck import write_trace
from embedx.steps.canaries import compare_canaries
from embedx.steps.extract_report import report_several, report_store
from embedx.steps.flight import Extraction, Run, check_workers, make_jobs, try_encoder
from embedx.steps.opening import Opened, open_all
from embedx.steps.plan import Planning
from embedx.steps.planning import make_plans
from embedx.steps.publishing import RESUME, Publication, clean_up, mark_begun, publish
from embedx.steps.shard_tasks import run_tasks
from embedx.store import delta, runs
from embedx.store.files import open_files
from embedx.store.layout import StoreLayout
from embedx.store.reader import StoreCard
from embedx.store.writing import writing


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
    extraction, (report,) = _extract([spec], Extraction(spec.out, resources or Resources(), progress))
    if error := extraction.runs[0].error:
        raise error
    return report


def extract_several(
    specs: Sequence[ExtractSpec], resources: Resources | None = None, progress: ProgressHook = no_progress
) -> Report:
    """Embed a corpus with several encoders, each to a store of its own: every item is read and decoded once.

    Args:
        specs: one for each store, alike but for the encoder and the store (see `core.specs.spread`).
        resources: how.
        progress: called with the present state.

    Returns:
        The report of all: `stores`, each as `extract` reports it, and what they share. A store that could not be
        published has an `error`, and the report has the first of them; the others are published all the same.

    Raises:
        EmbedxError: nothing of any store could be begun, or the run was interrupted.
    """
    extraction, reports = _extract(specs, Extraction(specs[0].out.parent, resources or Resources(), progress))
    return report_several(extraction, reports)


def _extract(specs: Sequence[ExtractSpec], extraction: Extraction) -> tuple[Extraction, list[Report]]:
    profile = extraction.resources.profile
    with metered(Meter(extraction.resources.max_requests)):
        if profile is not None:
            # A path that cannot be written is said now, not after hours.
            write_trace(profile, extraction.phases, [])
        with extraction.phases.span("open"):
            understood = open_all(specs)  # What is wrong is said before anything is written.
        with ExitStack() as stack, draining_on_signals() as interrupts:
            stores = [stack.enter_context(writing(spec.out)) for spec in specs]
            # Again, under the lock: another run may have created or changed a store meanwhile.
            opened = open_all(specs, understood[0].corpus.sources)
            # A new store has work for workers, if only to find that its items are broken.
            is_new = all(one.store_card is None for one in opened)
            open_workers = stack.enter_context(open_cluster_ahead(extraction.resources, at_once=is_new))
            try:
                _plan(extraction, opened, stores)
                interrupts.check("stopped while planning", "Nothing was begun; run the same command again")
                for run in extraction.runs:
                    if run.publication.plan.is_empty:
                        _discard_unwanted(run.publication)
                if any(run.has_tasks for run in extraction.runs):
                    _check_space(extraction)
                    _compute(extraction, open_workers, interrupts)
                _publish(extraction)
            finally:
                _leave(extraction)
            return extraction, _report(extraction)


def _leave(extraction: Extraction) -> None:
    """Drop the records of runs that have not begun, and note what the others have finished."""
    begun = {run.publication.plan.layout: run.publication for run in extraction.runs if run.publication.is_begun}
    for layout in extraction.layouts:
        if layout not in begun:
            runs.discard_record(layout)  # Without its marker a plan is of no use to anybody.
        elif begun[layout].published is None:
            with suppress(EmbedxError):  # Notes only save reading: they must not hide why the run ends.
                begun[layout].notes.flush()


def _plan(extraction: Extraction, opened: Sequence[Opened], stores: Sequence[StoreLayout]) -> None:
    plannings = []
    for one, store in zip(opened, stores):
        snapshot = delta.open_snapshot(one.spec.out)
        history = runs.read_history(store, snapshot)
        extraction.layouts.append(store.run(runs.new_run_name(history, snapshot.sequence)))
        plannings.append(
            Planning(one.spec, one.corpus, one.card, one.store_card, snapshot, history, store, extraction.progress)
        )
    with extraction.phases.span("plan"):
        plans, extraction.shards = make_plans(plannings, extraction.layouts)
    for one, planning, plan in zip(opened, plannings, plans):
        publication = Publication(planning.store, plan, planning.history, one.store_card, one.spec.max_failures)
        extraction.runs.append(Run(one.spec, one.card, one.corpus, publication, version=plan.snapshot.version))


def _discard_unwanted(publication: Publication) -> None:
    """Nothing is left to do, so nothing that interrupted runs have finished can be wanted."""
    used = {file.path for file in publication.plan.snapshot.files}
    for name in publication.history.interrupted:
        runs.discard_shards(publication.store.run(name), used)
        runs.discard_record(publication.store.run(name))


def _check_space(extraction: Extraction) -> None:
    """Refuse to begin what the disk cannot hold: new vectors at their raw size, which is an upper bound."""
    wanted = 0
    for run in extraction.runs:
        plan = run.publication.plan
        replaced = {rewrite.path for _, rewrite in plan.new_rewrites}
        rewritten = sum(file.size_bytes for file in plan.snapshot.files if file.path in replaced)
        wanted += plan.new_rows * run.card.dim * 4 + rewritten
    root = extraction.root
    free = open_files(root).free_bytes()
    if free is not None and wanted > free:
        raise StoreError(
            f"{root} needs up to {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            "Make room, or choose another --out",
        )


def _compute(extraction: Extraction, open_workers: Callable[[], Cluster], interrupts: Interrupts) -> None:
    """Run the plans' shard tasks; receipts are gathered in the publications."""
    plans = [run.publication.plan for run in extraction.runs]
    reused = sum(plan.adopted_items for plan in plans)
    state = Progress(
        "extract", sum(plan.planned for plan in plans), reused, sum(plan.adopted_failed for plan in plans), reused
    )
    state.note = "starting workers"
    extraction.progress(state)
    try:
        with extraction.phases.span("start workers"):
            cluster = open_workers()
            extraction.jobs = make_jobs(extraction, cluster)
            for job in extraction.jobs:
                check_workers(cluster, job)
        if extraction.shards:
            state.note = "loading the encoder"
            extraction.progress(state)
            with extraction.phases.span("try encoder"):
                for store, run in enumerate(extraction.runs):
                    if run.publication.plan.shard_rows:
                        _fly(extraction, store, cluster, interrupts)
        for run in extraction.runs:
            if run.has_tasks:
                mark_begun(run.publication)
        interrupts.check("stopped before the first shard", RESUME)
        state.note, state.started = "", time.monotonic()
        with extraction.phases.span("embed"):
            run_tasks(extraction, cluster, state, interrupts)
    finally:
        extraction.progress(replace(state, note="done"))
    done = sum(len(run.publication.receipts) for run in extraction.runs)
    planned = sum(len(plan.shard_rows) + len(plan.new_rewrites) for plan in plans)
    interrupts.check(f"stopped after {done} of {planned} shards", RESUME)


def _fly(extraction: Extraction, store: int, cluster: Cluster, interrupts: Interrupts) -> None:
    """Try a store's encoder on a worker before the first shard; a new store gets its precision and card."""
    run, job = extraction.runs[store], extraction.jobs[store]
    known = run.publication.card
    flown = try_encoder(extraction, store, cluster, interrupts)
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
        run.publication.store.encoder.write_json(card.to_dict())
        run.publication.card = card
        extraction.jobs[store] = replace(job, precision=flown.precision, jpeg_side=flown.jpeg_side)
        return
    compare_canaries(
        flown.canaries,
        known.canaries,
        f"{run.card.ref} computes other vectors than when {run.spec.out} was created",
        "A library, a driver or a remote model changed; use those of then, or extract to another --out",
    )


def _publish(extraction: Extraction) -> None:
    """Publish each store by itself: what fails one of several is its own error."""
    for run in extraction.runs:
        if run.error is None and not run.publication.plan.is_empty:
            with extraction.phases.span("publish"):
                try:
                    run.version = publish(run.publication)
                except EmbedxError as error:
                    run.error = error


def _report(extraction: Extraction) -> list[Report]:
    """Report on each store and clean up behind those that have a new version."""
    extraction.usage = current_meter().sums()
    reports = [report_store(extraction, run) for run in extraction.runs]
    for run, report in zip(extraction.runs, reports):
        if run.error is None and not run.publication.plan.is_empty:
            clean_up(run.publication, report)
    if extraction.resources.profile is not None:
        receipts = [receipt for run in extraction.runs for receipt in run.publication.receipts]
        write_trace(extraction.resources.profile, extraction.phases, receipts)
    return reports
