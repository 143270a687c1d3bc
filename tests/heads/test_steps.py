import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.core.errors import CorpusError, FingerprintMismatchError, StoreError, UsageError
from embedx.heads.head import open_head
from embedx.heads.spec import HeadSpec
from embedx.steps.evaluate import EvaluateSpec, evaluate_head
from embedx.steps.fit_head import fit_head
from embedx.steps.labels import read_labels
from embedx.steps.predict import PredictSpec, predict_store
from embedx.store.reader import Store, open_store
from tests.heads.fakes import make_store, planted


def test_fit_evaluate_predict(fitted, planted_store, tmp_path):
    path, report = fitted
    assert report["n"] == 240 and report["kind"] == "logistic" and report["warnings"] == []
    assert set(report["metrics"]) >= {"accuracy", "macro_f1", "log_loss", "n"} and report["metrics"]["n"] == 48
    assert report["metrics"]["accuracy"] > 0.9 and report["threads"]["blas"] == 1
    assert json.loads(json.dumps(report, allow_nan=False)) == report

    vectors, labels = planted(20, 6, 16, noise=0.8, seed=3)
    test_store = make_store(tmp_path / "test", vectors, {"label": list(labels)})
    judged = evaluate_head(EvaluateSpec(test_store, path, "label"))
    assert judged["n"] == 120 and judged["classes"] == report["classes"] and judged["unseen"] == {}
    assert judged["metrics"]["accuracy"] > 0.9 and judged["kind"] == "logistic"

    out = tmp_path / "deep" / "p.parquet"
    predicted = predict_store(PredictSpec(test_store, path, out))
    table = pq.read_table(out)
    assert table.schema.names == ["item_id", "prediction", "probability"]
    assert table.schema.types == [pa.string(), pa.string(), pa.float32()]
    assert table["item_id"].to_pylist() == [f"item-{row:04d}" for row in range(120)]
    expected, probabilities = open_head(path).predict(vectors)
    assert table["prediction"].to_pylist() == list(expected)
    np.testing.assert_allclose(table["probability"].to_numpy(), probabilities, rtol=1e-5)
    assert predicted["n"] == 120 and sum(predicted["counts"].values()) == 120
    assert judged["metrics"]["accuracy"] == pytest.approx(np.mean(expected == labels), abs=1e-6)
    assert json.loads(json.dumps([judged, predicted], allow_nan=False)) == [judged, predicted]


def test_the_same_fit_is_the_same_head(fitted, planted_store, tmp_path):
    again = fit_head(HeadSpec(planted_store, "label", tmp_path / "h"))
    assert {**again, "head": 0, "seconds": 0, "bytes": 0} == {**fitted[1], "head": 0, "seconds": 0, "bytes": 0}
    one, two = open_head(fitted[0]), open_head(tmp_path / "h")
    assert np.array_equal(one.estimator[-1].coef_, two.estimator[-1].coef_)
    assert one.card.training["rows_sha256"] == two.card.training["rows_sha256"]


def test_a_refit_replaces_the_head_and_a_failed_one_does_not(planted_store, tmp_path):
    spec = HeadSpec(planted_store, "label", tmp_path / "h")
    fit_head(spec)
    before = (tmp_path / "h" / "card.json").read_bytes()
    with pytest.raises(StoreError):
        fit_head(HeadSpec(planted_store, "nope", tmp_path / "h"))
    assert (tmp_path / "h" / "card.json").read_bytes() == before
    fit_head(HeadSpec(planted_store, "label", tmp_path / "h", seed=1))
    assert open_head(tmp_path / "h").card.seed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["h"]


def test_a_taken_place_is_refused_before_any_work(planted_store, tmp_path, monkeypatch):
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "thesis.tex").write_text("mine")
    monkeypatch.setattr(Store, "vectors", lambda self: pytest.fail("work was done"))
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        fit_head(HeadSpec(planted_store, "label", tmp_path / "h"))


def test_a_missing_column_names_those_there_are(planted_store, fitted, tmp_path):
    for call in (
        lambda: fit_head(HeadSpec(planted_store, "intent", tmp_path / "h")),
        lambda: evaluate_head(EvaluateSpec(planted_store, fitted[0], "intent")),
    ):
        with pytest.raises(StoreError, match="no column 'intent'") as caught:
            call()
        assert "label" in caught.value.remedy
    assert not (tmp_path / "h").exists()


def test_another_encoder_is_refused(fitted, tmp_path):
    vectors, labels = planted(5, 6, 16, noise=0.8)
    other = make_store(tmp_path / "s", vectors, {"label": list(labels)}, fingerprint="b" * 64, ref="other:model")
    with pytest.raises(FingerprintMismatchError, match="other:model"):
        evaluate_head(EvaluateSpec(other, fitted[0], "label"))
    with pytest.raises(FingerprintMismatchError, match="fake:planted"):
        predict_store(PredictSpec(other, fitted[0], tmp_path / "p.parquet"))
    assert not (tmp_path / "p.parquet").exists()


def test_labels_never_seen_are_reported(fitted, tmp_path):
    vectors, labels = planted(5, 6, 16, noise=0.1)
    labels[labels == "class 2"] = "class new"
    store = make_store(tmp_path / "s", vectors, {"label": list(labels)})
    report = evaluate_head(EvaluateSpec(store, fitted[0], "label"))
    assert report["unseen"] == {"class new": 5}
    assert report["metrics"]["accuracy"] == pytest.approx(25 / 30, abs=1e-4)


def test_rows_without_a_label_are_left_out_and_counted(fitted, tmp_path):
    vectors, labels = planted(20, 3, 8, noise=0.3)
    given = [None if row % 4 == 0 else " " if row % 4 == 1 else label for row, label in enumerate(labels)]
    store = make_store(tmp_path / "s", vectors, {"label": given})
    report = fit_head(HeadSpec(store, "label", tmp_path / "h"))
    assert report["n"] == 30 and report["n_unlabelled"] == 30
    judged = evaluate_head(EvaluateSpec(store, tmp_path / "h", "label"))
    assert judged["n"] == 30 and judged["n_unlabelled"] == 30 and judged["metrics"]["accuracy"] == 1


def test_no_label_at_all(planted_store, tmp_path):
    vectors, _ = planted(5, 2, 8, noise=0.3)
    store = make_store(tmp_path / "s", vectors, {"label": [None] * 10})
    with pytest.raises(UsageError, match="empty in every row"):
        fit_head(HeadSpec(store, "label", tmp_path / "h"))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("id_column", ["item_id", "id"])
def test_labels_of_their_own_are_joined_by_id(tmp_path, suffix, id_column):
    """In another order, with rows of unknown items, and without some of ours."""
    vectors, labels = planted(10, 3, 8, noise=0.2)
    ids = [f"00{row}" for row in range(30)]
    store = make_store(tmp_path / "s", vectors, {}, ids)
    order = np.random.default_rng(0).permutation(28)
    rows = [(ids[row], str(labels[row])) for row in order] + [("stranger", "class 0")]
    path = tmp_path / f"labels.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({id_column: [row[0] for row in rows], "what": [row[1] for row in rows]}), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({id_column: item, "what": label}) + "\n" for item, label in rows))
    else:
        mark = {"csv": ",", "tsv": "\t"}[suffix]
        path.write_text("".join(mark.join(row) + "\n" for row in [(id_column, "what"), *rows]))
    found = read_labels(open_store(store), "what", path)
    assert list(found.labels) == [*labels[:28], None, None] and found.n_unmatched == 1
    report = fit_head(HeadSpec(store, "what", tmp_path / "h", labels=path))
    assert report["n"] == 28 and report["n_unlabelled"] == 2 and "1 ids" in report["warnings"][0]
    judged = evaluate_head(EvaluateSpec(store, tmp_path / "h", "what", path))
    assert judged["n"] == 28 and judged["metrics"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("id,what\nx,1\n", UsageError, "no id of"),
        ("id,other\nitem-0000,1\n", UsageError, "no column 'what'. Its columns: id, other"),
        ("name,what\nitem-0000,1\n", UsageError, "no column 'item_id or id'"),
        ("id,what\nitem-0000,1\nitem-0000,2\n", CorpusError, "labels 'item-0000' both '1' and '2'"),
        ("id,what\nitem-0000\n", CorpusError, "labels.csv:2"),
        ("id,what\nitem-0000,\n", UsageError, "empty in every row"),
    ],
)
def test_tables_of_labels_that_do_not_fit(planted_store, tmp_path, text, error, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(error) as caught:
        read_labels(open_store(planted_store), "what", tmp_path / "labels.csv")
    assert message in str(caught.value)


@pytest.mark.parametrize(("name", "error"), [("gone.csv", CorpusError), ("labels.txt", UsageError)])
def test_a_table_of_labels_that_is_none(planted_store, tmp_path, name, error):
    (tmp_path / "labels.txt").write_text("a\n")
    with pytest.raises(error, match=name):
        read_labels(open_store(planted_store), "what", tmp_path / name)


def test_groups_from_the_store_and_from_the_table(tmp_path):
    vectors, labels = planted(20, 2, 8, noise=0.5)
    groups = [f"g{row % 10}" for row in range(40)]
    store = make_store(tmp_path / "s", vectors, {"label": list(labels), "group": groups})
    report = fit_head(HeadSpec(store, "label", tmp_path / "h", group="group"))
    assert report["evaluation"]["n_groups"] == 10
    (tmp_path / "l.csv").write_text("id,what\n" + "".join(f"item-{i:04d},{label}\n" for i, label in enumerate(labels)))
    assert list(read_labels(open_store(store), "what", tmp_path / "l.csv", "group").groups) == groups
    holes = make_store(tmp_path / "holes", vectors, {"label": list(labels), "group": [None, *groups[1:]]})
    with pytest.raises(UsageError, match="1 labelled rows have no 'group'"):
        fit_head(HeadSpec(holes, "label", tmp_path / "x", group="group"))


def test_vectors_that_are_not_finite_are_named(fitted, tmp_path):
    vectors, labels = planted(5, 6, 16, noise=0.8)
    vectors[7, 3] = np.inf
    store = make_store(tmp_path / "s", vectors, {"label": list(labels)})
    for call in (
        lambda: fit_head(HeadSpec(store, "label", tmp_path / "h")),
        lambda: evaluate_head(EvaluateSpec(store, fitted[0], "label")),
        lambda: predict_store(PredictSpec(store, fitted[0], tmp_path / "p.parquet")),
    ):
        with pytest.raises(StoreError, match="item-0007"):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_prediction_needs_the_memory_of_one_batch(fitted, tmp_path, monkeypatch):
    vectors, labels = planted(400, 6, 16, noise=0.8)
    store = make_store(tmp_path / "s", vectors, {"label": list(labels)})
    monkeypatch.setattr(Store, "vectors", lambda self: pytest.fail("everything was loaded"))
    sizes = []
    original = Store.iterate_batches

    def spy(self, columns=(), batch_rows=500):
        for batch, part in original(self, columns, batch_rows):
            sizes.append(len(part))
            yield batch, part

    monkeypatch.setattr(Store, "iterate_batches", spy)
    seen = []
    report = predict_store(PredictSpec(store, fitted[0], tmp_path / "p.parquet"), lambda state: seen.append(state.done))
    assert report["n"] == 2400 and max(sizes) <= 500 and seen[-1] == 2400 and len(seen) == len(sizes) > 4
    assert pq.read_table(tmp_path / "p.parquet")["item_id"].to_pylist() == [f"item-{row:04d}" for row in range(2400)]
    evaluate_head(EvaluateSpec(store, fitted[0], "label"))


def test_predictions_are_replaced_whole_or_not_at_all(fitted, planted_store, tmp_path, monkeypatch):
    out = tmp_path / "p.parquet"
    predict_store(PredictSpec(planted_store, fitted[0], out))
    before = out.read_bytes()
    metadata = pq.read_schema(out).metadata
    assert metadata[b"embedx.fingerprint"] == b"a" * 64 and metadata[b"embedx.store_version"] == b"0"

    def broken(self, columns=(), batch_rows=0):
        raise StoreError("the disk is gone", "Buy another")
        yield

    monkeypatch.setattr(Store, "iterate_batches", broken)
    with pytest.raises(StoreError, match="the disk is gone"):
        predict_store(PredictSpec(planted_store, fitted[0], out))
    assert out.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_places_where_no_predictions_can_be(fitted, planted_store, tmp_path):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("p.csv", "folder.parquet"):
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            PredictSpec(planted_store, fitted[0], tmp_path / name)
    with pytest.raises(StoreError, match="cannot be written"):
        predict_store(PredictSpec(planted_store, fitted[0], tmp_path / "file" / "p.parquet"))


def test_an_empty_store_is_an_error(tmp_path, fitted):
    store = make_store(tmp_path / "s", np.empty((0, 16), dtype=np.float32), {"label": []})
    for call in (
        lambda: fit_head(HeadSpec(store, "label", tmp_path / "h")),
        lambda: evaluate_head(EvaluateSpec(store, fitted[0], "label")),
        lambda: predict_store(PredictSpec(store, fitted[0], tmp_path / "p.parquet")),
    ):
        with pytest.raises(StoreError, match="no rows"):
            call()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "forest"}, "--kind 'forest'"),
        ({"test_size": 1.0}, "--test-size 1 "),
        ({"test_size": -0.1}, "--test-size -0.1"),
        ({"test_size": float("nan")}, "--test-size nan"),
        ({"seed": -1}, "--seed -1"),
        ({"group": "label"}, "the label itself"),
    ],
)
def test_broken_specs(planted_store, tmp_path, changes, match):
    with pytest.raises(UsageError, match=match):
        HeadSpec(planted_store, "label", tmp_path / "h", **changes)
