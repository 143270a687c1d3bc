"""What an extraction would do, without doing it: `--dry-run` plans, `--estimate` also embeds a sample."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from embedx.core.errors import CorpusError
from embedx.core.meter import Meter, current_meter, metered
from embedx.core.places import Place
from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.core.specs import ExtractSpec, Resources
from embedx.engine.cluster import Cluster, open_cluster
from embedx.engine.interrupts import draining_on_signals
from embedx.engine.window import Task, Window
from embedx.steps.bottleneck import describe_bottleneck
from embedx.steps.extract_report import report_plans
from embedx.steps.extract_shard import Sample, sample_rows
from embedx.steps.flight import Extraction, Run, check_workers, failure_of, make_jobs, try_encoder
from embedx.steps.opening import open_all
from embedx.steps.plan import Planning
from embedx.steps.planning import make_plans
from embedx.steps.publishing import Publication
from embedx.store import delta, runs
from embedx.store.files import open_files
from embedx.store.layout import RunLayout, StoreLayout

SAMPLE_SECONDS = 30.0

SLICE_ITEMS = {"text": 1024, "image": 64}
"""Items of one sampling task: enough that texts of like length find each other, few enough to end on time."""


def plan_extract(specs: Sequence[ExtractSpec], out: Place, progress: ProgressHook = no_progress) -> Report:
    """Say what an extraction would do, without writing to the stores (`--dry-run`).

    Args:
        specs: one for each store.
        out: the store, or the folder of several.
        progress: called with the present state.
    """
    with TemporaryDirectory(prefix="embedx-plan-") as folder:
        return report_plans(_plan(specs, Extraction(out, Resources(), progress), Path(folder)))


def estimate_extract(
    specs: Sequence[ExtractSpec],
    out: Place,
    resources: Resources | None = None,
    progress: ProgressHook = no_progress,
    seconds: float = SAMPLE_SECONDS,
) -> Report:
    """Plan, embed a sample spread over the plan for some seconds on the workers, and say how long all would take.

    Returns:
        The report of `plan_extract` with `estimate`: sampled, failed, items_per_s, seconds, bytes, bottleneck,
        precision, runtime, and truncated_share of texts; of several stores the last three are in each one's
        `estimate`, and failed and bytes are of all together. `seconds` and `bytes` are of the whole run.

    Raises:
        CorpusError: there is nothing to embed.
    """
    extraction = Extraction(out, resources or Resources(), progress)
    with metered(Meter(extraction.resources.max_requests)):
        return _estimate(specs, extraction, seconds)


def _estimate(specs: Sequence[ExtractSpec], extraction: Extraction, seconds: float) -> Report:
    resources, progress = extraction.resources, extraction.progress
    with _beside(extraction.root) as place, draining_on_signals() as interrupts:
        _plan(specs, extraction, place)
        to_embed = sum(shard.rows for shard in extraction.shards)
        if not to_embed:
            listed = extraction.runs[0].publication.plan.listed
            raise CorpusError(f"nothing is left to embed of {listed:,} listed items", "There is nothing to do")
        progress(Progress("extract", to_embed, note="starting workers"))
        with open_cluster(resources) as cluster:
            extraction.jobs = make_jobs(extraction, cluster)
            for job in extraction.jobs:
                check_workers(cluster, job)
            for store, run in enumerate(extraction.runs):
                if run.publication.plan.shard_rows:
                    run.preflight = tried = try_encoder(extraction, store, cluster, interrupts)
                    job = extraction.jobs[store]
                    extraction.jobs[store] = replace(job, precision=tried.precision, jpeg_side=tried.jpeg_side)
            sampled = _sample(extraction, cluster, seconds)
            interrupts.check("stopped while sampling", "Nothing was written")
        usage = current_meter().sums()
    report = report_plans(extraction)
    kind = extraction.runs[0].corpus.kind
    estimate = sampled.forecast(to_embed, kind)
    for store, one in zip(range(len(extraction.runs)), report.get("stores", [report])):
        flown = extraction.runs[store].preflight
        if flown is not None:
            one["estimate"] = {
                "precision": flown.precision,
                "why_precision": flown.why,
                "runtime": flown.runtime,
                **({"truncated_share": sampled.truncated_share(store)} if kind == "text" else {}),
            }
    report["estimate"] = {**estimate, **report.get("estimate", {}), **({"usage": usage} if usage else {})}
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


def _plan(specs: Sequence[ExtractSpec], extraction: Extraction, folder: Place) -> Extraction:
    progress = extraction.progress
    plannings = []
    for number, opened in enumerate(open_all(specs)):
        store, spec = StoreLayout(opened.spec.out), opened.spec
        snapshot = delta.open_snapshot(spec.out)
        history = runs.read_history(store, snapshot)
        plannings.append(
            Planning(spec, opened.corpus, opened.card, opened.store_card, snapshot, history, store, progress)
        )
        extraction.layouts.append(RunLayout(folder, f"plan-{number}"))
    plans, extraction.shards = make_plans(plannings, extraction.layouts)
    for planning, plan in zip(plannings, plans):
        publication = Publication(
            StoreLayout(folder), plan, planning.history, planning.store_card, planning.spec.max_failures
        )
        extraction.runs.append(Run(planning.spec, planning.card, planning.corpus, publication))
    return extraction


@dataclass(frozen=True)
class _Sampled:
    """The samples of each task, with the part of each store in it, and how long they took together."""

    samples: list[list[tuple[int, Sample]]]
    seconds: float

    def forecast(self, planned: int, kind: str) -> dict[str, object]:
        items = sum(task[0][1].items for task in self.samples)
        every = [sample for task in self.samples for _, sample in task]
        stages: Counter[str] = Counter()
        for sample in every:
            stages.update(sample.seconds)  # type: ignore[arg-type]
        share = planned / items
        return {
            "sampled": items,
            "failed": sum(sample.failed for sample in every),
            "items_per_s": round(items / self.seconds, 1),
            "seconds": round(self.seconds * share, 1),
            "bytes": round(sum(sample.file_bytes for sample in every) * share),
            "bottleneck": describe_bottleneck(stages, kind),
        }

    def truncated_share(self, store: int) -> float:
        """Return the part of the distinct texts that are longer than a store's encoder reads."""
        own = [sample for task in self.samples for place, sample in task if place == store]
        counts: Counter[str] = Counter(items=sum(sample.items for sample in own))
        for sample in own:
            counts.update(sample.counts)
        read = counts["items"] - counts["copies"]
        return round(counts["truncated"] / read, 4) if read else 0.0


def _sample(extraction: Extraction, cluster: Cluster, seconds: float) -> _Sampled:
    """Embed slices of the plan for some seconds, as many at a time as a run would."""
    samples: list[list[tuple[int, Sample]]] = []
    started = time.monotonic()

    def should_stop() -> bool:
        return bool(samples) and time.monotonic() - started > seconds

    rows = sum(shard.rows for shard in extraction.shards)
    state = Progress("extract", rows, note=f"embedding a sample for {seconds:.0f} s")
    for outcome in Window(cluster.client, cluster.slots, should_stop).iterate(_slices(extraction)):
        if outcome is not None and outcome.error is not None:
            raise failure_of(outcome) from outcome.error
        if outcome is not None:
            stores = [part.store for part in outcome.task.arguments[0]]
            samples.append(list(zip(stores, outcome.result)))
            state.done += outcome.result[0].items
        extraction.progress(state)
    return _Sampled(samples, time.monotonic() - started)


def _slices(extraction: Extraction) -> Iterator[Task]:
    """Yield sampling tasks in an order that is spread over the plan from the first one on."""
    size = SLICE_ITEMS[extraction.jobs[0].kind]
    slices = [
        (shard, start, min(shard.rows, start + size))
        for shard in extraction.shards
        for start in range(0, shard.rows, size)
    ]
    for place in _spread(len(slices)):
        shard, start, stop = slices[place]
        parts = extraction.parts(shard)
        yield Task(f"sample-{parts[0].name}-{start}", sample_rows, (parts, start, stop))


def _spread(count: int) -> Iterator[int]:
    """Yield 0..count-1 once each, any first few of them evenly spread: bit-reversed (van der Corput)."""
    bits = max(1, (count - 1).bit_length())
    for number in range(2**bits):
        place = int(f"{number:0{bits}b}"[::-1], 2)
        if place < count:
            yield place
