"""The step `fit-head`: labelled vectors become a head, measured on rows it has not seen."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np

from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.heads.fit import FittedHead, LabelledVectors
from embedx.heads.fit import fit_head as fit
from embedx.heads.folder import check_target
from embedx.heads.saving import save_head
from embedx.heads.spec import HeadSpec
from embedx.steps.labels import RowLabels, read_labels
from embedx.steps.vectors import check_finite, open_filled_store
from embedx.store.reader import Store


def fit_head(spec: HeadSpec, progress: ProgressHook = no_progress) -> Report:
    """Fit a head on a store's vectors and write it.

    Args:
        spec: which store and label, where to, and how to measure.
        progress: is told what is happening.

    Raises:
        StoreError: no store, an empty one, a missing column, or an unusable output folder.
        UsageError: the labels leave nothing to learn from or to measure by.
        CorpusError: the table of labels cannot be read.
    """
    started = time.monotonic()
    check_target(spec.out)
    store = open_filled_store(spec.store)
    state = Progress("fit-head", note=f"reading {store.count:,} vectors")
    progress(state)
    rows = read_labels(store, spec.label, spec.labels, spec.group)
    data, training = _load(store, rows, spec)

    def show(note: str) -> None:
        state.note = note
        progress(state)

    fitted = fit(data, spec.test_size, spec.seed, show)
    encoder = {
        "ref": store.card.ref,
        "fingerprint": store.card.fingerprint,
        "modality": store.card.modality,
        "precision": store.precision,
        "spec": store.card.spec,
    }
    card = save_head(spec.out, fitted, encoder, training, spec.seed)
    report: Report = {
        "head": str(spec.out),
        "kind": card.kind,
        "label": spec.label,
        "n": training["n"],
        "n_unlabelled": training["n_unlabelled"],
        "classes": card.classes,
        "metrics": card.metrics,
        "evaluation": card.evaluation,
        "C": card.C,
        "C_curve": card.C_curve,
        "converged": card.converged,
        "store": {key: training[key] for key in ("version", "count")} | {"path": training["store"]},
        "encoder": {key: encoder[key] for key in ("ref", "fingerprint", "precision")},
        "threads": card.threads,
        "bytes": sum(file["bytes"] for file in card.files.values()),
        "seconds": round(time.monotonic() - started, 3),
        "warnings": _warnings(fitted, training),
    }
    return report


def _load(store: Store, rows: RowLabels, spec: HeadSpec) -> tuple[LabelledVectors, dict[str, Any]]:
    """Load the labelled rows, and say which they were."""
    ids, vectors = store.vectors()
    chosen = rows.labelled
    if len(chosen) < len(ids):
        ids, vectors = ids[chosen], vectors[chosen]
    check_finite(store.path, ids, vectors)
    labels = rows.labels[chosen]
    groups = None if rows.groups is None else rows.groups[chosen]
    parents = None if rows.parents is None else rows.parents[chosen]
    training = {
        "store": str(store.path),
        "version": store.version,
        "count": store.count,
        "label": spec.label,
        "labels": None if spec.labels is None else str(spec.labels),
        "group": spec.group or (None if rows.groups is None else "parent_id"),
        "test_size": spec.test_size,
        "n": len(chosen),
        "n_unlabelled": store.count - len(chosen),
        "n_unmatched": rows.n_unmatched,
        "rows_sha256": _rows_digest(ids, labels),
    }
    return LabelledVectors(vectors, labels, spec.label, groups, parents), training


def _rows_digest(ids: np.ndarray, labels: np.ndarray) -> str:
    """Return the sha256 over ids and labels, whatever the order of the rows."""
    digest = hashlib.sha256()
    for item, label in sorted(zip(ids, labels)):
        digest.update(f"{item}\t{label}\n".encode())
    return digest.hexdigest()


def _warnings(fitted: FittedHead, training: dict[str, Any]) -> list[str]:
    found = []
    if not fitted.converged:
        found.append(
            "the solver stopped before its tolerance was reached: the head may be a little worse than it could"
        )
    if fitted.c == fitted.curve[0].c:
        found.append(f"the smallest C ({fitted.c:g}) is the best: the vectors may hold nothing of the label")
    if training["n_unmatched"]:
        found.append(f"{training['n_unmatched']:,} ids of {training['labels']} are not in the store")
    return found
