"""Tables that mean harm: every bad value is an item with a reason, every broken file an error with its line."""

import csv
import gzip
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.core.errors import CorpusError
from embedx.core.specs import CorpusSpec
from embedx.corpora import columnar, tables, values
from embedx.corpora.listing import open_corpus
from embedx.corpora.tables import Table
from tests.conftest import write_jsonl

ROOT = Path(__file__).parents[2]


def rows_of(*sources, **more):
    corpus = open_corpus(CorpusSpec(tuple(map(str, sources)), **more))
    return [row for batch in corpus.iterate_batches() for row in batch.to_pylist()], corpus


GOOD = {
    "plain": "plain",
    "nul": "a\0b",
    "emoji": "\U0001f469\u200d\U0001f4bb",
    "newer than this Python's Unicode": "\U0001fae9",
    "private use": "\ue000",
    "lines": "a\r\nb\u2028c",
    "combining": "e\u0301",
    "right to left": "\u202eabc",
    "bom": "\ufeffx",
    "long": "word " * 2_000_000,
}

BAD = {
    "null": (None, "is null"),
    "nan": (float("nan"), "is null"),
    "empty": ("", "is empty"),
    "blank": (" \t\n\u00a0\u2003", "is empty"),
    "only nul": ("\0\0", "nothing but control and other invisible characters"),
    "only zero width": ("\u200b\ufeff\u00ad", "nothing but control and other invisible characters"),
    "number": (3, "holds int, not text"),
    "fraction": (0.5, "holds float, not text"),
    "infinite": (float("inf"), "holds float, not text"),
    "boolean": (True, "holds bool, not text"),
    "list": (["a"], "holds list, not text"),
    "object": ({"a": 1}, "holds dict, not text"),
    "surrogate": ("a\ud800", "lone surrogate U+D800 at character 2"),
}


def test_every_value_is_an_item(tmp_path):
    texts = GOOD | {name: value for name, (value, _) in BAD.items()}
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": name, "text": value} for name, value in texts.items()])
    rows, _ = rows_of(path)
    assert [row["item_id"] for row in rows] == list(texts)
    for row in rows:
        name = row["item_id"]
        if name in GOOD:
            assert (row["problem"], row["content"]) == (None, GOOD[name])
        else:
            assert "column 'text'" in row["problem"] and BAD[name][1] in row["problem"] and row["content"] is None
    assert len({row["identity"] for row in rows}) == len(rows), "no bad value passes for another, or for a text"


def test_texts_that_no_tokenizer_could_hold_are_failures(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "MAX_TEXT_CHARACTERS", 100)
    rows, _ = rows_of(write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 100}, {"text": "x" * 101}]))
    assert rows[0]["problem"] is None
    assert rows[1]["problem"] == "column 'text' holds 101 characters; more than 100 are refused"


def latin(tmp_path, suffix):
    """Three items of which the second is Windows-1252."""
    head, line = {
        "jsonl": ("", '{{"id": "{0}", "text": "{1}"}}\n'),
        "csv": ("id,text\n", "{0},{1}\n"),
        "tsv": ("id\ttext\n", "{0}\t{1}\n"),
        "txt": ("", "{1}\n"),
    }[suffix.removesuffix(".gz")]
    lines = [line.format(name, text) for name, text in (("a", "naïve"), ("b", "café"), ("c", "über"))]
    data = (head + lines[0]).encode() + lines[1].encode("cp1252") + lines[2].encode()
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "txt", "jsonl.gz", "csv.gz"])
def test_a_value_that_is_not_utf8_costs_its_item_only(tmp_path, suffix):
    rows, _ = rows_of(latin(tmp_path, suffix))
    assert [row["content"] for row in rows] == ["naïve", None, "über"]
    assert rows[1]["problem"].endswith("is not UTF-8: byte 0xe9 at character 4; it may be Windows-1252 or Latin-1")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "txt"])
def test_tables_of_ids_and_labels_must_be_utf8(tmp_path, suffix):
    """Where no failures are listed, a bad byte is an error with its line."""
    table = Table(latin(tmp_path, suffix), suffix)
    line = 3 if suffix in ("csv", "tsv") else 2
    with pytest.raises(CorpusError, match=rf"t\.{suffix}:{line} is not UTF-8: byte 0xe9"):
        list(table.iterate_pieces())


def parquet_of(path, columns, values):
    """Strings that Parquet calls UTF-8 and are not: it does not check them."""
    arrays = [pa.Array.from_buffers(pa.string(), len(v), pa.array(v, pa.binary()).buffers()) for v in values]
    pq.write_table(pa.table(dict(zip(columns, arrays))), path)
    return path


def test_parquet_that_is_not_utf8_costs_its_item_only(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", ["id", "text"], [[b"a", b"b", b"c"], [b"good", b"caf\xe9", None]])
    rows, _ = rows_of(path)
    assert [row["content"] for row in rows] == ["good", None, None]
    assert "is not UTF-8: byte 0xe9" in rows[1]["problem"] and "is null" in rows[2]["problem"]
    with pytest.raises(CorpusError, match=r"a\.parquet cannot be read"):
        list(Table(path, "parquet").iterate_pieces())


def test_an_id_or_a_carried_value_that_is_not_unicode_is_a_failed_item(tmp_path):
    lines = [{"id": "bad \udcff id", "text": "x", "k": "1"}, {"id": "b", "text": "x", "k": "\ud800"}]
    path = write_jsonl(tmp_path / "a.jsonl", [*lines, {"id": "c", "text": "x", "k": "1"}])
    rows, _ = rows_of(path, columns=("k",))
    assert [row["item_id"] for row in rows] == ["bad \\udcff id", "b", "c"]
    assert [row["problem"] and row["problem"].split(" is ")[0] for row in rows] == ["the id", "column 'k'", None]
    assert len({row["identity"] for row in rows}) == 3, "the good one shares its fate with none"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_utf16_is_named(tmp_path, encoding, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes({"txt": "hello\n", "csv": "id,text\n1,x\n", "jsonl": '{"text": "x"}\n'}[suffix].encode(encoding))
    with pytest.raises(CorpusError, match="is not UTF-8 but UTF-16 or UTF-32"):
        rows_of(path)


def test_duplicate_and_unreadable_column_names_are_errors(tmp_path):
    pq.write_table(
        pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"]), tmp_path / "a.parquet"
    )
    with pytest.raises(CorpusError, match="repeated column names"):
        rows_of(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_bytes("text,größe\nx,y\n".encode("latin1"))
    with pytest.raises(CorpusError, match=r"the name of column .* is not UTF-8"):
        rows_of(tmp_path / "a.csv")


def test_only_the_needed_columns_of_parquet_are_read(tmp_path):
    """Of pictures beside the texts, or of dates that Python cannot hold, nobody asked anything."""
    dates = pa.array([10**18], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["x"], "day": dates}), tmp_path / "a.parquet")
    rows, _ = rows_of(tmp_path / "a.parquet")
    assert rows[0]["content"] == "x"
    with pytest.raises(CorpusError, match=r"a\.parquet cannot be read"):
        rows_of(tmp_path / "a.parquet", columns=("day",))


def test_long_lines_are_refused_with_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE_CHARACTERS", 1000)
    for suffix, head in (("txt", ""), ("jsonl", '{"text": "x"}\n'), ("csv", "text\n")):
        path = tmp_path / f"a.{suffix}"
        path.write_text(f"{head}{'x' * 2000}\n")
        with pytest.raises(CorpusError, match=rf"a\.{suffix}:{1 if suffix == 'txt' else 2} is longer than 1,000"):
            rows_of(path)


def test_cells_of_many_lines_are_bounded(tmp_path):
    limit = csv.field_size_limit(1000)
    try:
        (tmp_path / "a.csv").write_text('text\n"' + "line\n" * 1000 + '"\n')
        with pytest.raises(CorpusError, match=r"a\.csv:2 is not valid CSV \(field larger than field limit"):
            rows_of(tmp_path / "a.csv")
    finally:
        csv.field_size_limit(limit)
    assert limit == tables.MAX_LINE_CHARACTERS


UNPACK = """
import resource, sys
from embedx.core.errors import CorpusError
from embedx.core.specs import CorpusSpec
from embedx.corpora import tables
from embedx.corpora.listing import open_corpus

tables.MAX_LINE_CHARACTERS = 10_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(open_corpus(CorpusSpec((sys.argv[1],))).iterate_batches())
except CorpusError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error.message)
"""


@pytest.mark.parametrize("suffix", ["txt.gz", "jsonl.gz", "csv.gz"])
def test_gzip_bombs_take_no_memory(tmp_path, suffix):
    """Half a gigabyte without a line break in half a megabyte."""
    path = tmp_path / f"bomb.{suffix}"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(500):
            file.write(b"x" * 2**20)
    command = [sys.executable, "-c", UNPACK, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    taken, _, message = done.stdout.partition(" ")
    assert int(taken) < 150 * 1024 and ":1 is longer than" in message


def test_pieces_are_bounded_in_bytes(tmp_path, monkeypatch):
    for module in (tables, columnar):
        monkeypatch.setattr(module, "PIECE_BYTES", 100_000)
    texts = [f"{n:030000}" for n in range(60)]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd")
    for format in ("jsonl", "parquet"):
        pieces = list(Table(tmp_path / f"a.{format}", format).iterate_pieces())
        assert [row["text"] for piece in pieces for row in piece.rows] == texts
        assert all(pieces[n + 1].start == piece.start + len(piece.rows) for n, piece in enumerate(pieces[:-1]))
        assert all(sum(len(row["text"]) for row in piece.rows) < 200_000 for piece in pieces) and len(pieces) > 9


def test_blank_lines_are_counted_once_however_often_it_is_listed(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n \ntwo\n")
    corpus = open_corpus(CorpusSpec((str(tmp_path / "a.txt"),)))
    for _ in range(2):
        assert sum(batch.num_rows for batch in corpus.iterate_batches()) == 2
        assert corpus.ignored == {"blank lines": 2}


@pytest.mark.parametrize("text", ["", "x" * 5000, "a\0b"])
def test_odd_source_names_are_errors(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match="source"):
        rows_of(text)


@pytest.mark.parametrize("make", [lambda path: f"{path}", lambda path: f"alias={path}"])
def test_a_source_whose_path_is_not_utf8_is_an_error(tmp_path, make):
    """Its items could not be recorded; not even the error could be printed."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(folder)
    with pytest.raises(CorpusError, match="cannot be recorded: its name is not UTF-8: byte 0xe9") as error:
        rows_of(make(folder))
    str(error.value).encode()


def test_a_pipe_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(CorpusError, match="is no file but a pipe"):
        rows_of(tmp_path / "a.jsonl")


def test_deep_json_is_an_error_with_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(CorpusError, match=r"a\.jsonl:2 is not valid JSON"):
        rows_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize("depth", [100, 500, *range(860, 1000, 10)])
def test_nested_values_can_be_carried_or_are_named(tmp_path, depth):
    """Python writes less deep JSON than it reads, and both depend on who calls."""
    nested = "[" * depth + "]" * depth
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x", "k": {nested}}}\n')
    try:
        rows, _ = rows_of(tmp_path / "a.jsonl", columns=("k",))
    except CorpusError as error:
        assert "a.jsonl" in error.message and depth > 500
    else:
        assert rows[0]["c_k"] == nested


def test_a_quote_in_a_tsv_swallows_no_rows(tmp_path):
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"open\n2\tmid\n3\tend"\n')
    with pytest.raises(CorpusError, match=r"a\.tsv:2 has a quoted field with tabs that goes on to line 4"):
        rows_of(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").write_text('id\ttext\n1\t"a ""word"""\n2\tb\n')
    assert [row["content"] for row in rows_of(tmp_path / "b.tsv")[0]] == ['a "word"', "b"]
    (tmp_path / "c.csv").write_text('id,text\n1,"two\nlines"\n')
    assert [row["content"] for row in rows_of(tmp_path / "c.csv")[0]] == ["two\nlines"]
