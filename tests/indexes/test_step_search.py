"""The steps and commands `index` and `search`, with a fake encoder."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from embedx.cli import index as index_command
from embedx.cli import search as search_command
from embedx.core.errors import EmbedxError, FingerprintMismatchError, StoreError, UsageError
from embedx.indexes.spec import IndexSpec
from embedx.steps import index as index_step
from embedx.steps import search as search_step
from embedx.steps.search import SearchSpec, search_index
from tests.indexes.fakes import FakeSession, FakeStore


@pytest.fixture
def built(store, build, index_path):
    build(store)
    return index_path


@pytest.fixture
def sessions():
    """What was opened: one (arguments, session) per call."""
    return []


@pytest.fixture
def opener(sessions):
    def open_session(spec, fingerprint, precision):
        sessions.append(((spec, fingerprint, precision), FakeSession(spec["name"])))
        return sessions[-1][1]

    return open_session


def as_text(vector) -> str:
    return " ".join(str(value) for value in vector)


def expected_ids(store, vector, k) -> list[str]:
    unit = store.matrix / np.linalg.norm(store.matrix, axis=1, keepdims=True)
    return [store.ids[row] for row in np.argsort(-(unit @ vector))[:k]]


def test_a_text_is_embedded_by_the_encoder_of_the_index(built, store, sessions, opener):
    report = search_index(SearchSpec(built, text=as_text(store.matrix[9]), k=4), opener)
    assert sessions[0][0] == ({"family": "fake", "name": "text"}, "f" * 64, "fp32")
    assert [hit["id"] for hit in report["hits"]] == expected_ids(store, store.matrix[9], 4)
    assert report["hits"][0] == {
        "id": "item-0009",
        "score": pytest.approx(1.0),
        "label": "red",
        "text": "text number 9",
        "size": 9,
        "weight": 4.5,
    }
    assert "queries" not in report
    json.dumps(report, allow_nan=False)


def test_a_query_of_the_wrong_kind_is_refused_by_name(built, opener, tmp_path, build, sessions):
    picture = tmp_path / "p.jpg"
    picture.write_bytes(b"x")
    with pytest.raises(UsageError, match=r"a query by image needs an encoder of images.*fake:text"):
        search_index(SearchSpec(built, image=picture), opener)
    build(FakeStore(np.eye(8), modality="image"))
    for spec in (SearchSpec(built, text="hello"), SearchSpec(built, queries=tmp_path / "q.txt")):
        (tmp_path / "q.txt").write_text("hello")
        with pytest.raises(UsageError, match=r"a query by text needs an encoder of texts.*fake:image"):
            search_index(spec, opener)
    assert sessions == [], "refused before the encoder is loaded"
    assert len(search_index(SearchSpec(built, image=picture, k=3), opener)["hits"]) == 3


def with_query_encoder(store, space: str = "clip") -> None:
    """Make the store's encoder one whose texts are embedded by another encoder of its space."""
    spec = {"family": "fake", "name": "other tower"}
    store.card = replace(store.card, space=space, queries={"text": spec})


@pytest.mark.parametrize("modality", ["image", "text"])
def test_queries_are_embedded_by_the_encoder_that_was_trained_for_them(build, index_path, sessions, modality):
    store = FakeStore(np.eye(8), modality=modality)
    with_query_encoder(store)
    build(store)

    def open_session(*asked):
        sessions.append(asked)
        session = FakeSession()
        session.card = replace(session.card, space="clip")
        return session

    report = search_index(SearchSpec(index_path, text=as_text(store.matrix[3]), k=1), open_session)
    assert report["hits"][0]["id"] == "item-0003"
    assert sessions == [({"family": "fake", "name": "other tower"}, "", "fp32")]


@pytest.mark.parametrize("space", ["clip", ""])
def test_an_encoder_of_queries_of_another_space_is_refused(build, index_path, opener, space):
    store = FakeStore(np.eye(8), modality="image")
    with_query_encoder(store, space)
    build(store)
    with pytest.raises(FingerprintMismatchError, match=r"fake:other tower belongs to .* but the vectors of fake:image"):
        search_index(SearchSpec(index_path, text="1 0 0 0 0 0 0 0"), opener)


def test_files_of_image_paths(build, index_path, opener, sessions, tmp_path):
    build(FakeStore(np.eye(8), modality="image"))
    (tmp_path / "q.csv").write_text("image,id\na/1.jpg,x\n2.jpg,y\n")
    report = search_index(SearchSpec(index_path, queries=tmp_path / "q.csv", k=2), opener)
    assert [(query["query"], query["id"]) for query in report["queries"]] == [("a/1.jpg", "x"), ("2.jpg", "y")]
    assert sessions[0][1].asked == [[tmp_path / "a" / "1.jpg", tmp_path / "2.jpg"]]


def test_an_item_finds_the_others(built, store):
    report = search_index(SearchSpec(built, item_id="item-0009", k=5))
    assert [hit["id"] for hit in report["hits"]] == expected_ids(store, store.matrix[9], 6)[1:]
    everything = search_index(SearchSpec(built, item_id="item-0009", k=10_000, where="label = 'red'"))
    assert len(everything["hits"]) == 19 and all(hit["label"] == "red" for hit in everything["hits"])


def test_an_unknown_item_suggests_a_near_one(built):
    with pytest.raises(UsageError, match=r"no item 'item-009'. Did you mean 'item-0009'\?"):
        search_index(SearchSpec(built, item_id="item-009"))
    with pytest.raises(UsageError, match="column item_id"):
        search_index(SearchSpec(built, item_id="ZZZ"))


def test_an_item_alone_has_no_hits(built):
    with pytest.raises(UsageError, match="no item besides 'item-0003'"):
        search_index(SearchSpec(built, item_id="item-0003", where="size = 3"))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_files_of_texts(built, store, opener, tmp_path, suffix):
    path = tmp_path / f"queries{suffix}"
    texts = [as_text(vector) for vector in store.matrix[:3]]
    rows = [{"query" if suffix == ".csv" else "text": text, "id": f"q{n}"} for n, text in enumerate(texts)]
    if suffix == ".txt":
        path.write_text("\n".join([texts[0], "", *texts[1:]]) + "\n")
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        separator = "," if suffix == ".csv" else "\t"
        lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines))
    report = search_index(SearchSpec(built, queries=path, k=2, out=tmp_path / "hits.parquet"), opener)
    assert [query["query"] for query in report["queries"]] == texts
    assert [query["hits"][0]["id"] for query in report["queries"]] == store.ids[:3]
    assert [query.get("id") for query in report["queries"]] == ([None] * 3 if suffix == ".txt" else ["q0", "q1", "q2"])
    table = pq.read_table(tmp_path / "hits.parquet")
    assert table.column("rank").to_pylist() == [1, 2] * 3
    assert table.column("query").to_pylist() == [text for text in texts for _ in range(2)]
    assert table.column("item_id").to_pylist() == [hit["id"] for q in report["queries"] for hit in q["hits"]]
    assert ("query_id" in table.column_names) == (suffix != ".txt")
    assert set(table.column_names) >= {"score", "label", "text", "size", "weight"}


def test_queries_that_fail_are_listed_and_the_others_answered(built, store, opener, tmp_path):
    path = tmp_path / "q.txt"
    path.write_text(f"broken\n{as_text(store.matrix[5])}\nbroken\n")
    report = search_index(SearchSpec(built, queries=path, k=1), opener)
    assert [query["hits"][0]["id"] for query in report["queries"]] == ["item-0005"]
    assert report["failures"] == [{"query": "broken", "error": "ValueError", "message": "no words"}] * 2
    path.write_text("broken\n")
    with pytest.raises(UsageError, match=r"no query of .* can be embedded"):
        search_index(SearchSpec(built, queries=path), opener)
    with pytest.raises(UsageError, match="'broken' cannot be embedded: no words"):
        search_index(SearchSpec(built, text="broken"), opener)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_file_of_vectors(built, store, tmp_path, dtype):
    np.save(tmp_path / "q.npy", store.matrix[:4].astype(dtype))
    report = search_index(SearchSpec(built, queries=tmp_path / "q.npy", k=1))
    assert [(query["query"], query["hits"][0]["id"]) for query in report["queries"]] == [
        (str(row), store.ids[row]) for row in range(4)
    ]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("q.txt", b"\n \n", "holds no query"),
        ("q.txt", b"\xff\xfe\x00", "is not UTF-8"),
        ("q.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not valid JSON"),
        ("q.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("q.jsonl", b'{"words": "a"}\n', "no column text or query"),
        ("q.jsonl", b'{"text": "1 2"}\n{"text": null}\n', "query 2 has no text"),
        ("q.csv", b"a,b\n1,2\n", "no column text or query"),
        ("q.parquet", b"PAR1", "not a readable Parquet file"),
        ("q.npy", b"nothing", "not a readable .npy array"),
        ("q.docx", b"", "unknown suffix"),
    ],
)
def test_broken_files_of_queries(built, opener, tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=match) as caught:
        search_index(SearchSpec(built, queries=tmp_path / name), opener)
    assert "\n" not in str(caught.value) and caught.value.remedy


def test_vectors_that_do_not_fit(built, tmp_path):
    for array, match in ((np.ones(8), r"shape \(8,\)"), (np.ones((2, 7)), r"\(m, 8\)"), (np.empty((0, 8)), "no query")):
        np.save(tmp_path / "q.npy", array)
        with pytest.raises(UsageError, match=match):
            search_index(SearchSpec(built, queries=tmp_path / "q.npy"))
    np.save(tmp_path / "q.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(UsageError, match="not a readable"):
        search_index(SearchSpec(built, queries=tmp_path / "q.npy"))
    with pytest.raises(UsageError, match="cannot be read"):
        search_index(SearchSpec(built, queries=tmp_path / "absent.npy"))


def test_carried_columns_whose_names_clash_are_renamed(build, index_path, tmp_path):
    store = FakeStore(np.eye(4), {"id": ["a", "b", "c", "d"], "score": [1.0, 2.0, float("nan"), 4.0], "rank": [7] * 4})
    build(store)
    np.save(tmp_path / "q.npy", np.eye(4)[2:3])
    report = search_index(SearchSpec(index_path, queries=tmp_path / "q.npy", k=1, out=tmp_path / "h.parquet"))
    (hit,) = report["queries"][0]["hits"]
    assert hit == {"id": "item-0002", "score": 1.0, "id_column": "c", "score_column": None, "rank": 7}
    names = pq.read_table(tmp_path / "h.parquet").column_names
    assert names == ["query", "rank", "item_id", "score", "id", "score_column", "rank_column"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "no query given"),
        ({"text": "a", "item_id": "b"}, "--text and --id exclude each other"),
        ({"text": " "}, "--text is empty"),
        ({"item_id": "a", "k": 0}, "-k 0"),
    ],
)
def test_specs_that_contradict_themselves(built, given, match):
    with pytest.raises(UsageError, match=match):
        SearchSpec(built, **given)


def test_hits_that_cannot_be_written(built, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        search_index(SearchSpec(built, item_id="item-0001", out=tmp_path / "file" / "hits.parquet"))
    with pytest.raises(UsageError, match="is a folder"):
        SearchSpec(built, item_id="item-0001", out=tmp_path)


# ---- the commands


@pytest.fixture
def run(monkeypatch, store, opener):
    """Run a command line on the fake store and encoder."""
    monkeypatch.setattr(index_step, "open_store", lambda path: store)
    monkeypatch.setattr(search_step, "_own_session", opener)
    app = typer.Typer()
    index_command.register(app)
    search_command.register(app)

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], standalone_mode=False)
        if isinstance(result.exception, EmbedxError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_index_command(run, index_path):
    report = json.loads(run("index", "store", "--out", index_path, "--metric", "l2", "--memory", "1MiB", "--json"))
    assert (report["factory"], report["count"], report["metric"], report["version"]) == ("Flat", 60, "l2", 1)
    assert report["recall"]["value"] == 1.0 and report["recall"]["target"] == 0.95
    assert report["qps"] > 0 and report["bytes"] > 60 * 8 * 4
    text = run("index", "store", "--out", index_path, "--recall", "0.99")
    assert "60 vectors" in text and "recall@10  1.0000" in text and "(version 2)" in text
    with pytest.raises(UsageError, match="--memory '1 potato'"):
        run("index", "store", "--out", index_path, "--memory", "1 potato")
    with pytest.raises(UsageError, match="budget"):
        run("index", "store", "--out", index_path, "--memory", "1KB")


def test_search_command(run, built, store, tmp_path):
    report = json.loads(run("search", built, "--text", as_text(store.matrix[0]), "-k", 3, "--json"))
    assert [hit["id"] for hit in report["hits"]] == expected_ids(store, store.matrix[0], 3)
    lines = run("search", built, "--id", "item-0000", "-k", 12).splitlines()
    assert len(lines) == 12 and lines[0].startswith(" 1  ")
    starts = {line.index("text number") for line in lines}
    assert len(starts) == 1, "columns are aligned"
    hits = [{"id": "a/1.jpg", "score": 0.5, "path": "/data/a/1.jpg", "label": "a"}]
    (line,) = search_command.summary({"hits": hits})
    assert line == "1    0.5000  a/1.jpg  a", "a path that repeats the id is noise"
    path = tmp_path / "q.txt"
    path.write_text("\n".join(as_text(vector) for vector in store.matrix[:25]))
    text = run("search", built, "--queries", path, "-k", 2, "--out", tmp_path / "h.parquet")
    assert "5 more queries" in text and "Wrote 50 hits" in text
    with pytest.raises(UsageError, match="exclude each other"):
        run("search", built, "--id", "a", "--text", "b")


HEAVY = ("torch", "sklearn", "openvino", "transformers", "pandas", "dask", "deltalake")

BUILD = """
import sys
sys.path.insert(0, {root!r})
import embedx.cli.index, embedx.steps.index
import numpy as np
from tests.indexes.fakes import FakeStore
from embedx.indexes import audit, build, spec
from pathlib import Path
audit.SPEED_S = 0.02
assert build.build_index(FakeStore(np.eye(9)), spec.IndexSpec(Path("s"), Path({out!r})))
"""

SEARCH = """
from pathlib import Path
from embedx.steps.search import SearchSpec, search_index
assert search_index(SearchSpec(Path({index!r}), {query}))
"""


@pytest.mark.parametrize("kind", ["id", "npy", "where", "build"])
def test_nothing_heavy_is_imported(built, store, tmp_path, kind):
    np.save(tmp_path / "q.npy", store.matrix[:2])
    query = {
        "id": "item_id='item-0001'",
        "npy": f"queries=Path({str(tmp_path / 'q.npy')!r})",
        "where": "item_id='item-0001', where=\"label = 'red'\"",
    }
    if kind == "build":  # the fake store itself makes pyarrow look for pandas, and a real one needs deltalake
        code = BUILD.format(root=str(Path(__file__).parents[2]), out=str(tmp_path / "other"))
        heavy = tuple(name for name in HEAVY if name not in ("deltalake", "pandas"))
    else:
        code = SEARCH.format(index=str(built), query=query[kind])
        heavy = tuple(name for name in HEAVY if not (kind == "where" and name == "pandas"))  # pyarrow.dataset's
    code += f"\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_step_opens_the_store_it_is_told(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        index_step.index_store(IndexSpec(tmp_path / "absent", tmp_path / "index"))
    assert not (tmp_path / "index").exists()
