"""Listing by column says exactly what listing row by row says, and does so wherever it can."""

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from embedx.core.errors import CorpusError
from embedx.core.specs import CorpusSpec
from embedx.corpora.columnwise import ColumnItems
from embedx.corpora.listing import open_corpus

TEXTS = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.sampled_from(["", " ", "\u200b", "\0", "\u2028\n", "\u65e5\u672c", "a" * 300, "\u0301", "caf\u00e9"]),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": TEXTS,
            "stars": st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
            "weight": st.one_of(st.none(), st.floats(width=32)),
            "good": st.one_of(st.none(), st.booleans()),
            "kind": st.one_of(st.none(), st.sampled_from(["x", "y", "\u00fc"])),
            "tags": st.one_of(st.none(), st.lists(st.text(max_size=2), max_size=2)),
        }
    ),
    min_size=1,
    max_size=20,
)
TYPES = {
    "text": pa.string(),
    "stars": pa.int32(),
    "weight": pa.float32(),
    "good": pa.bool_(),
    "kind": pa.dictionary(pa.int8(), pa.string()),
    "tags": pa.list_(pa.string()),
}


def listed(path, monkeypatch, by_column, modality="text", **more):
    taken = []
    real = ColumnItems.list_batch

    def list_batch(self, batch, start):
        found = real(self, batch, start) if by_column else None
        taken.append(found is not None)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ColumnItems, "list_batch", list_batch)
        corpus = open_corpus(CorpusSpec((str(path),), **more), modality=modality)
        rows = [row for batch in corpus.iterate_batches() for row in batch.to_pylist()]
    return rows, corpus.first, taken


def assert_same(path, monkeypatch, is_taken=True, **more):
    rows, first, taken = listed(path, monkeypatch, True, **more)
    slow_rows, slow_first, slow_taken = listed(path, monkeypatch, False, **more)
    assert repr(rows) == repr(slow_rows) and all(taken) == is_taken and not any(slow_taken)
    shown = [[row["item_id"] for row in items] for found in (first, slow_first) for items in found.values()]
    assert shown[0] == shown[1] == [row["item_id"] for row in rows[:3]]
    return rows


@given(rows=ROWS, kind=st.sampled_from(["text", "number", "position"]), prefix=st.sampled_from([None, "source"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_ways_give_the_same_rows(tmp_path, monkeypatch, rows, kind, prefix):
    table = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()})
    if kind != "position":
        ids = pa.array([f"id-{n}" if kind == "text" else n for n in range(len(rows))])
        table = table.append_column("id", ids)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    columns = ("stars", "weight", "good", "kind", "tags")
    assert_same(tmp_path / "a.parquet", monkeypatch, text_column="text", columns=columns, id_prefix=prefix)


def test_images_by_column(tmp_path, monkeypatch):
    table = pa.table({"id": ["a", "b", "c"], "a:b image": [b"x", None, b"z"], "label": ["1", None, "3"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    more = {"modality": "image", "image_column": "a:b image"}
    rows = assert_same(tmp_path / "a.parquet", monkeypatch, columns=("label",), **more)
    assert [row["locator"].split(":")[1:3] for row in rows] == [[str(n), "a%3Ab%20image"] for n in range(3)]
    assert_same(tmp_path / "a.parquet", monkeypatch, columns=(), **more)


@pytest.mark.parametrize("broken", ["utf8", "id", "place", "empty id"])
def test_what_is_out_of_the_ordinary_goes_row_by_row(tmp_path, monkeypatch, broken):
    path = tmp_path / "a.parquet"
    if broken == "utf8":
        raw = pa.array([b"good", b"bad \xff"]).view(pa.string())
        pq.write_table(pa.table({"id": ["a", "b"], "text": raw}), path)
        rows = assert_same(path, monkeypatch, is_taken=False)
        assert [row["problem"] is None for row in rows] == [True, False]
    elif broken == "place":
        pq.write_table(pa.table({"url": ["http://h/x.png?sig=1", "no"]}), path)
        assert_same(path, monkeypatch, is_taken=False, modality="image")
    else:
        pq.write_table(pa.table({"id": ["a", None if broken == "id" else ""], "text": ["x", "y"]}), path)
        with pytest.raises(CorpusError, match="has no id in column 'id'"):
            listed(path, monkeypatch, True)
