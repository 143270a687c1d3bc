"""Generated corpora, hundreds of them, through listing, reading and decoding: nothing raises, nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedx.core.contracts import Broken
from embedx.core.errors import CorpusError, EmbedxError, UsageError
from embedx.core.specs import CorpusSpec
from embedx.corpora.content import read_image
from embedx.corpora.decode import decode_image
from embedx.corpora.folders import iterate_images
from embedx.corpora.listing import open_corpus
from embedx.corpora.tables import Table
from tests.corpora import hostile

CHEAP = settings(max_examples=200, deadline=None, derandomize=True, print_blob=True)


# -- pictures --------------------------------------------------------------------------------------------------

SEEDS = sorted({**hostile.good(), **{bad.name: bad.data for bad in hostile.all_bad()}}.items())
SMALL = [data for _, data in SEEDS if len(data) < 50_000]


def check_outcome(result):
    if isinstance(result, Broken):
        assert result.stage == "decode" and result.error and 0 < len(result.message) <= 500
        result.message.encode()
        assert not result.retryable
    else:
        assert result.mode == "RGB" and result.width * result.height > 0
        result.getpixel((0, 0))


@CHEAP
@given(st.sampled_from(SMALL), st.data())
def test_damaged_bytes_never_raise(data, draw):
    """Bits that flipped, and bytes that are missing, doubled or foreign, anywhere in any kind of file."""
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, max(0, len(damaged) - 1)) | st.integers(0, min(200, max(0, len(damaged) - 1))))
        length = draw.draw(st.integers(0, 9))
        damaged[place : place + length] = draw.draw(st.binary(max_size=9))
    check_outcome(decode_image(bytes(damaged), "damaged.png"))


@CHEAP
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"RIFF"]),
)
def test_any_bytes_never_raise(data, head):
    check_outcome(decode_image(head + data, "noise.jpg"))


# -- folders ---------------------------------------------------------------------------------------------------

PARTS = st.text(
    alphabet=st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)
SUFFIXES = st.sampled_from([".jpg", ".JPG", ".png", ".gif", "", ".txt", ".eps", ".jpg.txt", ".tar.gz", "."])
PATHS = st.lists(PARTS, min_size=1, max_size=3)
ENTRIES = st.lists(
    st.tuples(PATHS, SUFFIXES, st.sampled_from(["file", "file", "folder", "dangling", "loop", "up"])), max_size=12
)


def make(root: Path, entries) -> None:
    for parts, suffix, kind in entries:
        path = root.joinpath(*parts[:-1], parts[-1] + suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.write_bytes(b"x")
            elif kind == "folder":
                path.mkdir()
            else:
                path.symlink_to({"dangling": "nowhere", "loop": path.name, "up": root}[kind])
        except OSError:  # the name is taken, by a file or as a folder
            continue


def entries_by_hand(root: Path) -> int:
    """What is there, folders that are walked into aside; with pathlib, where the code uses os.scandir."""
    count = 0
    for entry in root.iterdir():
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            count += entries_by_hand(entry)
        else:
            count += 1
    return count


@CHEAP
@given(ENTRIES)
def test_every_entry_of_a_folder_is_listed_or_counted(entries):
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), entries)
        ignored: Counter[str] = Counter()
        found = list(iterate_images(Path(folder), ignored))
        assert len(found) + sum(ignored.values()) == entries_by_hand(Path(folder))
        assert len({relative for _, relative in found}) == len(found)
        for path, relative in found:
            assert os.path.join(folder, relative) == path and os.path.lexists(path)
        if found:
            corpus = open_corpus(CorpusSpec((folder,)))
            rows = [row for batch in corpus.iterate_batches() for row in batch.to_pylist()]
            assert [row["item_id"] for row in rows] == [relative for _, relative in found]
            for row in rows:
                assert isinstance(read_image(row["locator"]).item, Broken)
        else:
            with pytest.raises(CorpusError, match="has no images"):
                list(open_corpus(CorpusSpec((folder,))).iterate_batches())


# -- tables ----------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=30)
VALUES = st.one_of(
    TEXTS,
    st.text(alphabet=st.characters(), max_size=5),
    st.none(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(TEXTS, TEXTS, max_size=2),
)


def list_rows(path: Path, **more):
    corpus = open_corpus(CorpusSpec((str(path),), **more))
    return [row for batch in corpus.iterate_batches() for row in batch.to_pylist()], corpus


def check_rows(rows, texts):
    """One row for each text, in order: its content, or a problem."""
    assert len(rows) == len(texts)
    for row, text in zip(rows, texts):
        assert (row["problem"] is None) != (row["content"] is None)
        if row["problem"] is None:
            assert row["content"] == text
    by_identity: dict[str, str | None] = {}
    for row in rows:
        assert by_identity.setdefault(row["identity"], row["content"]) == row["content"], "equal only if alike"


@CHEAP
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=20))
def test_every_row_of_jsonl_is_an_item(pairs):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_text("".join(json.dumps({"text": text, "k": other}) + "\n" for text, other in pairs))
        rows, _ = list_rows(path, text_column="text", columns=("k",))
        check_rows(rows, [text for text, _ in pairs])


@CHEAP
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20),
    st.sampled_from([",", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_every_row_of_csv_is_an_item(pairs, delimiter, ending, mark):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("t.csv" if delimiter == "," else "t.tsv")
        with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)
            writer.writerows([("text", "k"), *pairs])
        rows, _ = list_rows(path, columns=("k",))
        check_rows(rows, [text for text, _ in pairs])
        for row, (_, other) in zip(rows, pairs):
            assert row["c_k"] == other


@CHEAP
@given(
    st.lists(st.one_of(st.none(), TEXTS), min_size=1, max_size=30), st.sampled_from(["plain", "dictionary", "large"])
)
def test_every_row_of_parquet_is_an_item(texts, how):
    column = pa.array(texts, pa.large_string() if how == "large" else pa.string())
    table = pa.table({"text": column.dictionary_encode() if how == "dictionary" else column})
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, Path(folder) / "t.parquet", row_group_size=7)
        rows, _ = list_rows(Path(folder) / "t.parquet")
        check_rows(rows, texts)


@CHEAP
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"id,text\n", b'{"text": "x"}\n', b"text\n"]),
    st.sampled_from(["txt", "csv", "tsv", "jsonl"]),
)
def test_any_bytes_are_items_blank_lines_or_an_error(data, head, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{suffix}"
        path.write_bytes(head + data)
        try:
            rows, corpus = list_rows(path)
        except EmbedxError as error:
            assert isinstance(error, UsageError) or f"t.{suffix}" in error.message
            assert error.remedy and error.message.encode()
            return
        assert all((row["problem"] is None) != (row["content"] is None) for row in rows)
        if suffix in ("txt", "jsonl"):
            lines = (head + data).split(b"\n")
            assert len(rows) + corpus.ignored["blank lines"] == len(lines) - (not lines[-1])


@CHEAP
@given(st.binary(max_size=300))
def test_damaged_parquet_is_an_error_that_names_it(data):
    whole = io.BytesIO()
    pq.write_table(pa.table({"text": ["some", "words"] * 20}), whole)
    raw = bytearray(whole.getvalue())
    place = int.from_bytes(data[:4], "big") % len(raw)
    raw[place : place + len(data)] = data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        path.write_bytes(raw)
        try:
            table = Table(path, "parquet")
            table.columns()
            assert sum(len(piece.rows) for piece in table.iterate_pieces()) >= 0
        except CorpusError as error:
            assert "t.parquet" in error.message
