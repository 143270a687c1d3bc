"""Building an index: one pass fills it, one pass measures it, then it is published."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

from embedx.core.contracts import EncoderCard
from embedx.core.digests import file_sha256
from embedx.core.errors import StoreError
from embedx.core.paths import write_json
from embedx.core.reports import Progress, ProgressHook, no_progress
from embedx.core.threads import memory_quota_bytes
from embedx.indexes.audit import measure_recall, measure_speed, plan_query_rows
from embedx.indexes.card import IndexCard
from embedx.indexes.choice import IndexChoice, choose_index
from embedx.indexes.flat import FlatIndex
from embedx.indexes.items import ItemsWriter
from embedx.indexes.metrics import METRICS, Metric
from embedx.indexes.spec import IndexSpec
from embedx.indexes.versions import VersionFiles, new_version


class VectorSource(Protocol):
    """What is indexed; `embedx.store.reader.Store` is one."""

    @property
    def path(self) -> Any:
        """Where it lies."""

    @property
    def version(self) -> int:
        """Its version."""

    @property
    def card(self) -> EncoderCard:
        """The encoder its vectors come from."""

    @property
    def precision(self) -> str:
        """The precision of its vectors."""

    @property
    def canaries(self) -> list[list[float]]:
        """Vectors of its encoder's canary items."""

    @property
    def dim(self) -> int:
        """Values of a vector."""

    @property
    def count(self) -> int:
        """Rows."""

    @property
    def columns(self) -> list[str]:
        """The carried columns."""

    def iterate_batches(
        self, columns: Sequence[str] = (), batch_rows: int = 16_384
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Yield record batches with their (m, dim) float32 vectors, in row order."""


@dataclass(frozen=True)
class BuiltIndex:
    """A published version.

    Attributes:
        files: where it lies.
        card: what it says of itself.
    """

    files: VersionFiles
    card: IndexCard


def build_index(store: VectorSource, spec: IndexSpec, progress: ProgressHook = no_progress) -> BuiltIndex:
    """Index a store's vectors, measure the result and publish it as the next version.

    At most one copy of the matrix is in memory: while it is filled it is FAISS's, while it is measured it is
    mapped from the file just written.

    Args:
        store: what to index.
        spec: what the index must be.
        progress: is told how many rows are done.

    Raises:
        UsageError: the structure is unknown or does not fit the memory.
        StoreError: the store is empty or holds a vector the metric cannot rank, the measured recall is below
            the target, or the index cannot be written. Nothing is published then.
        BusyError: another process is building this index.
    """
    if store.count == 0:
        raise StoreError(f"{store.path} holds no vectors", "Extract some items into it first")
    metric = METRICS[spec.metric]
    choice = choose_index(store.count, store.dim, spec.memory_bytes or memory_quota_bytes(), spec.factory)
    with new_version(spec.out) as pending:
        state = Progress("index", total=store.count)
        query_rows = plan_query_rows(store.count, store.dim)
        queries = _fill(store, metric, pending.files, query_rows, lambda done: _tell(progress, state, done, "reading"))
        _tell(progress, state, store.count, "measuring recall and speed")
        index = FlatIndex.open(pending.files.index, metric)
        recall = {
            **measure_recall(index, metric, queries, query_rows, _vectors(store)),
            "target": spec.recall,
        }
        if recall["value"] < spec.recall:
            raise StoreError(
                f"{choice.factory} reaches recall@{recall['k']} {recall['value']:.4f}, below {spec.recall:g}",
                "Nothing was published. Pass a lower --recall, or --factory Flat for exact search",
            )
        speed = measure_speed(index, queries)
        card = _card(store, choice, metric, pending.files, {"recall": recall, "speed": speed})
        write_json(pending.files.card, card.to_dict())
        return BuiltIndex(pending.publish(), card)


def _tell(progress: ProgressHook, state: Progress, done: int, note: str) -> None:
    state.done, state.note = done, note
    progress(state)


def _fill(
    store: VectorSource,
    metric: Metric,
    files: VersionFiles,
    query_rows: np.ndarray,
    told: Callable[[int], None],
) -> np.ndarray:
    """Write `index.faiss` and `ids.parquet`; returns the raw vectors (m, dim) of `query_rows`."""
    index = FlatIndex.allocate(store.count, store.dim, metric)
    queries = np.empty((len(query_rows), store.dim), dtype=np.float32)
    done = 0
    with ItemsWriter(files.ids) as items:
        for batch, vectors in store.iterate_batches(store.columns):
            stop = done + len(vectors)
            if stop > store.count:
                raise _miscounted(store)
            if problem := metric.problem(vectors):
                row, what = problem
                item = batch.column("item_id")[row].as_py()
                raise StoreError(f"the vector of item {item!r} in {store.path} {what}", "Remove or extract it again")
            index.put(done, vectors)
            items.add(batch)
            (positions,) = np.nonzero((query_rows >= done) & (query_rows < stop))
            queries[positions] = vectors[query_rows[positions] - done]
            done = stop
            told(done)
    if done != store.count:
        raise _miscounted(store)
    index.write(files.index)
    return queries


def _miscounted(store: VectorSource) -> StoreError:
    return StoreError(
        f"{store.path} version {store.version} promises {store.count:,} rows, its files hold another number",
        "Run embedx verify on the store",
    )


def _vectors(store: VectorSource) -> Iterator[np.ndarray]:
    for _, vectors in store.iterate_batches():
        yield vectors


def _card(
    store: VectorSource,
    choice: IndexChoice,
    metric: Metric,
    files: VersionFiles,
    measured: dict[str, dict[str, Any]],
) -> IndexCard:
    paths = (files.index, files.ids)
    encoder = store.card
    return IndexCard(
        factory=choice.factory,
        why=choice.why,
        metric=metric.name,
        score=metric.score,
        count=store.count,
        dim=store.dim,
        columns=list(store.columns),
        store={"path": str(store.path.resolve()), "version": store.version},
        encoder={
            "ref": encoder.ref,
            "fingerprint": encoder.fingerprint,
            "modality": encoder.modality,
            "precision": store.precision,
            "spec": encoder.spec,
            "space": encoder.space,
            "queries": encoder.queries,
            **({"canaries": store.canaries} if encoder.unseen else {}),
        },
        recall=measured["recall"],
        speed=measured["speed"],
        bytes=sum(path.stat().st_size for path in paths),
        files={path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths},
        libraries=_library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _library_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("embedx", "faiss-cpu", "numpy", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # e.g. run from a checkout, or faiss from conda
            continue
    return found
