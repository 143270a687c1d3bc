import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedx.heads import sweep
from embedx.heads.splits import plan_folds
from embedx.heads.sweep import HIGHEST_STEP, LOWEST_STEP, best_step, c_of, next_steps, sweep_c
from tests.heads.fakes import planted


def search(loss):
    """Run the plan on a known loss; returns step -> loss."""
    losses: dict[int, float] = {}
    while steps := next_steps(losses):
        assert steps == sorted(set(steps) - losses.keys())
        assert all(LOWEST_STEP <= step <= HIGHEST_STEP for step in steps)
        losses.update({step: loss(step) for step in steps})
    return losses


@given(st.floats(-40, 40))
def test_the_search_finds_the_best_quarter_decade_wherever_it_is(optimum):
    losses = search(lambda step: (step - optimum) ** 2)
    assert best_step(losses) == pytest.approx(np.clip(optimum, LOWEST_STEP, HIGHEST_STEP), abs=0.5001)
    assert np.log10(c_of(max(losses)) / c_of(min(losses))) >= 5
    assert len(losses) <= 19


def test_a_flat_loss_ends_the_search_at_the_strongest_regularisation():
    losses = search(lambda step: 1.0)
    assert best_step(losses) == LOWEST_STEP


def test_c_of_a_step():
    assert [c_of(step) for step in (-16, -4, 0, 2, 4)] == [1e-4, 0.1, 1.0, 3.16228, 10.0]


def noisy_data(noise):
    vectors, labels = planted(30, 4, 12, noise)
    codes = np.unique(labels.astype(str), return_inverse=True)[1]
    x = (vectors - vectors.mean(axis=0)) / vectors.std()
    return x.astype(np.float32), codes


def test_noise_wants_more_regularisation_than_signal():
    chosen = []
    for noise in (0.1, 3.0):
        x, codes = noisy_data(noise)
        chosen.append(sweep_c(x, codes, plan_folds(codes, 4, 0)).c)
    assert chosen[0] > 30 * chosen[1]


def test_the_curve_is_what_scikit_learn_measures_without_warm_starts():
    """A warm-started path must not move the curve; fits from zero at a strict tolerance are the reference."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    x, codes = noisy_data(1.5)
    folds = plan_folds(codes, 4, 0)
    found = sweep_c(x, codes, folds, n_threads=2)
    for point in found.curve:
        if point.c > 10:
            continue
        losses = []
        for fold in range(4):
            model = LogisticRegression(C=point.c, tol=1e-6, max_iter=5000).fit(x[folds != fold], codes[folds != fold])
            losses.append(log_loss(codes[folds == fold], model.predict_proba(x[folds == fold].astype(np.float64))))
        assert point.log_loss == pytest.approx(np.mean(losses), rel=0.03), point
    assert found.c == min(found.curve, key=lambda point: point.log_loss).c
    assert sorted(np.concatenate([part.rows for part in found.out_of_fold])) == list(range(len(x)))


def test_each_fit_starts_from_the_next_stronger_regularisation(monkeypatch):
    starts = {}
    original = sweep.fit_logistic

    def spy(x, codes, c, tolerance, max_iterations, start):
        model = original(x, codes, c, tolerance, max_iterations, start)
        starts[c] = (start, model.coef_.copy())
        return model

    monkeypatch.setattr(sweep, "fit_logistic", spy)
    x, codes = noisy_data(1.5)
    sweep_c(x, codes, np.where(plan_folds(codes, 4, 0) == 0, 0, -1))
    assert starts[1e-4][0] is None
    for c, stronger in ((1e-3, 1e-4), (1.0, 0.1), (100.0, 10.0)):
        np.testing.assert_array_equal(starts[c][0][0], starts[stronger][1])


def test_folds_that_lack_a_class_are_scored_on_the_others():
    x, codes = noisy_data(0.5)
    folds = np.where(codes == 3, 0, plan_folds(codes, 4, 0))
    found = sweep_c(x, codes, folds)
    scored = np.concatenate([part.rows for part in found.out_of_fold])
    assert 3 not in codes[scored] and set(codes[scored]) == {0, 1, 2}


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no fold"):
        sweep_c(np.eye(2, dtype=np.float32), np.array([0, 1]), np.array([-1, -1]))


def test_no_thread_changes_the_outcome():
    x, codes = noisy_data(1.0)
    folds = plan_folds(codes, 4, 0)
    one, two = sweep_c(x, codes, folds, 1), sweep_c(x, codes, folds, 2)
    assert one.curve == two.curve and sweep.best_step({0: 1.0, 1: 1.0}) == 0
