"""How good predictions are: accuracy, macro F1, log loss, per class; labels the head never saw count as wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST_PROBABILITY = 1e-15
"""A probability that underflowed to 0 in float32 must not make the log loss infinite."""

MAX_CONFUSIONS = 10


@dataclass(frozen=True)
class ClassScore:
    """How one class fared.

    Attributes:
        label: the class.
        n: rows that have it.
        predicted: rows that were given it.
        precision: share of `predicted` that have it; 0 when nothing was predicted.
        recall: share of `n` that were given it; 0 when no row has it.
        f1: their harmonic mean.
    """

    label: str
    n: int
    predicted: int
    precision: float
    recall: float
    f1: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON shape of reports."""
        return {
            "label": self.label,
            "n": self.n,
            "predicted": self.predicted,
            "precision": round(self.precision, 6),
            "recall": round(self.recall, 6),
            "f1": round(self.f1, 6),
        }


@dataclass(frozen=True)
class Scores:
    """Metrics over labelled rows.

    Attributes:
        n: rows judged.
        accuracy: share of rows predicted right; a label that was never trained is always wrong.
        macro_f1: mean F1 of the classes that occur among labels or predictions, as scikit-learn counts it.
        log_loss: mean of -ln p(label) over rows whose label the head knows; None when there is none.
        majority: share of the most frequent label: what guessing would reach.
        per_class: one score per class that occurs, in the order of the labels' names.
        confusions: the most frequent mistakes, (label, predicted, n).
        unseen: labels that were never trained -> rows that have them.
    """

    n: int
    accuracy: float
    macro_f1: float
    log_loss: float | None
    majority: float
    per_class: tuple[ClassScore, ...]
    confusions: tuple[tuple[str, str, int], ...]
    unseen: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the report key `metrics`."""
        return {
            "accuracy": round(self.accuracy, 6),
            "macro_f1": round(self.macro_f1, 6),
            "log_loss": None if self.log_loss is None else round(self.log_loss, 6),
            "n": self.n,
            "majority": round(self.majority, 6),
        }

    def details(self) -> dict[str, Any]:
        """Return the report keys beside `metrics`."""
        return {
            "per_class": [score.to_dict() for score in self.per_class],
            "confusions": [{"label": label, "predicted": predicted, "n": n} for label, predicted, n in self.confusions],
            "unseen": self.unseen,
        }


class Tally:
    """Collects predictions batch by batch and scores them at the end; eight bytes a row.

    Args:
        classes: the head's classes, in the order of its probabilities.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._names = list(classes)
        self._codes = {label: code for code, label in enumerate(classes)}
        self._n_known = len(self._names)
        self._true: list[np.ndarray] = []
        self._predicted: list[np.ndarray] = []
        self._probability: list[np.ndarray] = []

    def add(self, labels: Sequence[str] | np.ndarray, probabilities: np.ndarray) -> None:
        """Add rows.

        Args:
            labels: the rows' labels.
            probabilities: (n, K) float32, what the head gives.
        """
        true = np.fromiter((self._code(label) for label in labels), dtype=np.int32, count=len(labels))
        column = np.minimum(true, self._n_known - 1)
        self._true.append(true)
        self._predicted.append(probabilities.argmax(axis=1).astype(np.int32))
        self._probability.append(probabilities[np.arange(len(true)), column].astype(np.float32))

    def _code(self, label: str) -> int:
        code = self._codes.get(label)
        if code is None:
            code = self._codes[label] = len(self._names)
            self._names.append(label)
        return code

    def scores(self) -> Scores:
        """Score everything that was added.

        Raises:
            ValueError: nothing was added.
        """
        if not sum(len(part) for part in self._true):
            raise ValueError("no rows to score")
        true, predicted = np.concatenate(self._true), np.concatenate(self._predicted)
        return _scores(true, predicted, np.concatenate(self._probability), self._names, self._n_known)


def _scores(true: np.ndarray, predicted: np.ndarray, probability: np.ndarray, names: list[str], n_known: int) -> Scores:
    n, n_names = len(true), len(names)
    right = true == predicted
    support = np.bincount(true, minlength=n_names)
    given = np.bincount(predicted, minlength=n_names)
    hits = np.bincount(true[right], minlength=n_names)
    f1 = 2 * hits / np.maximum(support + given, 1)
    occurs = np.flatnonzero(support + given)
    known = true < n_known
    losses = -np.log(np.maximum(probability[known].astype(np.float64), SMALLEST_PROBABILITY))
    per_class = (
        ClassScore(
            label=names[code],
            n=int(support[code]),
            predicted=int(given[code]),
            precision=float(hits[code] / max(given[code], 1)),
            recall=float(hits[code] / max(support[code], 1)),
            f1=float(f1[code]),
        )
        for code in occurs
    )
    pairs, counts = np.unique(np.stack([true[~right], predicted[~right]], axis=1), axis=0, return_counts=True)
    worst = np.argsort(-counts, kind="stable")[:MAX_CONFUSIONS]
    return Scores(
        n=n,
        accuracy=float(right.mean()),
        macro_f1=float(f1[occurs].mean()),
        log_loss=float(losses.mean()) if len(losses) else None,
        majority=float(support.max() / n),
        per_class=tuple(sorted(per_class, key=lambda score: score.label)),
        confusions=tuple((names[pairs[i, 0]], names[pairs[i, 1]], int(counts[i])) for i in worst),
        unseen={names[code]: int(support[code]) for code in range(n_known, n_names)},
    )
