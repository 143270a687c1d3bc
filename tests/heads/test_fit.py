import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from embedx.core.errors import EmbedxError, UsageError
from embedx.heads import fit as fitting
from embedx.heads.fit import LabelledVectors, fit_head, fold_scaling, plan_sweep, scale_in_place
from tests.heads.fakes import planted


def fit(vectors, labels, test_size=0.2, seed=0, groups=None):
    labels = np.array(labels, dtype=object)
    groups = None if groups is None else np.array(groups, dtype=object)
    return fit_head(LabelledVectors(np.array(vectors, dtype=np.float32), labels, "label", groups), test_size, seed)


def accuracy(head, vectors, labels):
    return float((head.estimator.predict(vectors) == labels).mean())


def test_planted_classes_are_recovered_on_new_vectors():
    vectors, labels = planted(40, 6, 16, noise=0.8)
    head = fit(vectors, labels)
    again, truth = planted(40, 6, 16, noise=0.8, seed=1)
    found = accuracy(head, again, truth)
    assert found > 0.93
    # What was promised on held-out rows is what new rows give.
    assert head.evaluation.scores.accuracy == pytest.approx(found, abs=0.08)
    assert head.evaluation.method == "hold-out" and head.evaluation.scores.n == 48
    assert head.converged and head.classes == tuple(f"class {code}" for code in range(6))


def test_labels_without_signal_are_not_learned():
    vectors, _ = planted(60, 2, 16, noise=1.0)
    labels = np.random.default_rng(5).permutation(["heads", "tails"] * 60)
    head = fit(vectors, labels)
    assert head.c < 0.01
    assert 0.25 < head.evaluation.scores.accuracy < 0.75
    assert head.evaluation.scores.log_loss == pytest.approx(np.log(2), abs=0.05)


def test_held_out_rows_teach_nothing(monkeypatch):
    """Garbage in the rows that are held out must change neither C nor the judged model."""
    vectors, labels = planted(40, 3, 8, noise=1.5)
    clean = fit(vectors, labels)
    _, codes = np.unique(labels.astype(str), return_inverse=True)
    held_out = fitting.plan_holdout(codes, 0.2, 0)
    swapped = labels.copy()
    # Within the held-out rows every class goes to the next: same split, every true prediction now wrong.
    swapped[held_out] = [f"class {(int(label[-1]) + 1) % 3}" for label in labels[held_out]]
    monkeypatch.setattr(fitting, "plan_holdout", lambda *arguments: held_out)
    wrong = fit(vectors, swapped)
    assert wrong.c == clean.c and wrong.curve == clean.curve
    assert wrong.evaluation.scores.accuracy < 0.3 < 0.6 < clean.evaluation.scores.accuracy


def test_the_saved_estimator_is_fitted_on_all_rows():
    vectors, labels = planted(20, 3, 8, noise=0.5)
    head = fit(vectors, labels, test_size=0.5)
    same = fit(vectors, labels, test_size=0)
    assert head.evaluation.n_train == 30 and same.evaluation.n_train == 60
    if head.c == same.c:
        assert np.array_equal(head.estimator[-1].coef_, same.estimator[-1].coef_)
    assert accuracy(head, vectors, labels) > 0.95


@pytest.mark.parametrize("shift", [0.0, 50.0])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_folded_weights_say_what_the_scaled_model_says(shift, n_classes):
    """Vectors far from the origin (unit-length CNN features are) must not lose precision in the folding."""
    vectors, labels = planted(50, n_classes, 12, noise=0.7)
    vectors += np.float32(shift)
    classes, codes = fitting.encode(labels)
    scaled = vectors.copy()
    scaling = scale_in_place(scaled)
    assert np.abs(scaled.mean(axis=0)).max() < 1e-3 and scaled.var() == pytest.approx(1, rel=1e-3)
    model = LogisticRegression(C=1.0, max_iter=500).fit(scaled, codes)
    pipeline = fold_scaling(model, scaling, classes)
    np.testing.assert_allclose(pipeline.predict_proba(vectors), model.predict_proba(scaled), atol=2e-3)
    # The length of a vector says nothing, as for cosine search.
    np.testing.assert_allclose(pipeline.predict_proba(vectors * 7), pipeline.predict_proba(vectors), atol=2e-3)


def test_cross_validated_metrics_without_a_holdout():
    vectors, labels = planted(20, 3, 8, noise=1.0)
    head = fit(vectors, labels, test_size=0)
    assert head.evaluation.method == "cross-validation" and head.evaluation.scores.n == 60
    assert head.evaluation.scores.accuracy == pytest.approx(
        next(point.accuracy for point in head.curve if point.c == head.c)
    )


def test_groups_keep_the_metrics_honest():
    """Rows of a group are near copies: split at random, memory passes for skill."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 6)
    vectors = random.normal(size=(60, 80))[groups] + 0.05 * random.normal(size=(360, 80))
    labels = np.array(["a", "b"], dtype=object)[random.permutation(60) % 2][groups]
    assert fit(vectors, labels).evaluation.scores.accuracy > 0.95
    honest = fit(vectors, labels, groups=[f"g{group}" for group in groups]).evaluation
    assert honest.scores.accuracy < 0.8 and honest.n_groups == 60


def test_rare_classes_are_learned_and_judged_where_they_can_be():
    vectors, labels = planted(30, 3, 8, noise=0.3)
    extra, _ = planted(1, 6, 8, noise=0.0)
    rare = np.concatenate([np.tile(vector, (count, 1)) for vector, count in zip(-3 * extra[:4], (1, 2, 3, 4))])
    names = np.repeat([f"rare {count}" for count in (1, 2, 3, 4)], (1, 2, 3, 4))
    head = fit(np.concatenate([vectors, rare]), np.concatenate([labels, names]))
    assert len(head.classes) == 7
    assert list(head.estimator.predict(rare.astype(np.float32))) == list(names)


@pytest.mark.parametrize("counts", [(2, 1), (2, 2), (1, 3), (3, 2, 1, 1)])
def test_a_handful_of_rows_is_enough_without_a_holdout(counts):
    random = np.random.default_rng(0)
    labels = np.repeat([f"c{code}" for code in range(len(counts))], counts)
    head = fit(random.normal(size=(len(labels), 4)), labels, test_size=0)
    assert head.classes == tuple(f"c{code}" for code in range(len(counts)))


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.sampled_from([0, 0.2, 0.5]), st.integers(0, 100))
def test_any_class_sizes_give_a_head_or_one_clear_error(counts, test_size, seed):
    labels = np.repeat([f"c{code}" for code in range(len(counts))], counts)
    vectors = np.random.default_rng(seed).normal(size=(len(labels), 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            head = fit(vectors, labels, test_size, seed)
        except UsageError as error:
            assert error.remedy
        else:
            probabilities = head.estimator.predict_proba(vectors.astype(np.float32))
            assert probabilities.shape == (len(labels), len(counts)) and np.isfinite(probabilities).all()


@pytest.mark.parametrize(
    ("labels", "test_size", "message"),
    [
        (["a"] * 10, 0.2, "one class only ('a'"),
        (["a", "b", "c"], 0.2, "single row"),
        ([f"id {row}" for row in range(300)], 0.2, "300 different values in 300 rows"),
        (["a", "a", "b"], 0.05, "leaves nothing to hold out"),
    ],
)
def test_labels_nothing_can_be_learned_from(labels, test_size, message):
    vectors = np.random.default_rng(0).normal(size=(len(labels), 4))
    with pytest.raises(UsageError) as caught:
        fit(vectors, labels, test_size)
    assert message in str(caught.value) and caught.value.remedy


def test_groups_that_leave_one_class_are_refused():
    vectors, labels = planted(10, 2, 4, noise=0.1)
    with pytest.raises(UsageError, match="hold out"):
        fit(vectors, labels, groups=["one"] * 20)
    with pytest.raises(UsageError, match="cross-validated"):
        fit(vectors, labels, test_size=0, groups=["one"] * 20)


def test_vectors_that_are_all_the_same_are_refused():
    with pytest.raises(EmbedxError, match="all vectors are the same"):
        fit(np.ones((20, 4)), ["a", "b"] * 10)


def test_constant_and_zero_vectors_among_others_are_fine():
    vectors, labels = planted(20, 2, 6, noise=0.3)
    vectors[:, 2] = 5.0
    vectors[0] = 0.0
    assert np.isfinite(fit(vectors, labels).estimator.predict_proba(vectors)).all()


def test_large_data_is_sampled_for_the_search(monkeypatch):
    monkeypatch.setattr(fitting, "MAX_SWEEP_ROWS", 100)
    codes = np.repeat(np.arange(4), [500, 400, 90, 10])
    train = np.arange(0, 1000, 2)
    rows, folds = plan_sweep(codes, train, None, 0)
    assert len(rows) == len(folds) == 100 and set(rows) <= set(train)
    assert list(np.bincount(codes[rows])) == [50, 40, 9, 1]


def test_what_did_not_converge_is_said(monkeypatch):
    monkeypatch.setattr(fitting, "FINAL_MAX_ITERATIONS", 3)
    vectors, labels = planted(30, 4, 12, noise=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fit(vectors, labels).converged


def test_one_blas_thread_during_a_fit(monkeypatch):
    from threadpoolctl import threadpool_info

    seen = []
    original = fitting.sweep_c

    def spy(*arguments):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return original(*arguments)

    monkeypatch.setattr(fitting, "sweep_c", spy)
    vectors, labels = planted(10, 2, 4, noise=0.5)
    fit(vectors, labels)
    assert seen and set(seen) == {1}
