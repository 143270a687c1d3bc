"""The step `evaluate`: how well a head does on a labelled store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.core.threads import cpu_quota, plan_threads
from embedx.heads.head import Head, open_head
from embedx.heads.metrics import Tally
from embedx.heads.parents import join_parents
from embedx.steps.labels import RowLabels, read_labels
from embedx.steps.vectors import check_finite, open_filled_store
from embedx.store.reader import Store


@dataclass(frozen=True)
class EvaluateSpec:
    """What to judge.

    Attributes:
        store: the store.
        head: the head.
        label: the column of true labels.
        labels: a table with ids and labels; None takes the label from the store's carried columns.
        by_parent: judge each text once, where texts have rows of chunks: by the mean of the chunks' probabilities.
    """

    store: Path
    head: Path
    label: str
    labels: Path | None = None
    by_parent: bool = False


def evaluate_head(spec: EvaluateSpec, progress: ProgressHook = no_progress) -> Report:
    """Judge a head on the labelled rows of a store, batch by batch.

    Labels that the head was never trained on count as wrong and are named.

    Args:
        spec: which head on which store, and where the truth is.
        progress: is told how many rows are done.

    Raises:
        FingerprintMismatchError: store and head belong to different encoders.
        StoreError: no store, no head, or a missing column.
        UsageError: no row has a label.
        CorpusError: the table of labels cannot be read.
    """
    started = time.monotonic()
    store, head = open_filled_store(spec.store), open_head(spec.head)
    head.check_encoder(store.card, str(spec.store))
    rows = read_labels(store, spec.label, spec.labels)
    state = Progress("evaluate", total=store.count)
    tally = Tally(head.classes)
    with threadpool_limits(limits=plan_threads(cpu_quota()).blas):
        judged = _iterate_judged(store, head, rows, state, progress)
        if spec.by_parent and rows.parents is not None:
            parents = rows.parents
            label_of = dict(zip(parents, rows.labels))  # of all its chunks
            for texts, means in join_parents((parents[known], probabilities) for known, probabilities in judged):
                tally.add([label_of[text] for text in texts], means)
        else:
            for known, probabilities in judged:
                tally.add(rows.labels[known], probabilities)
    scores = tally.scores()
    return {
        "head": str(spec.head),
        "store": {"path": str(spec.store), "version": store.version, "count": store.count},
        "kind": head.card.kind,
        "label": spec.label,
        "n": scores.n,
        "by_parent": spec.by_parent,
        "n_unlabelled": store.count - len(rows.labelled),
        "n_unmatched": rows.n_unmatched,
        "classes": head.classes,
        "metrics": scores.to_dict(),
        **scores.details(),
        "encoder": {key: head.card.encoder[key] for key in ("ref", "fingerprint", "precision")},
        "seconds": round(time.monotonic() - started, 3),
    }


def _iterate_judged(
    store: Store, head: Head, rows: RowLabels, state: Progress, progress: ProgressHook
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (m,) int64, the rows that have a label, and the probabilities (m, K) that the head gives them."""
    for _, vectors in store.iterate_batches():
        start, stop = state.done, state.done + len(vectors)
        known = np.array([row for row in range(start, stop) if rows.labels[row] is not None], dtype=np.int64)
        if len(known):
            part = vectors if len(known) == len(vectors) else vectors[known - start]
            check_finite(store.path, rows.ids[known], part)
            yield known, head.predict_proba(part)
        state.done = stop
        progress(state)
