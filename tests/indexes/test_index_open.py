"""Opening: a damaged, foreign or incomplete index is refused by name, never searched."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedx.core.errors import StoreError, UsageError
from embedx.indexes.search import open_index
from embedx.indexes.verification import find_problems
from tests.indexes.fakes import FakeStore


@pytest.fixture
def version(store, build, index_path):
    build(store)
    return index_path / "versions" / "0001"


def rewrite_card(version, change) -> None:
    card = json.loads((version / "card.json").read_text())
    change(card)
    (version / "card.json").write_text(json.dumps(card))


def resized(version, name) -> None:
    """Make the card agree with a file's present size, so that only deeper checks can object."""
    rewrite_card(version, lambda card: card["files"][name].update(bytes=(version / name).stat().st_size))


def refused(index_path, match) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        open_index(index_path)
    assert "\n" not in str(caught.value) and caught.value.remedy
    assert find_problems(index_path) == [caught.value.message]


def test_absent(tmp_path):
    refused(tmp_path / "nowhere", "does not exist")
    refused(tmp_path, "is not an embedx index")


@pytest.mark.parametrize("text", ["0007", "../../etc", "/etc", "", "0001/../0001", "1", "versions/0001"])
def test_current_names_no_version(version, index_path, text):
    (index_path / "CURRENT").write_text(text)
    refused(index_path, "which is no version of it")


@pytest.mark.parametrize("name", ["index.faiss", "ids.parquet"])
def test_truncated(version, index_path, name):
    path = version / name
    path.write_bytes(path.read_bytes()[:-1])
    refused(index_path, f"{name} has")
    path.unlink()
    refused(index_path, f"{name} is missing")


@pytest.mark.parametrize("name", ["index.faiss", "ids.parquet"])
@pytest.mark.parametrize("kept", [0, 3, 40, 200])
def test_truncated_with_a_card_that_agrees(version, index_path, name, kept):
    path = version / name
    path.write_bytes(path.read_bytes()[:kept])
    resized(version, name)
    refused(index_path, name)


def test_files_of_another_build(version, index_path, store, build):
    build(FakeStore(store.matrix[:50], {"label": store.carried["label"][:50]}))
    other = index_path / "versions" / "0002"
    (other / "ids.parquet").write_bytes((version / "ids.parquet").read_bytes())
    resized(other, "ids.parquet")
    refused(index_path, "rows in ids.parquet: 60, the card says 50")
    (index_path / "CURRENT").write_text("0001")
    (version / "index.faiss").write_bytes((other / "index.faiss").read_bytes())
    resized(version, "index.faiss")
    refused(index_path, "vectors in index.faiss: 50, the card says 60")


def test_missing_columns(version, index_path, store):
    pq.write_table(store.table().drop_columns(["label"]), version / "ids.parquet")
    resized(version, "ids.parquet")
    refused(index_path, "columns in ids.parquet")
    pq.write_table(store.table().drop_columns(["item_id"]), version / "ids.parquet")
    resized(version, "ids.parquet")
    refused(index_path, "does not start with the column item_id")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda card: card.update(format=2), "format 2, this embedx reads format 1"),
        (lambda card: card.pop("format"), "format None"),
        (lambda card: card.pop("metric"), "lacks metric"),
        (lambda card: card["encoder"].update(fingerprint=""), "lacks encoder.fingerprint"),
        (lambda card: card["encoder"].pop("spec"), "lacks encoder.spec"),
        (lambda card: card.update(count=61), "the card says 61"),
        (lambda card: card.update(dim=9), "the card says 9"),
        (lambda card: card.update(metric="l2"), "was not built for the metric l2"),
        (lambda card: card.update(metric="hamming"), "unknown metric"),
    ],
)
def test_a_card_that_does_not_fit(version, index_path, change, match):
    rewrite_card(version, change)
    refused(index_path, match)


def test_a_broken_card(version, index_path):
    (version / "card.json").write_text('{"format": 1')
    refused(index_path, "cannot be read")
    (version / "card.json").write_text("[]")
    refused(index_path, "format None")
    (version / "card.json").unlink()
    refused(index_path, "cannot be read")


@pytest.mark.parametrize("name", ["index.faiss", "ids.parquet"])
def test_one_changed_byte_is_found_by_verification(version, index_path, name):
    data = bytearray((version / name).read_bytes())
    data[len(data) // 2] ^= 1
    (version / name).write_bytes(bytes(data))
    (problem,) = find_problems(index_path)
    assert name in problem


def test_an_index_can_be_moved(version, index_path, tmp_path, store):
    moved = index_path.rename(tmp_path / "with [brackets] and spaces")
    hits = open_index(moved).search(store.matrix[:1], 1, where="size = 0")
    assert hits.ids == [["item-0000"]]


def test_a_flat_index_of_another_kind_is_refused(version, index_path):
    import faiss

    other = faiss.index_factory(8, "HNSW4", faiss.METRIC_INNER_PRODUCT)
    other.add(np.ones((60, 8), np.float32))
    faiss.write_index(other, str(version / "index.faiss"))
    resized(version, "index.faiss")
    refused(index_path, "not a flat index")


@pytest.mark.parametrize(
    "vectors",
    [np.ones((1, 7)), np.ones(8), np.ones((1, 8), dtype=bool), np.array([["a"] * 8]), np.zeros((1, 8)), [[np.nan] * 8]],
)
def test_queries_of_another_shape_or_without_direction(version, index_path, vectors):
    with pytest.raises(UsageError, match="quer"):
        open_index(index_path).search(vectors, 3)


def test_vectors_are_given_back(version, index_path, store):
    index = open_index(index_path)
    expected = store.matrix[17] / np.linalg.norm(store.matrix[17])
    np.testing.assert_allclose(index.vector("item-0017"), expected, rtol=1e-6)
    assert (index.count, index.dim, index.version, index.card.metric) == (60, 8, 1, "cosine")
    assert index.search(np.empty((0, 8), np.float32), 3).ids == []
