import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedx.heads.splits import NEVER_SCORED, plan_folds, plan_holdout

SHARES = st.floats(0.01, 0.95)
SEEDS = st.integers(0, 2**31)


@st.composite
def class_codes(draw):
    """Rows of classes of very different sizes, single rows among them."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=12))
    codes = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(draw(SEEDS)).permutation(codes)


@given(class_codes(), SHARES, SEEDS)
def test_holdout_is_stratified_and_leaves_every_class_to_train_on(codes, share, seed):
    held_out = plan_holdout(codes, share, seed)
    sizes, tested = np.bincount(codes), np.bincount(codes[held_out], minlength=codes.max() + 1)
    assert (tested <= sizes - 1).all()
    capped = tested == sizes - 1
    assert (np.abs(tested - sizes * share)[~capped] < 1).all()
    # Where no class is at its cap, the whole is exact too.
    if not (capped & (np.ceil(sizes * share) > sizes - 1)).any():
        assert held_out.sum() == round(len(codes) * share)
    assert np.array_equal(held_out, plan_holdout(codes, share, seed))


@given(class_codes(), st.integers(2, 6), SEEDS)
def test_folds_are_even_in_size_and_in_every_class(codes, n_folds, seed):
    folds = plan_folds(codes, n_folds, seed)
    sizes = np.bincount(codes)
    assert np.array_equal(folds == NEVER_SCORED, sizes[codes] == 1)
    of_fold = [np.bincount(codes[folds == fold], minlength=len(sizes)) for fold in range(n_folds)]
    assert (np.ptp(of_fold, axis=0) <= 1).all()
    assert np.ptp([counts.sum() for counts in of_fold]) <= 1
    assert np.array_equal(folds, plan_folds(codes, n_folds, seed))


@given(class_codes(), SHARES, st.integers(2, 5), SEEDS, st.data())
def test_groups_are_never_split(codes, share, n_folds, seed, data):
    n_groups = data.draw(st.integers(1, len(codes)))
    groups = np.arange(len(codes)) % n_groups
    for parts in (plan_holdout(codes, share, seed, groups), plan_folds(codes, n_folds, seed, groups)):
        for group in range(n_groups):
            assert len(np.unique(parts[groups == group])) == 1


@pytest.mark.parametrize("share", [0.04, 0.1, 0.2, 0.33, 0.5, 0.8])
def test_held_out_groups_are_as_large_as_those_that_train(share):
    random = np.random.default_rng(3)
    sizes = random.integers(1, 30, 600)
    groups = random.permutation(np.repeat(np.arange(600), sizes))
    codes = groups % 4
    held_out = plan_holdout(codes, share, 0, groups)
    assert abs(held_out.mean() - share) < 0.01
    mean_held, mean_kept = (sizes[np.unique(groups[part])].mean() for part in (held_out, ~held_out))
    assert 0.8 < mean_held / mean_kept < 1.25


def test_group_holdout_meets_share_and_classes_when_groups_are_many():
    random = np.random.default_rng(0)
    groups = random.integers(0, 200, 5000)
    codes = (groups % 7 + random.integers(0, 2, 5000)) % 7
    held_out = plan_holdout(codes, 0.2, 0, groups)
    assert held_out.mean() == pytest.approx(0.2, abs=0.01)
    shares = np.bincount(codes[held_out]) / np.bincount(codes)
    assert shares.min() > 0.15 and shares.max() < 0.25


def test_another_seed_is_another_split():
    codes = np.repeat(np.arange(3), 50)
    assert not np.array_equal(plan_holdout(codes, 0.2, 0), plan_holdout(codes, 0.2, 1))
