"""Huge pages of Parquet files are known from their headers, and cost named items instead of memory."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.core.contracts import Broken
from embedx.core.specs import CorpusSpec
from embedx.corpora import columnar, pages
from embedx.corpora.content import ImageReader
from embedx.corpora.listing import open_corpus
from embedx.corpora.pages import find_huge_page
from tests import photos
from tests.corpora.hostile import encoded

PICTURE = encoded(photos.picture(1), "PNG")


def rows_of(path, modality, **more):
    corpus = open_corpus(CorpusSpec((str(path),), **more), modality=modality)
    return [row for batch in corpus.iterate_batches() for row in batch.to_pylist()]


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 50_000)
    monkeypatch.setattr(columnar, "MAX_PAGE_BYTES", 50_000)
    monkeypatch.setattr(pages, "ORDINARY_BYTES", 10_000)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("nulls", [False, True])
def test_pages_are_counted_by_their_headers(tmp_path, small_limits, version, codec, nulls):
    """The huge value stands in a page of its own, behind others: rows before it are counted by their pages."""
    values = [None if nulls and n % 3 == 0 else b"%d" % n * 10 for n in range(100)]
    values[70] = b"x" * 200_000
    how = {"compression": codec, "data_page_version": version, "use_dictionary": False}
    table = pa.table({"image": pa.array(values, pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet", data_page_size=1, write_batch_size=5, **how)
    with (tmp_path / "a.parquet").open("rb") as file:
        found = find_huge_page(file, pq.read_metadata(file).row_group(0).column(0))
        assert found is not None and found.row == 70 and 200_000 <= found.size_bytes < 201_000
        values[70] = b"x"
        pq.write_table(pa.table({"image": pa.array(values, pa.binary())}), tmp_path / "b.parquet", **how)
    with (tmp_path / "b.parquet").open("rb") as file:
        assert find_huge_page(file, pq.read_metadata(file).row_group(0).column(0)) is None


def test_many_ordinary_values_of_one_page_are_read(tmp_path, small_limits):
    images = [PICTURE + bytes([n]) * 2000 for n in range(100)]
    pq.write_table(pa.table({"id": [str(n) for n in range(100)], "image": images}), tmp_path / "a.parquet")
    rows = rows_of(tmp_path / "a.parquet", "image")
    with ImageReader([row["locator"] for row in rows]) as reader:
        assert all(reader.read(n).size_bytes == len(images[n]) for n in range(100))


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("dictionary", [False, True])
def test_what_stands_before_a_huge_page_and_in_other_groups_is_read(tmp_path, small_limits, struct, dictionary):
    images = [PICTURE + b"%d" % n for n in range(30)]
    images[13] = b"x" * 200_000
    column = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)] if struct else images
    table = pa.table({"id": [str(n) for n in range(30)], "image": column})
    how = {"data_page_size": 1, "write_batch_size": 1, "use_dictionary": dictionary}
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, **how)
    rows = rows_of(tmp_path / "a.parquet", "image")
    with ImageReader([row["locator"] for row in rows], [row["identity"] for row in rows]) as reader:
        found = [reader.read(n).item for n in range(30)]
    broken = {n for n, item in enumerate(found) if isinstance(item, Broken)}
    assert broken == set(range(10, 20)) if dictionary else {13} <= broken <= set(range(13, 20))
    assert "a.parquet row 13 stands in or behind a page of 20" in found[13].message
    assert found[13].error == "PageTooLarge" and not found[13].retryable


def test_texts_around_a_huge_page(tmp_path, small_limits):
    texts = [f"text {n}" for n in range(30)]
    texts[13] = "x" * 200_000
    table = pa.table({"id": [str(n) for n in range(30)], "text": texts, "stars": list(range(30))})
    how = {"data_page_size": 1, "write_batch_size": 1, "use_dictionary": False}
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, **how)
    rows = rows_of(tmp_path / "a.parquet", "text", columns=("stars",))
    assert [row["item_id"] for row in rows] == [str(n) for n in range(30)]
    assert [row["c_stars"] for row in rows] == list(range(30))
    assert [n for n, row in enumerate(rows) if row["content"] is None] == list(range(13, 20))
    assert "holds 200," in rows[13]["problem"] and "or its page" in rows[19]["problem"]
    assert rows[12]["content"] == "text 12" and rows[20]["content"] == "text 20"


def test_damaged_headers_are_errors_and_come_back(tmp_path, small_limits):
    table = pa.table({"image": [b"x" * 200_000, b"y" * 200_000]})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none", data_page_size=1)
    whole = (tmp_path / "a.parquet").read_bytes()
    for damage in (b"\xff" * 40, b"\x19" * 40, b"\x15\x80" * 20, bytes(40)):
        (tmp_path / "b.parquet").write_bytes(whole[:4] + damage + whole[44:])
        with (tmp_path / "b.parquet").open("rb") as file:
            try:
                find_huge_page(file, pq.read_metadata(file).row_group(0).column(0))
            except ValueError as error:
                assert "page header" in str(error)
