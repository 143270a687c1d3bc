import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.core.errors import CorpusError, UsageError
from embedx.core.specs import CorpusSpec
from embedx.corpora.listing import open_corpus


def rows_of(*sources, **more):
    corpus = open_corpus(CorpusSpec(tuple(map(str, sources)), **more))
    return [row for batch in corpus.iterate_batches() for row in batch.to_pylist()], corpus


ROWS = [{"id": "01", "text": "eins", "lang": "de"}, {"id": "2", "text": "two\nlines, and a comma", "lang": None}]


def write(path, rows=ROWS):
    suffix = path.name.partition(".")[2]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if suffix.startswith("jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        mark = "\t" if suffix.startswith("tsv") else ","
        quoted = [['"' + (row[name] or "").replace('"', '""') + '"' for name in row] for row in rows]
        text = mark.join(rows[0]) + "\n" + "".join(mark.join(values) + "\n" for values in quoted)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"])
def test_every_format_lists_the_same(tmp_path, name):
    rows, corpus = rows_of(write(tmp_path / name), columns=("lang",))
    assert [row["item_id"] for row in rows] == ["01", "2"]
    assert [row["content"] for row in rows] == ["eins", "two\nlines, and a comma"]
    assert rows[0]["c_lang"] == "de" and not rows[1]["c_lang"]
    assert {row["source"] for row in rows} == {name}
    assert rows[0]["identity"] != rows[1]["identity"] and corpus.positional == ()
    assert [column.name for column in corpus.columns.carried] == ["text", "lang"]


def test_identities_are_of_the_content_alone(tmp_path):
    first, _ = rows_of(write(tmp_path / "a.jsonl"))
    second, _ = rows_of(write(tmp_path / "b.csv"))
    assert [row["identity"] for row in first] == [row["identity"] for row in second]


def test_lines_of_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\r\ntwo é\n".encode())
    rows, corpus = rows_of(path)
    assert [(row["item_id"], row["content"]) for row in rows] == [("a.txt#0", "one"), ("a.txt#1", "two é")]
    assert corpus.positional == ("a.txt",) and corpus.ignored == {"blank lines": 1}


def test_parquet_keeps_simple_types_and_json_carries_strings(tmp_path):
    typed = [{"id": 7, "text": "x", "year": 1999, "ok": True, "tags": ["a"]}]
    rows, _corpus = rows_of(write(tmp_path / "a.parquet", typed), columns=("year", "ok", "tags"))
    assert (rows[0]["item_id"], rows[0]["c_year"], rows[0]["c_ok"], rows[0]["c_tags"]) == ("7", 1999, True, '["a"]')
    rows, _ = rows_of(write(tmp_path / "a.jsonl", typed), columns=("year", "ok"))
    assert (rows[0]["c_year"], rows[0]["c_ok"]) == ("1999", "true")


@pytest.mark.parametrize(
    ("value", "problem"),
    [(None, "null"), ("", "empty"), ("  ", "empty"), (3, "int"), ("\ud800", "surrogate")],
)
def test_items_without_text_are_problems_not_errors(tmp_path, value, problem):
    rows, _ = rows_of(write(tmp_path / "a.jsonl", [{"id": 1, "text": "good"}, {"id": 2, "text": value}]))
    assert rows[0]["problem"] is None and problem in rows[1]["problem"] and rows[1]["content"] is None


def broken(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"id": 1, "text": "x"}\n{"id": 2, "text": \n', "a.jsonl:2 is not valid JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1 is not a JSON object but a list"),
        ("a.jsonl", b'{"id": 1, "text": "x"}\n{"text": "y"}\n', "a.jsonl:2 has no id"),
        ("a.jsonl", b'{"id": 1, "text": "x"}\n{"id": true, "text": "y"}\n', "a.jsonl:2 has no id"),
        ("a.csv", b"id,text\n1,x\n2\n", "a.csv:3 has 1 fields, the header has 2"),
        ("a.csv", b"id,id\n1,x\n", "repeated column names"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz cannot be read"),
        ("a.parquet", b"no parquet", "a.parquet cannot be read"),
        ("a.jsonl", b"", "a.jsonl has no rows"),
        ("a.pdf", b"", "a.pdf is of no known type"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, name, data, said):
    with pytest.raises(CorpusError, match=said):
        rows_of(broken(tmp_path, name, data))


def test_missing_columns_name_those_there_are(tmp_path):
    path = write(tmp_path / "a.jsonl")
    for wrong in ({"text_column": "body"}, {"id_column": "key"}, {"columns": ("colour",)}):
        with pytest.raises(CorpusError, match="its columns|Its columns") as error:
            rows_of(path, **wrong)
        assert "lang" in str(error.value)
    with pytest.raises(CorpusError, match="--text-column"):
        rows_of(write(tmp_path / "b.jsonl", [{"id": 1, "a": "x", "b": "y"}]))


def test_two_sources_of_one_name_need_an_alias(tmp_path):
    (tmp_path / "x").mkdir()
    paths = [write(tmp_path / "a.jsonl"), write(tmp_path / "x" / "a.jsonl")]
    with pytest.raises(UsageError, match=r"two sources are called 'a\.jsonl'"):
        rows_of(*paths)
    rows, _ = rows_of(paths[0], f"other={paths[1]}")
    assert {row["source"] for row in rows} == {"a.jsonl", "other"}


def test_folders_are_images_with_labels(tmp_path):
    for name in ("cats/1.JPG", "dogs/deep/2.png", "top.jpeg", "notes.md", "cats/.hidden.jpg", "doc.pdf"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    rows, corpus = rows_of(tmp_path / "photos")
    assert [(row["item_id"], row["c_label"]) for row in rows] == [
        ("top.jpeg", None),
        ("cats/1.JPG", "cats"),
        ("dogs/deep/2.png", "dogs"),
    ]
    assert corpus.ignored == {".md": 1, ".pdf": 1, "hidden": 1}
    assert rows[0]["locator"] == rows[0]["c_path"] == str(tmp_path / "photos" / "top.jpeg")
    assert len(rows_of(tmp_path / "photos", limit=2)[0]) == 2


def test_empty_folders_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="has no images"):
        rows_of(tmp_path / "empty")


def test_image_tables(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    path = write(
        tmp_path / "t.csv", [{"id": "1", "pic": "a.jpg"}, {"id": "2", "pic": "gone.jpg"}, {"id": "3", "pic": ""}]
    )
    rows, corpus = rows_of(path, image_column="pic")
    assert corpus.kind == "image" and rows[0]["locator"] == str(tmp_path / "a.jpg") and rows[0]["problem"] is None
    assert rows[1]["locator"] == str(tmp_path / "gone.jpg") and rows[1]["identity"] == "missing"
    assert "holds no path" in rows[2]["problem"]
    assert [column.name for column in corpus.columns.carried] == ["path"]


def test_kinds_are_not_mixed(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match="folder of images"):
        rows_of(tmp_path / "photos", write(tmp_path / "a.jsonl"))
    with pytest.raises(UsageError, match="not images"):
        rows_of(tmp_path / "a.jsonl", kind="image")


def test_columns_none_carries_nothing(tmp_path):
    rows, corpus = rows_of(write(tmp_path / "a.jsonl"), columns=())
    assert corpus.columns.carried == () and rows[0]["content"] == "eins"
