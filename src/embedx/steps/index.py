"""The step `index`: a store becomes searchable."""

from __future__ import annotations

import time

from embedx.core.reports import ProgressHook, Report, no_progress
from embedx.indexes.build import build_index
from embedx.indexes.spec import IndexSpec
from embedx.store.reader import open_store


def index_store(spec: IndexSpec, progress: ProgressHook = no_progress) -> Report:
    """Build the next version of an index over a store.

    Args:
        spec: which store, where to, and what the index must be.
        progress: is told how many rows are done.

    Raises:
        UsageError: the structure is unknown or does not fit the memory.
        StoreError: no store, an empty one, an unusable output folder, or recall below the target.
        BusyError: another process is building this index.
    """
    started = time.monotonic()
    built = build_index(open_store(spec.store), spec, progress)
    card = built.card
    return {
        "index": str(spec.out),
        "version": built.files.number,
        "factory": card.factory,
        "why": card.why,
        "metric": card.metric,
        "count": card.count,
        "dim": card.dim,
        "columns": card.columns,
        "recall": card.recall,
        "qps": card.speed["qps"],
        "latency_ms": card.speed["latency_ms"],
        "bytes": card.bytes,
        "seconds": round(time.monotonic() - started, 3),
        "store": card.store,
        "encoder": {key: card.encoder[key] for key in ("ref", "fingerprint", "precision")},
    }
