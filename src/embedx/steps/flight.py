"""A run in the driver before its first shard: its job, its workers, and the trial of its encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from embedx.steps.extract_shard import ShardJob
from embedx.steps.preflight import Preflight, library_versions, preflight, survey_worker
from embedx.steps.publishing import RESUME, Publication

OUT_OF_MEMORY = "Its workers may lack memory: use fewer --workers; finished shards are kept"


@dataclass
class Run:
    """One extraction in the driver.

    Attributes:
        spec: what to compute.
        resources: how.
        progress: is told the state.
        card: the encoder's.
        corpus: understood.
        publication: plan, receipts and what becomes of them.
        phases: what the time goes to.
        preflight: what the trial of the encoder found; None if nothing was embedded.
    """

    spec: ExtractSpec
    resources: Resources
    progress: ProgressHook
    card: EncoderCard
    corpus: Corpus
    publication: Publication
    phases: Phases
    preflight: Preflight | None = None


def make_job(run: Run, cluster: Cluster) -> ShardJob:
    """Return what every task of a run has in common; a new store's precision is still empty."""
    known = run.publication.card
    # From here on workers count too.
    current_meter().move_to(run.publication.plan.layout.file("requests.json"))
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
        access=replace(run.spec.corpus.access, hosts=str(run.publication.plan.layout.hosts.resolve())),
        max_requests=run.resources.max_requests,
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


def try_encoder(run: Run, cluster: Cluster, job: ShardJob, interrupts: Interrupts) -> Preflight:
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
                raise_outcome(outcome)
        interrupts.check("stopped while loading the encoder", RESUME)
    raise EmbedxError(f"{run.card.ref} could not be tried on a worker", RESUME)


def raise_outcome(outcome: Outcome) -> None:
    """Raise a task's failure as an error that a person can act on."""
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
