"""The step `predict`: a head names the class of every vector of a store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from embedx.core.errors import StoreError, UsageError
from embedx.core.paths import replacing
from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.core.threads import cpu_quota, plan_threads
from embedx.heads.head import Head, open_head
from embedx.heads.parents import join_parents
from embedx.steps.vectors import check_finite, open_filled_store
from embedx.store.reader import Store
from embedx.store.schema import owner_ids

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("prediction", pa.string(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class PredictSpec:
    """What to predict.

    Attributes:
        store: the store.
        head: the head.
        out: the Parquet file to write; an older one is replaced.
        by_parent: one prediction for each text, where texts have rows of chunks: from the mean of the chunks'
            probabilities.
    """

    store: Path
    head: Path
    out: Path
    by_parent: bool = False

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".parquet":
            raise UsageError(f"--out {self.out} is no name of a Parquet file", f"Pass e.g. {self.out.stem}.parquet")
        if self.out.is_dir():
            raise UsageError(f"--out {self.out} is a folder", "Pass the name of a file, e.g. predictions.parquet")


def predict_store(spec: PredictSpec, progress: ProgressHook = no_progress) -> Report:
    """Predict every row of a store, or every text, in the store's order, with the memory of one batch.

    Args:
        spec: which head on which store, and where to.
        progress: is told how many rows are done.

    Raises:
        FingerprintMismatchError: store and head belong to different encoders.
        StoreError: no store, no head, or the file cannot be written.
    """
    started = time.monotonic()
    store, head = open_filled_store(spec.store), open_head(spec.head)
    head.check_encoder(store.card, str(spec.store))
    state = Progress("predict", total=store.count)
    counts: Counter[str] = Counter()
    batches: Iterable[tuple[np.ndarray, np.ndarray]] = _iterate_probabilities(
        store, head, spec.by_parent, state, progress
    )
    if spec.by_parent:
        batches = join_parents(batches)
    with (
        threadpool_limits(limits=plan_threads(cpu_quota()).blas),
        _new_file(spec.out) as path,
        pq.ParquetWriter(path, SCHEMA.with_metadata(_provenance(store, head)), compression="zstd") as writer,
    ):
        for ids, probabilities in batches:
            labels, highest = head.choose(probabilities)
            counts.update(labels)
            arrays = [pa.array(ids, pa.string()), pa.array(labels, pa.string()), pa.array(highest)]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=writer.schema))
    return {
        "out": str(spec.out),
        "n": counts.total(),
        "by_parent": spec.by_parent,
        "head": str(spec.head),
        "store": {"path": str(spec.store), "version": store.version, "count": store.count},
        "kind": head.card.kind,
        "counts": {label: counts[label] for label in head.classes},
        "bytes": spec.out.stat().st_size,
        "encoder": {key: head.card.encoder[key] for key in ("ref", "fingerprint", "precision")},
        "seconds": round(time.monotonic() - started, 3),
    }


def _iterate_probabilities(
    store: Store, head: Head, by_parent: bool, state: Progress, progress: ProgressHook
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids, or those of the texts that rows belong to, as (m,) object, and the probabilities (m, K)."""
    for batch, vectors in store.iterate_batches(["parent_id"] if by_parent else []):
        ids = batch.column("item_id").to_numpy(zero_copy_only=False)
        check_finite(store.path, ids, vectors)
        yield owner_ids(batch).to_numpy(zero_copy_only=False) if by_parent else ids, head.predict_proba(vectors)
        state.done += len(vectors)
        progress(state)


def _provenance(store: Store, head: Head) -> dict[str, str]:
    """The file's key-value metadata: what a prediction came from, wherever the file goes."""
    return {
        "embedx.store": str(store.path),
        "embedx.store_version": str(store.version),
        "embedx.head": str(head.path),
        "embedx.head_sha256": head.card.files["head.skops"]["sha256"],
        "embedx.fingerprint": head.card.encoder["fingerprint"],
    }


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes `path` on a clean exit; say what is wrong with the disk."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error})", "Check the disk and the permissions"
        ) from error
