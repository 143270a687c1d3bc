"""Stores of chunks: texts are judged and predicted as a whole, and no text is learned from and judged by at once."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedx.core.errors import UsageError
from embedx.heads.head import open_head
from embedx.heads.parents import join_parents
from embedx.heads.spec import HeadSpec
from embedx.steps.evaluate import EvaluateSpec, evaluate_head
from embedx.steps.fit_head import fit_head
from embedx.steps.predict import PredictSpec, predict_store
from tests.heads.fakes import make_store, planted


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 60), max_size=8).map(sorted),
)
def test_parents_are_joined_wherever_batches_end(sizes, cuts):
    parents = np.repeat(np.array([f"t{n}" for n in range(len(sizes))][::-1], dtype=object), sizes)
    values = np.random.default_rng(len(parents)).random((len(parents), 3), dtype=np.float32)
    edges = [0, *cuts, len(parents)]
    batches = [(parents[start:stop], values[start:stop]) for start, stop in itertools.pairwise(edges)]
    joined = list(join_parents(batches))
    assert np.concatenate([names for names, _ in joined]).tolist() == list(dict.fromkeys(parents))
    wanted = [values[parents == name].mean(axis=0) for name in dict.fromkeys(parents)]
    np.testing.assert_allclose(np.concatenate([means for _, means in joined]), wanted, rtol=1e-6)


def chunked(folder, n_texts, noise, likeness=0.0, seed=0, columns=None):
    """A store of texts in 1 to 7 chunks, of six classes; the chunks of a text share `likeness` of their noise."""
    random = np.random.default_rng(seed)
    vectors, labels = planted(n_texts // 6, 6, 16, noise=0.0, seed=seed)
    counts = random.integers(1, 8, len(vectors))
    own = random.normal(size=vectors.shape).repeat(counts, axis=0)
    rows = vectors.repeat(counts, axis=0)
    rows = rows + noise * (likeness * own + (1 - likeness) * random.normal(size=rows.shape))
    parents = [f"t{text}" for text, count in enumerate(counts) for _ in range(count)]
    ids = [
        f"t{text}#c{number:04d}" if count > 1 else f"t{text}"
        for text, count in enumerate(counts)
        for number in range(count)
    ]
    marked = [parent if "#" in item_id else None for parent, item_id in zip(parents, ids)]
    columns = {"label": list(labels.repeat(counts)), **({} if columns is None else columns(parents))}
    return make_store(folder, rows.astype(np.float32), columns, ids, marked), np.array(parents), rows, labels


def test_texts_are_predicted_and_judged_by_the_mean_of_their_chunks(tmp_path):
    store, *_ = chunked(tmp_path / "train", 600, noise=2.0)
    report = fit_head(HeadSpec(store, "label", tmp_path / "head"))
    judged = report["evaluation"]
    assert judged["n_groups"] == 600 and 100 < judged["by_parent"]["n"] < 140 and judged["n_test"] > 400
    assert judged["by_parent"]["accuracy"] > report["metrics"]["accuracy"] + 0.05, "many chunks know more than one"
    assert fit_head(HeadSpec(store, "label", tmp_path / "cv", test_size=0))["evaluation"]["by_parent"]["n"] == 600

    store, parents, rows, labels = chunked(tmp_path / "test", 420, noise=2.0, seed=1)
    report = predict_store(PredictSpec(store, tmp_path / "head", tmp_path / "p.parquet", by_parent=True))
    head = open_head(tmp_path / "head")
    probabilities = head.predict_proba(rows)
    names = list(dict.fromkeys(parents))
    means = np.stack([probabilities[parents == name].mean(axis=0) for name in names])
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column("item_id").to_pylist() == names and report["n"] == 420 == sum(report["counts"].values())
    np.testing.assert_allclose(table.column("probability").to_numpy(), means.max(axis=1), rtol=1e-5)
    right = [head.classes[code] for code in means.argmax(axis=1)] == labels
    report = evaluate_head(EvaluateSpec(store, tmp_path / "head", "label", by_parent=True))
    assert report["n"] == 420 and report["metrics"]["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    per_chunk = evaluate_head(EvaluateSpec(store, tmp_path / "head", "label"))
    assert per_chunk["n"] == len(rows) and per_chunk["metrics"]["accuracy"] < report["metrics"]["accuracy"]
    # A table may know the labels of some texts only.
    lines = [f"{name},{label}" for name, label in zip(names, labels)][:50]
    (tmp_path / "l.csv").write_text("\n".join(["id,truth", *lines]))
    some = evaluate_head(EvaluateSpec(store, tmp_path / "head", "truth", tmp_path / "l.csv", by_parent=True))
    assert some["n"] == 50 and some["metrics"]["accuracy"] == pytest.approx(right[:50].mean(), abs=1e-6)
    assert some["n_unlabelled"] == len(rows) - np.isin(parents, names[:50]).sum()


def test_a_plain_store_is_the_same_by_parent(fitted, planted_store, tmp_path):
    for by_parent in (False, True):
        predict_store(PredictSpec(planted_store, fitted[0], tmp_path / f"{by_parent}.parquet", by_parent))
    assert pq.read_table(tmp_path / "True.parquet").equals(pq.read_table(tmp_path / "False.parquet"))


@pytest.mark.parametrize("test_size", [0.2, 0.0])
def test_no_text_is_learned_from_and_judged_by(tmp_path, test_size):
    # Chunks of a text are all but equal and say nothing of its label: whoever sees one of them knows the others.
    store, *_ = chunked(tmp_path / "s", 300, noise=30.0, likeness=0.99)
    report = fit_head(HeadSpec(store, "label", tmp_path / "h", test_size=test_size))
    assert report["metrics"]["accuracy"] < 0.4 and report["evaluation"]["n_groups"] == 300


def test_groups_that_would_part_a_text_are_refused(tmp_path):
    store, *_ = chunked(
        tmp_path / "s",
        60,
        noise=0.5,
        columns=lambda parents: {
            "shelf": [str(int(parent[1:]) // 3) for parent in parents],
            "page": [str(row) for row in range(len(parents))],
        },
    )
    report = fit_head(HeadSpec(store, "label", tmp_path / "h", group="shelf"))
    assert report["evaluation"]["n_groups"] == 20 and report["evaluation"]["by_parent"]["n"] < 30
    with pytest.raises(UsageError, match=re.escape("are in several groups of 'page'")):
        fit_head(HeadSpec(store, "label", tmp_path / "x", group="page"))
