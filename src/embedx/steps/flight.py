"""A run in the driver before its first shard: its jobs, its workers, and the trial of its encoders."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from embedx.core.contracts import EncoderCard
from embedx.core.errors import EmbedxError
from embedx.core.long_texts import TRUNCATED
from embedx.core.meter import current_meter
from embedx.core.phases import Phases
from embedx.core.reports import Progress, ProgressHook
from embedx.core.specs import ExtractSpec, Resources
from embedx.corpora.listing import Corpus
from embedx.engine.cluster import Cluster
from embedx.engine.interrupts import Interrupts
from embedx.engine.window import Outcome, Task, Window
from embedx.steps.cutting import SharedShard
from embedx.steps.preflight import Preflight, library_versions, preflight, survey_worker
from embedx.steps.publishing import RESUME, Publication
from embedx.steps.shard_job import Part, ShardJob
from embedx.store.layout import RunLayout
from embedx.store.shards import Receipt

OUT_OF_MEMORY = "Its workers may lack memory: use fewer --workers; finished shards are kept"


@dataclass
class Run:
    """What an extraction does to one store, in the driver.

    Attributes:
        spec: what to compute.
        card: the encoder's.
        corpus: understood.
        publication: plan, receipts and what becomes of them.
        preflight: what the trial of the encoder found; None if nothing was embedded.
        error: why the store gets no new version; None while it can.
        version: the store's, before this run or of it.
    """

    spec: ExtractSpec
    card: EncoderCard
    corpus: Corpus
    publication: Publication
    preflight: Preflight | None = None
    error: EmbedxError | None = None
    version: int = -1

    @property
    def has_tasks(self) -> bool:
        """Whether workers have something to do for it."""
        return bool(self.publication.plan.shard_rows or self.publication.plan.new_rewrites)


@dataclass
class Extraction:
    """One extraction in the driver: a corpus, and the stores that get its vectors.

    Attributes:
        root: the store, or the folder of several.
        resources: how to compute.
        progress: is told the state.
        phases: what the time goes to.
        runs: one for each store.
        shards: what the tasks read, each for some of the stores.
        layouts: of the runs.
        jobs: of the runs, once there are workers.
        usage: requests to remote encoders and what they said, at the end.
    """

    root: Path
    resources: Resources
    progress: ProgressHook
    phases: Phases = field(default_factory=Phases)
    runs: list[Run] = field(default_factory=list)
    shards: list[SharedShard] = field(default_factory=list)
    layouts: list[RunLayout] = field(default_factory=list)
    jobs: list[ShardJob] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=dict)

    @property
    def receipts(self) -> list[Receipt]:
        """Of all stores, the receipts of this process's embedding tasks."""
        return [receipt for run in self.runs for receipt in run.publication.embedded]

    def parts(self, shard: SharedShard) -> tuple[Part, ...]:
        """Return what a task does for each store that can still be published."""
        return tuple(
            Part(self.jobs[store], number, store)
            for store, number in shard.numbers.items()
            if self.runs[store].error is None
        )


def make_jobs(extraction: Extraction, cluster: Cluster) -> list[ShardJob]:
    """Return what every task of each run has in common; a new store's precision is still empty."""
    # From here on workers count too, and for all stores in one place: the limit is of the whole command.
    first = next(run for run in extraction.runs if run.has_tasks).publication.plan.layout
    current_meter().move_to(first.file("requests.json"))
    return [_make_job(run, extraction.resources, cluster, first) for run in extraction.runs]


def _make_job(run: Run, resources: Resources, cluster: Cluster, shared: RunLayout) -> ShardJob:
    requests, hosts = str(shared.file("requests.json").resolve()), str(shared.hosts.resolve())
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
        runtime=resources.runtime,
        device=resources.device,
        threads=cluster.threads_per_worker,
        access=replace(run.spec.corpus.access, hosts=hosts),
        max_requests=resources.max_requests,
        requests=requests,
        jpeg_side=known.jpeg_side if known else 0,
        long=known.long if known else run.spec.long or TRUNCATED,
    )


def check_workers(cluster: Cluster, job: ShardJob) -> None:
    """Refuse workers that cannot do the run's work: another version of a library, or no access to the store.

    Raises:
        EmbedxError: names the worker and what is wrong with it.
    """
    ours = library_versions()
    for address, survey in cluster.run_everywhere(survey_worker, job).items():
        others = [
            f"{name} {survey.versions.get(name) or 'missing'} instead of {version}"
            for name, version in ours.items()
            if survey.versions.get(name) != version
        ]
        if others:
            raise EmbedxError(
                f"worker {address} has {', '.join(others)}",
                "Install on every worker what this process has: mixed versions give vectors that do not compare",
            )
        if survey.problem:
            raise EmbedxError(
                f"worker {address} cannot use {job.root}: {survey.problem}",
                "Give --out a path on a file system that every worker can write to",
            )


def try_encoder(extraction: Extraction, store: int, cluster: Cluster, interrupts: Interrupts) -> Preflight:
    """Run the preflight of a store's encoder on a worker; a sample that kills or hangs it is replaced by canaries."""
    run = extraction.runs[store]
    embedding = [place for place, other in enumerate(extraction.runs) if other.publication.plan.shard_rows]
    jobs, place = [extraction.jobs[other] for other in embedding], embedding.index(store)
    asked = "" if run.publication.card else run.spec.precision
    window = Window(cluster.client, 1, lambda: bool(interrupts.signal_number))
    for use_sample in (True, False):
        arguments = (jobs, place, asked, use_sample)
        task = Task(f"preflight-{jobs[place].run}-{use_sample}", preflight, arguments, retries=1)
        for outcome in window.iterate([task]):
            extraction.progress(Progress("extract", note=f"loading {run.card.ref}"))
            if outcome is not None and outcome.error is None:
                return outcome.result
            if outcome is not None and not (outcome.is_suspect and use_sample):
                raise failure_of(outcome) from outcome.error
        interrupts.check("stopped while loading the encoder", RESUME)
    raise EmbedxError(f"{run.card.ref} could not be tried on a worker", RESUME)


def failure_of(outcome: Outcome) -> EmbedxError:
    """Return a task's failure as an error that a person can act on."""
    error = outcome.error
    if isinstance(error, EmbedxError):
        return error
    if outcome.is_suspect:
        return EmbedxError(
            f"{outcome.task.key} kills or hangs its workers, but no single item of it does", OUT_OF_MEMORY
        )
    return EmbedxError(
        f"{outcome.task.key} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        "Finished shards are kept; mend the cause and run the same command",
    )
