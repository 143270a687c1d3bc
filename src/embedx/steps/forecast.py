"""What an extraction would do, without doing it: `--dry-run` plans, `--estimate` also embeds a sample."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from embedx.core.errors import CorpusError
from embedx.core.meter import Meter, current_meter, metered
from embedx.core.phases import Phases
from embedx.core.places import Place
from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.core.specs import ExtractSpec, Resources
from embedx.engine.cluster import Cluster, open_cluster
from embedx.engine.interrupts import draining_on_signals
from embedx.engine.window import Task, Window
from embedx.steps.bottleneck import describe_bottleneck
from embedx.steps.extract_report import report_plan
from embedx.steps.extract_shard import Sample, ShardJob, sample_rows
from embedx.steps.flight import Run, check_workers, make_job, raise_outcome, try_encoder
from embedx.steps.opening import open_all
from embedx.steps.planning import Plan, Planning, make_plan
from embedx.steps.publishing import Publication
from embedx.store import delta, runs
from embedx.store.files import open_files
from embedx.store.layout import RunLayout, StoreLayout

SAMPLE_SECONDS = 30.0

SLICE_ITEMS = {"text": 1024, "image": 64}
"""Items of one sampling task: enough that texts of like length find each other, few enough to end on time."""


def plan_extract(spec: ExtractSpec, progress: ProgressHook = no_progress) -> Report:
    """Say what `extract` would do, without writing to the store (`--dry-run`)."""
    with TemporaryDirectory(prefix="embedx-plan-") as folder:
        run = _plan(spec, Resources(), Path(folder), progress)
        return report_plan(run.publication.plan, run.corpus, run.card)


def estimate_extract(
    spec: ExtractSpec,
    resources: Resources | None = None,
    progress: ProgressHook = no_progress,
    seconds: float = SAMPLE_SECONDS,
) -> Report:
    """Plan, embed a sample spread over the plan for some seconds on the workers, and say how long all would take.

    Returns:
        The report of `plan_extract` with `estimate`: sampled, failed, items_per_s, seconds, bytes, bottleneck,
        precision, runtime, and truncated_share of texts. `seconds` and `bytes` are of the whole run.

    Raises:
        CorpusError: there is nothing to embed.
    """
    resources = resources or Resources()
    with metered(Meter(resources.max_requests)):
        return _estimate(spec, resources, progress, seconds)


def _estimate(spec: ExtractSpec, resources: Resources, progress: ProgressHook, seconds: float) -> Report:
    with _beside(spec.out) as place, draining_on_signals() as interrupts:
        run = _plan(spec, resources, place, progress)
        plan = run.publication.plan
        if not plan.to_embed:
            raise CorpusError(f"nothing is left to embed of {plan.listed:,} listed items", "There is nothing to do")
        progress(Progress("extract", plan.to_embed, note="starting workers"))
        with open_cluster(run.resources) as cluster:
            job = make_job(run, cluster)
            check_workers(cluster, job)
            flown = try_encoder(run, cluster, job, interrupts)
            sampled = _sample(run, cluster, replace(job, precision=flown.precision), seconds)
            interrupts.check("stopped while sampling", "Nothing was written")
        usage = current_meter().sums()
    report = report_plan(plan, run.corpus, run.card)
    report["estimate"] = {
        **sampled.forecast(plan.to_embed, run.corpus.kind),
        "precision": flown.precision,
        "why_precision": flown.why,
        "runtime": flown.runtime,
        **({"truncated_share": sampled.truncated_share()} if run.corpus.kind == "text" else {}),
        **({"usage": usage} if usage else {}),
    }
    return report


@contextmanager
def _beside(out: Place) -> Iterator[Place]:
    """Give a place beside a store, not in the system's temporary folder: workers on other machines must see it."""
    if isinstance(out, Path):
        home = next(parent for parent in out.absolute().parents if parent.is_dir())
        with TemporaryDirectory(prefix=".embedx-estimate-", dir=home) as folder:
            yield Path(folder)
        return
    place = out.parent / f".embedx-estimate-{secrets.token_hex(6)}"
    try:
        yield place
    finally:
        open_files(place).delete_below("")


def _plan(spec: ExtractSpec, resources: Resources, folder: Place, progress: ProgressHook) -> Run:
    store_card, card, corpus = open_all(spec)
    store = StoreLayout(spec.out)
    snapshot = delta.open_snapshot(spec.out)
    history = runs.read_history(store, snapshot)
    planning = Planning(spec, corpus, card, store_card, snapshot, history, store, progress)
    plan = make_plan(planning, RunLayout(folder, "plan"))
    publication = Publication(StoreLayout(folder), plan, history, store_card, spec.max_failures)
    return Run(spec, resources, progress, card, corpus, publication, Phases())


@dataclass(frozen=True)
class _Sampled:
    """The samples, and how long they took together."""

    samples: list[Sample]
    seconds: float

    def forecast(self, planned: int, kind: str) -> dict[str, object]:
        items = sum(sample.items for sample in self.samples)
        stages: Counter[str] = Counter()
        for sample in self.samples:
            stages.update(sample.seconds)  # type: ignore[arg-type]
        share = planned / items
        return {
            "sampled": items,
            "failed": sum(sample.failed for sample in self.samples),
            "items_per_s": round(items / self.seconds, 1),
            "seconds": round(self.seconds * share, 1),
            "bytes": round(sum(sample.file_bytes for sample in self.samples) * share),
            "bottleneck": describe_bottleneck(stages, kind),
        }

    def truncated_share(self) -> float:
        """Return the part of the distinct texts that are longer than the encoder reads."""
        counts: Counter[str] = Counter(items=sum(sample.items for sample in self.samples))
        for sample in self.samples:
            counts.update(sample.counts)
        return round(counts["truncated"] / (counts["items"] - counts["copies"]), 4)


def _sample(run: Run, cluster: Cluster, job: ShardJob, seconds: float) -> _Sampled:
    """Embed slices of the plan for some seconds, as many at a time as a run would."""
    plan = run.publication.plan
    samples: list[Sample] = []
    started = time.monotonic()

    def should_stop() -> bool:
        return bool(samples) and time.monotonic() - started > seconds

    state = Progress("extract", plan.to_embed, note=f"embedding a sample for {seconds:.0f} s")
    for outcome in Window(cluster.client, cluster.slots, should_stop).iterate(_slices(plan, job)):
        if outcome is not None and outcome.error is not None:
            raise_outcome(outcome)
        if outcome is not None:
            samples.append(outcome.result)
            state.done += outcome.result.items
        run.progress(state)
    return _Sampled(samples, time.monotonic() - started)


def _slices(plan: Plan, job: ShardJob) -> Iterator[Task]:
    """Yield sampling tasks in an order that is spread over the plan from the first one on."""
    size = SLICE_ITEMS[job.kind]
    slices = [
        (shard, start, min(rows, start + size))
        for shard, rows in enumerate(plan.shard_rows)
        for start in range(0, rows, size)
    ]
    for place in _spread(len(slices)):
        shard, start, stop = slices[place]
        yield Task(f"sample-{shard:05d}-{start}", sample_rows, (job, shard, start, stop))


def _spread(count: int) -> Iterator[int]:
    """Yield 0..count-1 once each, any first few of them evenly spread: bit-reversed (van der Corput)."""
    bits = max(1, (count - 1).bit_length())
    for number in range(2**bits):
        place = int(f"{number:0{bits}b}"[::-1], 2)
        if place < count:
            yield place
