"""The strength of regularisation: coarse-to-fine search for C by cross-validated log loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from embedx.heads.metrics import SMALLEST_PROBABILITY

STEPS_PER_DECADE = 4
"""Resolution of the search: C is 10 ** (step / 4) for an integer step."""

COARSE_STEPS = tuple(range(-16, 9, STEPS_PER_DECADE))
"""1e-4 to 1e2. On vectors scaled to mean variance 1 the best C was 0.03 (photos) to 3 (150 intents)."""

LOWEST_STEP, HIGHEST_STEP = -24, 16
"""1e-6 to 1e4: beyond, the head is a constant, or data that are perfectly separable make it ever more certain."""

PATH_TOLERANCE = 1e-4
"""Enough to rank values of C: up to the best one, log loss within 3 % of the converged one (clinc150, clothing).

Beyond it the path hardly moves any more, so its weak end is flat where converged fits would get worse."""

PATH_MAX_ITERATIONS = 300


def c_of(step: int) -> float:
    """Return the C of a step of the search."""
    return float(f"{10.0 ** (step / STEPS_PER_DECADE):.6g}")


def next_steps(losses: Mapping[int, float]) -> list[int]:
    """Plan which values of C to try next: whole decades, beyond an edge that is best, then around the best.

    A pure function of what is known, so the search is the same on every machine. Ties go to the stronger
    regularisation.

    Args:
        losses: step -> mean log loss of the steps tried so far.

    Returns:
        Steps to try, ascending; empty when the search is over.
    """
    if not losses:
        return list(COARSE_STEPS)
    best = best_step(losses)
    if best == min(losses) and best > LOWEST_STEP:
        return [best - STEPS_PER_DECADE]
    if best == max(losses) and best < HIGHEST_STEP:
        return [best + STEPS_PER_DECADE]
    for distance in (STEPS_PER_DECADE // 2, 1):
        around = [
            step
            for step in (best - distance, best + distance)
            if step not in losses and LOWEST_STEP <= step <= HIGHEST_STEP
        ]
        if around:
            return around
    return []


def best_step(losses: Mapping[int, float]) -> int:
    """Return the step of the lowest loss, the smallest C among equals."""
    return min(losses, key=lambda step: (losses[step], step))


class CurvePoint(NamedTuple):
    """One value of C, cross-validated.

    Attributes:
        c: inverse strength of regularisation.
        log_loss: mean over all validation rows.
        standard_error: of the folds' means; None with one fold.
        accuracy: over all validation rows.
        n_iterations: most iterations any fold's fit took; 0 says that the fit at the next smaller C was
            already within the tolerance.
    """

    c: float
    log_loss: float
    standard_error: float | None
    accuracy: float
    n_iterations: int

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of the report key `C_curve`."""
        error = self.standard_error
        return {
            "C": self.c,
            "log_loss": round(self.log_loss, 6),
            "standard_error": None if error is None else round(error, 6),
            "accuracy": round(self.accuracy, 6),
            "n_iterations": self.n_iterations,
        }


class OutOfFold(NamedTuple):
    """What one fold's model says of the rows it was not trained on.

    Attributes:
        rows: (m,) int64, positions in the data.
        classes: (k,) int64, classes of the fold's training part.
        probabilities: (m, k) float32.
    """

    rows: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Sweep:
    """The outcome of the search.

    Attributes:
        c: the chosen C.
        curve: what was tried, by ascending C.
        out_of_fold: predictions at the chosen C, one entry per fold.
    """

    c: float
    curve: tuple[CurvePoint, ...]
    out_of_fold: tuple[OutOfFold, ...]


def fit_logistic(
    x: np.ndarray, codes: np.ndarray, c: float, tolerance: float, max_iterations: int, start: Any = None
) -> LogisticRegression:
    """Fit a multinomial logistic regression with L-BFGS, in the precision of `x`.

    Args:
        x: (n, dim) float32 features.
        codes: (n,) int classes; at least two occur.
        c: inverse strength of regularisation.
        tolerance: largest component of the gradient of the mean loss at the end.
        max_iterations: stop there at the latest.
        start: (coefficients, intercepts) to start from; None starts from zero.
    """
    model = LogisticRegression(C=c, tol=tolerance, max_iter=max_iterations, warm_start=start is not None)
    if start is not None:
        model.coef_, model.intercept_ = start[0].copy(), start[1].copy()
    return model.fit(x, codes)


class _Fold:
    """One fold's training and validation rows, and its path of solutions."""

    def __init__(self, x: np.ndarray, codes: np.ndarray, folds: np.ndarray, fold: int) -> None:
        self._x, self._codes = x, codes
        self._train = np.flatnonzero(folds != fold)
        self.classes = np.unique(codes[self._train])
        scored = (folds == fold) & np.isin(codes, self.classes)
        self.rows = np.flatnonzero(scored)
        self._solutions: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.results: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}

    def usable(self) -> bool:
        return len(self.rows) > 0 and len(self.classes) > 1

    def evaluate(self, steps: list[int]) -> None:
        """Fit at each step, starting from the solution of the nearest stronger regularisation.

        Warm starts from strong to weak make the path three times cheaper (clinc150: 7.3 s, cold 24.8 s), and
        up to the best C its losses differ by 3 % at most.
        """
        x, codes = self._x[self._train], self._codes[self._train]
        for step in sorted(steps):
            below = [known for known in self._solutions if known < step]
            start = self._solutions[max(below)] if below else None
            model = fit_logistic(x, codes, c_of(step), PATH_TOLERANCE, PATH_MAX_ITERATIONS, start)
            self._solutions[step] = (model.coef_, model.intercept_)
            probabilities = model.predict_proba(self._x[self.rows])
            column = np.searchsorted(self.classes, self._codes[self.rows])
            of_label = probabilities[np.arange(len(column)), column].astype(np.float64)
            losses = -np.log(np.maximum(of_label, SMALLEST_PROBABILITY))
            self.results[step] = (losses, probabilities.argmax(axis=1) == column, int(model.n_iter_[0]))

    def predict(self, step: int) -> OutOfFold:
        """Return the validation rows' probabilities at a step that was evaluated."""
        model = LogisticRegression()
        model.coef_, model.intercept_ = self._solutions[step]
        model.classes_, model.n_features_in_ = self.classes, self._x.shape[1]
        return OutOfFold(self.rows, self.classes, model.predict_proba(self._x[self.rows]))


def sweep_c(
    x: np.ndarray,
    codes: np.ndarray,
    folds: np.ndarray,
    n_threads: int = 1,
    on_round: Callable[[int], None] = lambda n: None,
) -> Sweep:
    """Choose C by cross-validated log loss.

    Log loss, not accuracy, whose curve is jagged and flat: on held-out photos the C it chose had a log loss
    5 to 11 % lower and was 0.1 to 0.5 points more accurate (DECISIONS.md, heads).

    Args:
        x: (n, dim) float32 features.
        codes: (n,) int classes.
        folds: (n,) int, from `plan_folds`.
        n_threads: folds fitted at a time.
        on_round: called with how many values of C were tried so far.

    Raises:
        ValueError: no fold has two classes to train on and a row to judge by.
    """
    parts = [_Fold(x, codes, folds, fold) for fold in range(int(folds.max(initial=-1)) + 1)]
    parts = [part for part in parts if part.usable()]
    if not parts:
        raise ValueError("no fold can be scored")
    curve: dict[int, CurvePoint] = {}
    with ThreadPoolExecutor(n_threads) as pool:
        while steps := next_steps({step: point.log_loss for step, point in curve.items()}):
            for part in [pool.submit(part.evaluate, steps) for part in parts]:
                part.result()
            curve.update({step: _point(step, parts) for step in steps})
            on_round(len(curve))
    best = best_step({step: point.log_loss for step, point in curve.items()})
    return Sweep(
        c=c_of(best),
        curve=tuple(curve[step] for step in sorted(curve)),
        out_of_fold=tuple(part.predict(best) for part in parts),
    )


def _point(step: int, parts: list[_Fold]) -> CurvePoint:
    results = [part.results.pop(step) for part in parts]
    means = np.array([losses.mean() for losses, _, _ in results])
    return CurvePoint(
        c=c_of(step),
        log_loss=float(np.concatenate([losses for losses, _, _ in results]).mean()),
        standard_error=float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else None,
        accuracy=float(np.concatenate([right for _, right, _ in results]).mean()),
        n_iterations=max(n for _, _, n in results),
    )
