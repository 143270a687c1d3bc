"""A query as a corpus: its rows in its order, and nothing but reading."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.core.errors import CorpusError, EmbedxError, UsageError
from embedx.core.specs import CorpusSpec
from embedx.corpora.listing import open_corpus
from embedx.corpora.sql import SETTINGS, SqlTable


def rows_of(sql, *sources, modality="text", **more):
    corpus = open_corpus(CorpusSpec(tuple(map(str, sources)), sql=sql, **more), modality=modality)
    return [row for batch in corpus.iterate_batches() for row in batch.to_pylist()], corpus


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": range(20_000), "text": [f"t{n}" for n in range(20_000)], "k": [1.5] * 20_000}), path)
    return path


def test_rows_come_in_the_querys_order(table):
    query = f"select id, text, k from '{table}' where id % 2 = 0 order by id desc -- the newest first;"
    rows, corpus = rows_of(query, columns=("k",))
    assert [row["item_id"] for row in rows] == [str(n) for n in range(19_998, -1, -2)]
    assert rows[0]["content"] == "t19998" and rows[0]["c_k"] == 1.5 and rows[0]["source"] == "sql"
    assert corpus.positional == ()
    rows, corpus = rows_of(f"select text from '{table}' limit 3;")
    assert [row["item_id"] for row in rows] == ["sql#0", "sql#1", "sql#2"] and corpus.positional == ("sql",)


def test_databases_are_read_only(tmp_path):
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(str(path)) as database:
        database.execute("create table reviews as select 1 as id, 'good' as text")
    before = path.read_bytes()
    assert rows_of("select * from reviews", path)[0][0]["content"] == "good"
    assert rows_of("select * from shop.reviews", path)[0][0]["content"] == "good"
    assert path.read_bytes() == before
    with pytest.raises(CorpusError, match=r"gone\.duckdb does not exist"):
        rows_of("select 1", tmp_path / "gone.duckdb")


@pytest.mark.parametrize(
    "query",
    [
        "drop table x",
        "select 1 as text; select 2",
        "copy (select 1) to 'out.csv'",
        "install httpfs",
        "attach 'new.db'",
        "set memory_limit = '1GB'",
        "insert into x values (1)",
        "export database 'folder'",
        "",
        "   ",
    ],
)
def test_only_one_select_is_run(tmp_path, monkeypatch, query):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmbedxError):
        rows_of(query)
    assert not list(tmp_path.iterdir())


def test_extensions_are_not_fetched():
    assert SETTINGS["autoinstall_known_extensions"] == "false"
    with pytest.raises(CorpusError, match="httpfs"):
        rows_of("select * from 'https://127.0.0.1:1/x.parquet'")


@pytest.mark.parametrize(
    ("query", "said"),
    [("select * from nowhere", "nowhere"), ("select 1 as text, 2 as text", "two columns"), ("select", "--sql fails")],
)
def test_wrong_queries_are_named(query, said):
    with pytest.raises((CorpusError, UsageError), match=said):
        rows_of(query)


def test_a_query_that_fails_on_the_way_is_an_error(table):
    with pytest.raises(CorpusError, match="--sql fails.*Conversion"):
        rows_of(f"select id, case when id > 15000 then cast(text as int)::varchar else text end as text from '{table}'")


def test_images_by_query_are_paths(tmp_path):
    rows, corpus = rows_of("select 'a' as id, 'x/y.jpg' as path", modality="image")
    assert corpus.kind == "image" and rows[0]["locator"].endswith("/x/y.jpg")
    with pytest.raises(CorpusError, match="holds bytes"):
        rows_of("select 'a' as id, 'abc'::blob as image", modality="image")


def test_columns_are_learnt_without_running_the_query():
    assert SqlTable("select range as id, 'x' as text from range(100000000000)").columns()["text"] == "string"
