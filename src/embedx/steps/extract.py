"""The extract step: plan, run shard tasks on Dask, publish one version; resumes whatever was interrupted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from embedx.core.contracts import EncoderCard
from embedx.core.errors import EmbedxError, FingerprintMismatchError, StoreError, UsageError
from embedx.core.paths import write_json
from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.core.specs import ExtractSpec, Resources
from embedx.corpora.listing import Corpus, open_corpus
from embedx.encoders.registry import open_encoder
from embedx.engine.cluster import Cluster, open_cluster
from embedx.engine.interrupts import Interrupts, draining_on_signals
from embedx.engine.window import Outcome, Task, Window
from embedx.inference.gates import measure_fidelity
from embedx.steps.extract_report import report_extraction, report_plan
from embedx.steps.extract_shard import ShardJob, extract_shard, rewrite_shard
from embedx.steps.planning import Planning, make_plan
from embedx.steps.poison import find_poison
from embedx.steps.preflight import Preflight, preflight
from embedx.steps.publishing import RESUME, Publication, clean_up, mark_begun, publish
from embedx.store import delta, runs
from embedx.store.layout import RunLayout, StoreLayout
from embedx.store.reader import StoreCard, read_store_card
from embedx.store.shards import Receipt

OUT_OF_MEMORY = "Its workers may lack memory: use fewer --workers; finished shards are kept"

CANARY_MIN_COSINE = 0.999
"""Between a store's canary vectors and today's: below it some library changed what the encoder computes."""


@dataclass
class _Run:
    """One extraction in the driver.

    Attributes:
        spec: what to compute.
        resources: how.
        progress: is told the state.
        card: the encoder's.
        corpus: understood.
        publication: plan, receipts and what becomes of them.
        preflight: what the trial of the encoder found; None if nothing was embedded.
    """

    spec: ExtractSpec
    resources: Resources
    progress: ProgressHook
    card: EncoderCard
    corpus: Corpus
    publication: Publication
    preflight: Preflight | None = None

    def report(self, version: int) -> Report:
        return report_extraction(self.publication, self.corpus, self.card, self.preflight, version)


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
    _open_all(spec)  # What is wrong is said before anything is written.
    with runs.writing(spec.out) as store, draining_on_signals() as interrupts:
        # Again, under the lock: another run may have created or changed the store meanwhile.
        store_card, card, corpus = _open_all(spec)
        snapshot, history = delta.open_snapshot(spec.out), runs.read_history(store)
        layout = store.run(runs.new_run_name(store, snapshot.sequence))
        try:
            plan = make_plan(Planning(spec, corpus, card, store_card, snapshot, history, store, progress), layout)
            interrupts.check("stopped while planning", "Nothing was begun; run the same command again")
            publication = Publication(store, plan, history, store_card, spec.max_failures)
            run = _Run(spec, resources or Resources(), progress, card, corpus, publication)
            if plan.is_empty:
                _discard_unwanted(publication)
                return run.report(snapshot.version)
            if plan.shard_rows or plan.new_rewrites:
                _check_space(run)
                _compute(run, interrupts)
            version = publish(publication)
        finally:
            # Without its marker a plan is of no use to anybody.
            if not layout.file("run.json").exists():
                runs.discard_record(layout)
        report = run.report(version)
        clean_up(publication, report)
        return report


def _discard_unwanted(publication: Publication) -> None:
    """Nothing is left to do, so nothing that interrupted runs have finished can be wanted."""
    used = {file.path for file in publication.plan.snapshot.files}
    for name in publication.history.interrupted:
        runs.discard_shards(publication.store.run(name), used)
        runs.discard_record(publication.store.run(name))


def plan_extract(spec: ExtractSpec, progress: ProgressHook = no_progress) -> Report:
    """Say what `extract` would do, without writing to the store (`--dry-run`)."""
    store_card, card, corpus = _open_all(spec)
    store = StoreLayout(spec.out)
    snapshot, history = delta.open_snapshot(spec.out), runs.read_history(store)
    with TemporaryDirectory(prefix="embedx-plan-") as folder:
        layout = RunLayout(Path(folder), "plan")
        plan = make_plan(Planning(spec, corpus, card, store_card, snapshot, history, store, progress), layout)
    return report_plan(plan, corpus, card)


def _open_all(spec: ExtractSpec) -> tuple[StoreCard | None, EncoderCard, Corpus]:
    """Open what can be wrong before anything is written: store, encoder, corpus."""
    runs.check_out(spec.out)
    store_card = _known_card(spec.out)
    card = open_encoder(spec.encoder).card
    if store_card is not None:
        _check_store(spec, store_card, card)
    corpus = open_corpus(spec.corpus, store_card.columns if store_card else None)
    if corpus.kind != card.modality:
        raise UsageError(
            f"{card.ref} embeds {card.modality}s, but {corpus.sources[0].path} holds {corpus.kind}s",
            "Choose an encoder for it; see embedx encoders",
        )
    if store_card is not None and store_card.content_column != corpus.columns.content_column:
        raise UsageError(
            f"{spec.out} carries the text as {store_card.content_column!r}, not as {corpus.columns.content_column!r}",
            "Use the same --text-column, or extract to another --out",
        )
    if spec.mirror and corpus.positional:
        raise UsageError(
            f"--mirror needs stable ids, but those of {corpus.positional[0]} are row numbers", "Name an --id-column"
        )
    return store_card, card, corpus


def _known_card(root: Path) -> StoreCard | None:
    """Return the card that binds this run: of a store with a version, or with a run that can be resumed."""
    layout = StoreLayout(root)
    if not layout.delta_log.is_dir() and not runs.read_history(layout).interrupted:
        return None
    return read_store_card(root)


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


def _check_space(run: _Run) -> None:
    """Refuse to begin what the disk cannot hold: new vectors at their raw size, which is an upper bound."""
    plan = run.publication.plan
    replaced = {rewrite.path for _, rewrite in plan.new_rewrites}
    rewritten = sum(file.size_bytes for file in plan.snapshot.files if file.path in replaced)
    wanted = plan.to_embed * run.card.dim * 4 + rewritten
    free = shutil.disk_usage(run.publication.store.root).free
    if wanted > free:
        raise StoreError(
            f"{run.publication.store.root} needs up to {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            "Make room, or choose another --out",
        )


def _compute(run: _Run, interrupts: Interrupts) -> None:
    """Run the plan's shard tasks; receipts are gathered in the publication."""
    plan = run.publication.plan
    state = Progress("extract", plan.planned, plan.adopted_items, plan.adopted_failed, plan.adopted_items)
    state.note = "starting workers"
    run.progress(state)
    try:
        with open_cluster(run.resources) as cluster:
            job = _job(run, cluster)
            if plan.shard_rows:
                state.note = "loading the encoder"
                run.progress(state)
                job = _fly(run, cluster, job, interrupts)
            mark_begun(run.publication)
            interrupts.check("stopped before the first shard", RESUME)
            state.note, state.started = "", time.monotonic()
            _run_tasks(run, cluster, job, state, interrupts)
    finally:
        run.progress(replace(state, note="done"))
    interrupts.check(
        f"stopped after {len(run.publication.receipts)} of {len(plan.shard_rows) + len(plan.new_rewrites)} shards",
        RESUME,
    )


def _job(run: _Run, cluster: Cluster) -> ShardJob:
    known = run.publication.card
    return ShardJob(
        root=str(run.publication.store.root.resolve()),
        run=run.publication.plan.layout.run,
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


def _fly(run: _Run, cluster: Cluster, job: ShardJob, interrupts: Interrupts) -> ShardJob:
    """Try the encoder on a worker before the first shard; a new store gets its precision and card."""
    known = run.publication.card
    flown = _try_encoder(run, cluster, job, interrupts)
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
        )
        write_json(run.publication.store.encoder, card.to_dict())
        run.publication.card = card
        return replace(job, precision=flown.precision)
    fidelity = measure_fidelity(np.array(flown.canaries), np.array(known.canaries))
    if fidelity.raw_min < CANARY_MIN_COSINE:
        raise FingerprintMismatchError(
            f"{run.card.ref} computes other vectors than when {run.spec.out} was created ({fidelity.describe()})",
            "A library or driver changed; use the versions of then, or extract to another --out",
        )
    return job


def _try_encoder(run: _Run, cluster: Cluster, job: ShardJob, interrupts: Interrupts) -> Preflight:
    """Run the preflight on a worker; a sample that kills or hangs it is replaced by the encoder's canaries."""
    asked = "" if run.publication.card else run.spec.precision
    window = Window(cluster.client, 1, lambda: bool(interrupts.signal_number))
    for use_sample in (True, False):
        task = Task(f"preflight-{job.run}-{use_sample}", preflight, (job, asked, use_sample), retries=1)
        for outcome in window.iterate([task]):
            run.progress(Progress("extract", note="loading the encoder"))
            if outcome is not None and outcome.error is None:
                return outcome.result
            if outcome is not None and not (outcome.is_suspect and use_sample):
                _raise(outcome)
        interrupts.check("stopped while loading the encoder", RESUME)
    raise EmbedxError(f"{run.card.ref} could not be tried on a worker", RESUME)


def _run_tasks(run: _Run, cluster: Cluster, job: ShardJob, state: Progress, interrupts: Interrupts) -> None:
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
        _raise(tally.broken[0])


@dataclass
class _Tally:
    """What came of the tasks so far."""

    run: _Run
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
            if outcome.task.function is extract_shard:
                self.state.done += receipt.items
                self.state.failed += receipt.failed
        elif outcome is not None and outcome.is_suspect and not alone and outcome.task.function is extract_shard:
            self.suspects.append(outcome.task)
        elif outcome is not None:
            self.broken.append(outcome)
        self.run.progress(self.state)


def _raise(outcome: Outcome) -> None:
    error = outcome.error
    if isinstance(error, EmbedxError):
        raise error
    if outcome.is_suspect:
        raise EmbedxError(
            f"{outcome.task.key} kills or hangs its workers, but no single item of it does", OUT_OF_MEMORY
        )
    raise EmbedxError(
        f"{outcome.task.key} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        "Finished shards are kept; mend the cause and run the same command",
    ) from error


def _tasks(run: _Run, job: ShardJob) -> Iterator[Task]:
    plan, name = run.publication.plan, run.publication.plan.layout.run
    for shard, rewrite in plan.new_rewrites:
        yield Task(f"rewrite-{name}-{shard:05d}", rewrite_shard, (job, shard, rewrite.path, rewrite.group))
    for shard in range(len(plan.shard_rows)):
        yield Task(f"extract-{name}-{shard:05d}", extract_shard, (job, shard))
