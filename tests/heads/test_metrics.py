import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_recall_fscore_support

from embedx.heads.metrics import Tally

CLASSES = ["a", "b", "c", "d"]


def random_rows(n, seed):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(len(CLASSES)), n).astype(np.float32)
    return np.array(CLASSES, dtype=object)[random.integers(0, len(CLASSES), n)], probabilities


@given(st.integers(1, 200), st.integers(0, 2**31), st.integers(1, 50))
def test_scores_are_scikit_learns_whatever_the_batches(n, seed, batch):
    labels, probabilities = random_rows(n, seed)
    tally = Tally(CLASSES)
    for start in range(0, n, batch):
        tally.add(labels[start : start + batch], probabilities[start : start + batch])
    scores = tally.scores()
    truth, predicted = labels.astype(str), np.array(CLASSES)[probabilities.argmax(axis=1)]
    assert scores.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    wide = probabilities.astype(np.float64)
    wide /= wide.sum(axis=1, keepdims=True)
    assert scores.log_loss == pytest.approx(log_loss(truth, wide, labels=CLASSES), abs=1e-5)
    names = [score.label for score in scores.per_class]
    assert names == sorted(set(truth) | set(predicted))
    expected = precision_recall_fscore_support(truth, predicted, labels=names, zero_division=0)
    for column, name in enumerate(("precision", "recall", "f1", "n")):
        assert [getattr(score, name) for score in scores.per_class] == pytest.approx(list(expected[column]))


def test_labels_never_seen_are_wrong_and_named():
    tally = Tally(["a", "b"])
    tally.add(["a", "zebra", "b", "zebra", "yak"], np.array([[0.9, 0.1]] * 5, dtype=np.float32))
    scores = tally.scores()
    assert scores.unseen == {"zebra": 2, "yak": 1}
    assert scores.accuracy == 0.2 and scores.n == 5
    # Log loss is of the rows whose label has a probability.
    assert scores.log_loss == pytest.approx(-(np.log(0.9) + np.log(0.1)) / 2, rel=1e-5)
    assert scores.confusions[0] == ("zebra", "a", 2)


def test_only_unseen_labels_have_no_log_loss():
    tally = Tally(["a", "b"])
    tally.add(["c"], np.array([[0.5, 0.5]], dtype=np.float32))
    assert tally.scores().log_loss is None and tally.scores().to_dict()["accuracy"] == 0


def test_underflow_is_a_large_loss_and_not_an_infinite_one():
    tally = Tally(["a", "b"])
    tally.add(["a"], np.array([[0.0, 1.0]], dtype=np.float32))
    assert tally.scores().log_loss == pytest.approx(-np.log(1e-15))


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        Tally(["a", "b"]).scores()
