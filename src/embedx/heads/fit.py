"""From labelled vectors to an estimator: scale, split, choose C, measure on held-out rows, refit on all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer
from threadpoolctl import threadpool_limits

from embedx.core.errors import EmbedxError, UsageError
from embedx.core.threads import cpu_quota, plan_threads
from embedx.heads.metrics import Scores, Tally
from embedx.heads.parents import join_parents
from embedx.heads.splits import plan_folds, plan_holdout
from embedx.heads.sweep import CurvePoint, Sweep, fit_logistic, sweep_c

N_FOLDS = 4
"""Two rounds on two cores; a fifth fold would cost a third round."""

MAX_SWEEP_ROWS = 50_000
"""More rows are sampled for the search: the best C hardly depends on their number (clinc150: half a decade
from 3,000 rows to 12,000), because it is the variance of a prior on the weights."""

FINAL_TOLERANCE = 1e-5
"""clinc150 gains 0.3 points over 1e-4; another decade costs four times the time and gains nothing."""

FINAL_MAX_ITERATIONS = 1_000

ROWS_AT_A_TIME = 8_192

MAX_CLASSES_PER_ROW = 0.5
FEW_CLASSES = 100
"""Beyond both, the column is rather an id or a free text than a label."""


RECIPE = {
    "features": "length 1; then, inside the weights: minus the mean, over one number, so that the mean variance is 1",
    "model": "multinomial logistic regression with an L2 penalty, L-BFGS in float32",
    "C": "refers to these features; head.skops holds the weights for vectors of length 1",
    "selection": f"lowest log loss of {N_FOLDS}-fold cross-validation: whole decades, then half and quarter decades",
    "tolerance": FINAL_TOLERANCE,
    "max_iterations": FINAL_MAX_ITERATIONS,
}
"""How every head is made; the card's key `recipe`."""


@dataclass(frozen=True)
class LabelledVectors:
    """What a head learns from.

    Attributes:
        vectors: (n, dim) float32; overwritten by the fit, to need no second copy.
        labels: (n,) object array of str.
        label: what the labels are called, for messages.
        groups: (n,) object array of str, or None.
        parents: (n,) object array of str, the text that each row is a chunk of, those of a text one after the other;
            None where each row is an item.
    """

    vectors: np.ndarray
    labels: np.ndarray
    label: str = "label"
    groups: np.ndarray | None = None
    parents: np.ndarray | None = None


@dataclass(frozen=True)
class Evaluation:
    """How the metrics were measured.

    Attributes:
        method: `hold-out` or `cross-validation`.
        scores: the metrics.
        n_train: rows that were not held out.
        n_sweep: those of them that C was chosen on.
        n_groups: distinct groups, or None.
        by_parent: the metrics of whole texts, by the means of their chunks' probabilities; None where each row is an
            item.
    """

    method: str
    scores: Scores
    n_train: int
    n_sweep: int
    n_groups: int | None
    by_parent: Scores | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report key `evaluation`."""
        how = {
            "hold-out": "rows held out before anything was chosen; the saved head was then refitted on all rows",
            "cross-validation": "out-of-fold predictions at the chosen C, which saw the same rows: slightly optimistic",
        }
        return {
            "method": self.method,
            "how": how[self.method],
            "n_train": self.n_train,
            "n_test": self.scores.n,
            "n_sweep": self.n_sweep,
            "n_folds": N_FOLDS,
            "n_groups": self.n_groups,
            "by_parent": None if self.by_parent is None else self.by_parent.to_dict(),
        }


@dataclass(frozen=True)
class FittedHead:
    """The outcome of a fit.

    Attributes:
        estimator: raw vectors (n, dim) -> labels and probabilities; fitted on all rows.
        classes: in the order of the probabilities' columns.
        c: the chosen C.
        curve: the C curve.
        evaluation: metrics of the same recipe on rows it had not seen.
        converged: whether the last fit reached its tolerance.
        n_threads: fits at a time; each has one BLAS thread.
    """

    estimator: Pipeline
    classes: tuple[str, ...]
    c: float
    curve: tuple[CurvePoint, ...]
    evaluation: Evaluation
    converged: bool
    n_threads: int


@dataclass(frozen=True)
class Scaling:
    """What was done to unit-length vectors: minus the mean, over the spread."""

    mean: np.ndarray
    spread: float


def scale_in_place(vectors: np.ndarray) -> Scaling:
    """Bring vectors to length 1, subtract their mean, divide by one number: the mean variance becomes 1.

    Unit length, because it lowered the log loss of photos by 1 to 3 % and texts have it already. One number
    for all dimensions, because it only fixes the unit of C, and the mean is absorbed by the intercept: using
    all rows here, held-out ones too, tells the fit nothing of them. Scaling each dimension by its own was
    better on one set of photo features and worse on the other, within the noise.

    Args:
        vectors: (n, dim) float32, overwritten.

    Raises:
        EmbedxError: all vectors are the same.
    """
    total = np.zeros(vectors.shape[1], dtype=np.float64)
    for part in _parts(vectors):
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        part /= np.where(norms > 0, norms, 1)
        total += part.sum(axis=0, dtype=np.float64)
    mean = total / len(vectors)
    squares = 0.0
    for part in _parts(vectors):
        part -= mean.astype(np.float32)
        squares += float(np.square(part, dtype=np.float64).sum())
    spread = float(np.sqrt(squares / vectors.size))
    if spread < 1e-7:
        raise EmbedxError("all vectors are the same", "Check the corpus: there is nothing a head could tell apart")
    for part in _parts(vectors):
        part /= np.float32(spread)
    return Scaling(mean, spread)


def _parts(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[start : start + ROWS_AT_A_TIME] for start in range(0, len(vectors), ROWS_AT_A_TIME)]


def fold_scaling(model: LogisticRegression, scaling: Scaling, classes: tuple[str, ...]) -> Pipeline:
    """Return an estimator of raw vectors: length 1, then one linear map that contains mean and spread.

    Args:
        model: fitted on scaled vectors and class numbers.
        scaling: what `scale_in_place` returned.
        classes: names of the class numbers.
    """
    coefficients = model.coef_.astype(np.float64) / scaling.spread
    folded = LogisticRegression(C=model.C, tol=model.tol, max_iter=model.max_iter)
    folded.coef_ = coefficients.astype(np.float32)
    folded.intercept_ = (model.intercept_ - coefficients @ scaling.mean).astype(np.float32)
    folded.classes_ = np.array([classes[code] for code in model.classes_], dtype=object)
    folded.n_iter_ = model.n_iter_
    folded.n_features_in_ = model.n_features_in_
    return Pipeline([("normalize", Normalizer()), ("classify", folded)])


def fit_head(
    data: LabelledVectors, test_size: float, seed: int, on_progress: Callable[[str], None] = lambda note: None
) -> FittedHead:
    """Fit a logistic regression whose C is cross-validated, measure it, and refit it on all rows.

    Args:
        data: rows with labels; its vectors are overwritten.
        test_size: share of rows to hold out; 0 measures by cross-validation.
        seed: of the splits. The fits themselves are deterministic.
        on_progress: told what is happening.

    Raises:
        UsageError: the labels or groups leave nothing to learn from or to judge by.
        EmbedxError: the vectors are all the same.
    """
    classes, codes = encode(data.labels)
    check_labels(codes, classes, data.label)
    groups = None if data.groups is None else encode(data.groups)[1]
    held_out = plan_holdout(codes, test_size, seed, groups) if test_size else np.zeros(len(codes), dtype=bool)
    if test_size:
        check_holdout(held_out, codes, test_size, groups)
    train = np.flatnonzero(~held_out)
    n_threads = cpu_quota()
    with threadpool_limits(limits=plan_threads(n_threads).blas), warnings.catch_warnings():
        # What did not converge is said in the report; along the path to C it is of no consequence.
        warnings.simplefilter("ignore", ConvergenceWarning)
        x = data.vectors
        scaling = scale_in_place(x)
        rows, folds = plan_sweep(codes, train, groups, seed)
        sweep = _choose_c(x, codes, rows, folds, n_threads, on_progress)
        on_progress(f"C = {sweep.c:g}: fitting on {len(codes):,} rows")
        with ThreadPoolExecutor(min(2, n_threads)) as pool:
            final = pool.submit(_final_fit, x, codes, sweep.c)
            if test_size:
                judged = pool.submit(_final_fit, x[train], codes[train], sweep.c).result()
                names = [classes[code] for code in judged.classes_]
                scores, by_parent = _score(_iterate_held_out(judged, x, np.flatnonzero(held_out)), data, names)
            else:
                scores, by_parent = _score(_iterate_out_of_fold(sweep, rows, len(classes)), data, classes)
            model = final.result()
    return FittedHead(
        estimator=fold_scaling(model, scaling, classes),
        classes=classes,
        c=sweep.c,
        curve=sweep.curve,
        evaluation=Evaluation(
            method="hold-out" if test_size else "cross-validation",
            scores=scores,
            n_train=len(train),
            n_sweep=len(rows),
            n_groups=None if groups is None else int(groups.max()) + 1,
            by_parent=by_parent,
        ),
        converged=int(model.n_iter_[0]) < FINAL_MAX_ITERATIONS,
        n_threads=n_threads,
    )


def encode(values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the sorted distinct strings and each row's position among them, (n,) int64."""
    names = tuple(sorted(set(values)))
    codes = {name: code for code, name in enumerate(names)}
    return names, np.fromiter((codes[value] for value in values), dtype=np.int64, count=len(values))


def check_labels(codes: np.ndarray, classes: tuple[str, ...], label: str) -> None:
    """Refuse labels that nothing can be learned from.

    Raises:
        UsageError: one class, no class with two rows, or nearly as many classes as rows.
    """
    if len(classes) < 2:
        raise UsageError(
            f"the label {label!r} has one class only ({classes[0]!r}, {len(codes):,} rows)",
            "A head needs at least two classes: label items of another class, or name another column",
        )
    if len(classes) > max(FEW_CLASSES, MAX_CLASSES_PER_ROW * len(codes)):
        raise UsageError(
            f"the label {label!r} has {len(classes):,} different values in {len(codes):,} rows",
            "It looks like an id or a free text: name a column of categories",
        )
    if int(np.bincount(codes).max()) < 2:
        raise UsageError(
            f"every class of the label {label!r} has a single row",
            "Label at least two items of some class, so that one can judge what the other has taught",
        )


def check_holdout(held_out: np.ndarray, codes: np.ndarray, test_size: float, groups: np.ndarray | None) -> None:
    """Refuse a hold-out that nobody could learn or measure from.

    Raises:
        UsageError: nothing is held out, or what is left has one class.
    """
    if not held_out.any():
        why = f"{len(codes):,} rows" if groups is None else f"{int(groups.max()) + 1:,} groups"
        raise UsageError(
            f"--test-size {test_size:g} of {why} leaves nothing to hold out",
            "Label more items, or pass --test-size 0 to measure by cross-validation alone",
        )
    if len(np.unique(codes[~held_out])) < 2:
        raise UsageError(
            f"with --test-size {test_size:g} only one class is left to train on",
            "Pass a smaller --test-size" + ("" if groups is None else ", or a --group of more and smaller groups"),
        )


def plan_sweep(
    codes: np.ndarray, train: np.ndarray, groups: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the rows that the search for C uses, and deal them into folds.

    Args:
        codes: (n,) int, class of each row.
        train: (m,) int, rows that are not held out.
        groups: (n,) int, group of each row, or None.
        seed: of the shuffles.

    Returns:
        rows (k,) int and their folds (k,) int.
    """
    rows = train
    if len(train) > MAX_SWEEP_ROWS:
        _, present = np.unique(codes[train], return_inverse=True)
        rows = train[plan_holdout(present, MAX_SWEEP_ROWS / len(train), seed)]
    own_groups = None if groups is None else np.unique(groups[rows], return_inverse=True)[1]
    return rows, plan_folds(codes[rows], N_FOLDS, seed, own_groups)


def _choose_c(
    x: np.ndarray,
    codes: np.ndarray,
    rows: np.ndarray,
    folds: np.ndarray,
    n_threads: int,
    on_progress: Callable[[str], None],
) -> Sweep:
    on_progress(f"choosing C on {len(rows):,} rows")
    try:
        return sweep_c(x[rows], codes[rows], folds, n_threads, lambda n: on_progress(f"choosing C: {n} values tried"))
    except ValueError as error:
        raise UsageError(
            f"C cannot be cross-validated on {len(rows):,} rows ({error})",
            "Label more items of each class, or pass a --group of more and smaller groups",
        ) from error


def _final_fit(x: np.ndarray, codes: np.ndarray, c: float) -> LogisticRegression:
    return fit_logistic(x, codes, c, FINAL_TOLERANCE, FINAL_MAX_ITERATIONS)


_Judged = Iterator[tuple[np.ndarray, np.ndarray]]
"""(m,) int64 rows, ascending, and their probabilities (m, K) float32."""


def _iterate_held_out(model: LogisticRegression, x: np.ndarray, rows: np.ndarray) -> _Judged:
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        part = rows[start : start + ROWS_AT_A_TIME]
        yield part, model.predict_proba(x[part])


def _iterate_out_of_fold(sweep: Sweep, rows: np.ndarray, n_classes: int) -> _Judged:
    for part in sweep.out_of_fold:
        probabilities = np.zeros((len(part.rows), n_classes), dtype=np.float32)
        probabilities[:, part.classes] = part.probabilities
        yield rows[part.rows], probabilities


def _score(judged: _Judged, data: LabelledVectors, names: Sequence[str]) -> tuple[Scores, Scores | None]:
    """Score rows and, where they are chunks, the texts that they make up; `names` are those of the probabilities."""
    of_rows = Tally(names)

    def tallied() -> _Judged:
        for rows, probabilities in judged:
            of_rows.add(data.labels[rows], probabilities)
            yield rows, probabilities

    if data.parents is None:
        for _ in tallied():
            pass
        return of_rows.scores(), None
    parents, of_texts = data.parents, Tally(names)
    label_of = dict(zip(parents, data.labels))  # of all chunks of a text
    for texts, means in join_parents((parents[rows], probabilities) for rows, probabilities in tallied()):
        of_texts.add([label_of[text] for text in texts], means)
    return of_rows.scores(), of_texts.scores()
