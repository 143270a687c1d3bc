"""Search equals brute force: for every metric, k, filter and tie."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedx.indexes import audit
from embedx.indexes.build import build_index
from embedx.indexes.flat import FlatIndex
from embedx.indexes.metrics import METRICS
from embedx.indexes.search import open_index
from embedx.indexes.spec import IndexSpec
from tests.indexes.fakes import FakeStore

METRIC = st.sampled_from(sorted(METRICS))

# Small integers make ties and duplicates common; the floats make neighbours that are close but not equal.
VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-8, 8, width=16))


@st.composite
def problems(draw):
    """A metric, (n, dim) vectors, (m, dim) queries, k and the rows that qualify."""
    metric = METRICS[draw(METRIC)]
    n, m, dim = draw(st.integers(1, 30)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    vectors = draw(arrays(np.float32, (n, dim), elements=VALUES))
    queries = draw(arrays(np.float32, (m, dim), elements=VALUES))
    if metric.normalized:
        vectors[np.linalg.norm(vectors, axis=1) < 1e-3] = 1.0
        queries[np.linalg.norm(queries, axis=1) < 1e-3] = 1.0
    mask = draw(st.none() | arrays(bool, n))
    return metric, vectors, queries, draw(st.integers(1, 40)), mask


def brute_force_scores(metric, vectors, queries):
    vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
    if metric.name == "l2":
        return -np.sqrt(((queries[:, None, :] - vectors[None, :, :]) ** 2).sum(axis=2))
    if metric.name == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return queries @ vectors.T


def flat(metric, vectors):
    index = FlatIndex.allocate(len(vectors), vectors.shape[1], metric)
    half = len(vectors) // 2
    index.put(0, vectors[:half])
    index.put(half, vectors[half:])
    return index


@settings(max_examples=150, deadline=None)
@given(problems())
def test_hits_are_the_best_that_qualify(problem):
    metric, vectors, queries, k, mask = problem
    index = flat(metric, vectors)
    exact = brute_force_scores(metric, vectors, queries)
    qualified = np.flatnonzero(mask) if mask is not None else np.arange(len(vectors))
    found = index.search(queries, k, mask)
    assert len(found) == len(queries)
    for hits, scores in zip(found, exact):
        expected = np.sort(scores[qualified])[::-1][:k]
        assert len(hits.rows) == len(expected), "k is clipped, never padded"
        assert len(set(hits.rows)) == len(hits.rows)
        assert set(hits.rows) <= set(qualified)
        tolerance = 1e-4 * max(1.0, float(np.abs(exact).max()))
        np.testing.assert_allclose(scores[hits.rows], expected, atol=tolerance)
        np.testing.assert_allclose(hits.scores, scores[hits.rows], atol=tolerance)
        assert (np.diff(hits.scores) <= 0).all(), "nearest first"


@settings(max_examples=50, deadline=None)
@given(problems())
def test_an_item_is_left_out_of_its_own_hits(problem):
    metric, vectors, _, k, mask = problem
    index = flat(metric, vectors)
    own = np.arange(len(vectors))
    for row, hits in enumerate(index.search(vectors, k, mask, leave_out=own)):
        qualified = (mask if mask is not None else np.ones(len(vectors), bool)).copy()
        qualified[row] = False
        assert row not in hits.rows
        assert len(hits.rows) == min(k, qualified.sum())
        assert qualified[hits.rows].all()


@settings(max_examples=25, deadline=None)
@given(problems())
def test_the_index_on_disk_answers_as_the_one_in_memory(problem):
    metric, vectors, queries, k, mask = problem
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.faiss"
        built = flat(metric, vectors)
        built.write(path)
        opened = FlatIndex.open(path, metric)
        np.testing.assert_array_equal(opened.vectors(np.arange(len(vectors))), metric.prepare(vectors))
        for one, other in zip(built.search(queries, k, mask), opened.search(queries, k, mask)):
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_recall_of_the_exact_index_is_one_even_with_many_duplicates(build, metric):
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.standard_normal((40, 24)), 5, axis=0)
    recall = build(FakeStore(vectors), metric=metric).card.recall
    assert (recall["value"], recall["k"], recall["n_queries"], recall["target"]) == (1.0, 10, 200, 0.95)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_distances_of_equal_vectors_are_exact_in_large_batches(metric):
    """In batches FAISS expands |q-x|^2, which far from the origin leaves noise where 0 belongs."""
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((2_000, 64)) + 100).astype(np.float32)
    hits = flat(METRICS[metric], vectors).search(vectors, 3)
    if metric == "l2":
        assert all(found.rows[0] == row and found.scores[0] == 0 for row, found in enumerate(hits))
    if metric == "cosine":
        assert max(found.scores.max() for found in hits) <= 1.0


@pytest.mark.parametrize("filtered", [False, True])
def test_neighbours_far_from_the_origin_are_in_exact_order(filtered):
    rng = np.random.default_rng(3)
    vectors = (rng.standard_normal((3_000, 32)) * 0.5 + 100).astype(np.float32)
    queries = (rng.standard_normal((20, 32)) * 0.5 + 100).astype(np.float32)
    mask = rng.random(3_000) < 0.5 if filtered else None
    exact = brute_force_scores(METRICS["l2"], vectors, queries)
    if filtered:
        exact[:, ~mask] = -np.inf
    for hits, scores in zip(flat(METRICS["l2"], vectors).search(queries, 10, mask), exact):
        np.testing.assert_array_equal(hits.rows, np.argsort(-scores)[:10])
        np.testing.assert_allclose(hits.scores, scores[hits.rows], rtol=1e-5)


def test_filtered_rows_are_gathered_block_by_block(monkeypatch):
    monkeypatch.setattr("embedx.indexes.flat.GATHERED_ROWS", 7)
    rng = np.random.default_rng(3)
    vectors, queries = rng.standard_normal((90, 4)).astype(np.float32), rng.standard_normal((6, 4)).astype(np.float32)
    mask = rng.random(90) < 0.6
    for name, metric in METRICS.items():
        exact = brute_force_scores(metric, vectors, queries)
        exact[:, ~mask] = -np.inf
        for hits, scores in zip(flat(metric, vectors).search(queries, 20, mask), exact):
            np.testing.assert_array_equal(hits.rows, np.argsort(-scores)[:20], err_msg=name)


def test_sift5k_ground_truth(tmp_path):
    folder = Path(os.environ.get("EMBEDX_TEST_DATA", Path(__file__).resolve().parents[3] / "shared"))
    path = folder / "data" / "sift5k" / "sift5k_heldout_gt.npz"
    if not path.exists():
        pytest.skip("the sift5k data is absent: set EMBEDX_TEST_DATA to the folder that holds data/sift5k")
    with np.load(path) as data:
        base, queries, truth, truth_d2 = data["base"], data["query"], data["gt"], data["gt_d2"]
    build_index(FakeStore(base), IndexSpec(Path("sift"), tmp_path / "index", metric="l2"))
    hits = open_index(tmp_path / "index").search(queries, 100)
    for rows, scores, expected, expected_d2 in zip(hits.rows, hits.scores, truth, truth_d2):
        np.testing.assert_allclose(-scores, np.sqrt(expected_d2), rtol=1e-6)
        ties = expected_d2 == expected_d2[-1]  # what is as far as the last one may be exchanged for another
        assert set(expected[~ties]) <= set(rows)


class _Spoiled:
    """An index that answers some of its queries wrongly."""

    def __init__(self, index: FlatIndex, spoil) -> None:
        self._index = index
        self._spoil = spoil

    def search(self, queries, k, mask=None, leave_out=None):
        return [self._spoil(i, hits) for i, hits in enumerate(self._index.search(queries, k, mask, leave_out))]


def _measured(spoil) -> float:
    vectors = np.random.default_rng(1).standard_normal((300, 16)).astype(np.float32)
    rows = np.arange(0, 300, 3)
    index = _Spoiled(flat(METRICS["cosine"], vectors), spoil)
    return audit.measure_recall(index, METRICS["cosine"], vectors[rows], rows, np.split(vectors, 4))["value"]


def test_recall_sees_wrong_missing_and_repeated_hits():
    from dataclasses import replace

    assert _measured(lambda i, hits: hits) == 1.0
    far = np.arange(10)
    assert _measured(lambda i, hits: replace(hits, rows=far) if i % 2 else hits) == pytest.approx(0.5, abs=0.05)
    assert _measured(lambda i, hits: replace(hits, rows=hits.rows[:7], scores=hits.scores[:7])) == pytest.approx(0.7)
    assert _measured(lambda i, hits: replace(hits, rows=np.repeat(hits.rows[:1], 10))) == pytest.approx(0.1)


def test_recall_does_not_count_the_query_itself():
    def with_itself(i, hits):
        return type(hits)(np.concatenate([[3 * i], hits.rows[:9]]), hits.scores)

    assert _measured(with_itself) == pytest.approx(0.9)


@given(st.integers(1, 3_000_000), st.integers(1, 4_096), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_query_rows_are_distinct_sorted_and_bounded(count, dim, seed):
    rows = audit.plan_query_rows(count, dim, seed)
    assert len(rows) == len(set(rows)) and (np.diff(rows) > 0).all()
    assert min(count, audit.MIN_QUERIES) <= len(rows) <= min(count, audit.MAX_QUERIES)
    assert rows[0] >= 0 and rows[-1] < count
    np.testing.assert_array_equal(rows, audit.plan_query_rows(count, dim, seed))
