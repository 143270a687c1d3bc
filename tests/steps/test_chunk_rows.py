"""`--long chunk`: a long text has a row for each chunk, and all of them come, change and go with their text."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from embedx.core.contracts import Broken
from embedx.inference.pipeline import Embedded
from embedx.steps.labels import read_labels
from embedx.steps.long_texts import EmbeddedChunks, Windows, list_chunks, spread_copies
from embedx.store.reader import open_store
from tests.conftest import write_jsonl
from tests.steps.test_long_texts import SUBJECTS, book, passage, session  # noqa: F401 - a fixture

ARGUMENTS = ("extract", "c.jsonl", "--encoder", "minilm", "--precision", "fp32", "--columns", "label", "--out", "s")
CHUNK = (*ARGUMENTS, "--long", "chunk")
SMALL = {"EMBEDX_SHARD_ITEMS": "3"}


STARS = (
    "Astronomers see a near star move against those behind it while the earth goes round the sun. Half of that angle is "
    "its parallax. A telescope above the air measures it to a few millionths of a degree. From the parallax and the size of "
    "the earth's orbit follows the distance of the star. Farther stars are compared with pulsating ones, whose period "
    "tells how bright they are. In other galaxies it is exploding stars by which astronomers measure. The redder the light of "
    "a galaxy, the farther it is, for the universe expands. So each step of the ladder rests on the one below it. The light "
    "of the next star takes four years to reach our telescopes, that of the next large galaxy two million years. "
)


def rows_of(path):
    """parent -> its rows in the order of the chunks, each a dict with its vector."""
    store = open_store(path)
    ids, vectors = store.vectors()
    table = store.table(["item_id", "parent_id", "text", "label", "digest", "source"]).to_pylist()
    assert len(set(ids)) == len(ids)
    found = {}
    for row, vector in sorted(zip(table, vectors), key=lambda pair: pair[0]["item_id"]):
        found.setdefault(row["parent_id"] or row["item_id"], []).append({**row, "vector": vector})
    return found


def check(path, documents, session):  # noqa: F811
    """The store holds exactly the chunks of these documents, under their names, with the vectors of their texts."""
    found = rows_of(path)
    assert found.keys() == {row["id"] for row in documents}
    for row in documents:
        spans = session.embedder.encoder.windows([row["text"]])[0]
        own = found[row["id"]]
        assert [chunk["text"] for chunk in own] == [row["text"][a:b] for a, b in spans]
        names = [f"{row['id']}#c{n:04d}" for n in range(len(spans))] if len(spans) > 1 else [row["id"]]
        assert [chunk["item_id"] for chunk in own] == names
        assert {chunk["parent_id"] for chunk in own} == {row["id"] if len(spans) > 1 else None}
        assert {chunk["label"] for chunk in own} == {row["label"]} and len({chunk["digest"] for chunk in own}) == 1
        vectors, failures = session.embed_texts([chunk["text"] for chunk in own])
        assert not failures
        assert (np.einsum("ij,ij->i", vectors, np.stack([chunk["vector"] for chunk in own])) > 0.9999).all()
    return sum(len(own) for own in found.values())


def documents():
    books = [{"id": f"b{n}", "text": book(n), "label": "long"} for n in range(5)]
    return [*books, *({"id": f"s{n}", "text": passage("law", n, 2), "label": "short"} for n in range(4))]


def test_chunks_come_change_and_go_with_their_text(embedx, tmp_path, session):  # noqa: F811
    docs = [*documents(), {"id": "copy", "text": book(0), "label": "long"}]
    write_jsonl(tmp_path / "c.jsonl", docs)
    report = embedx.json(*CHUNK, env=SMALL)
    assert report["items"]["embedded"] == 10 == report["items"]["planned"] and report["truncated_share"] == 0
    rows = check(tmp_path / "s", docs, session)
    assert report["rows"] == rows > 25 and report["long"]["pool"] is None
    assert embedx.json(*ARGUMENTS, "--dry-run")["items"]["unchanged"] == 10
    by_id = {row["id"]: row for row in docs}
    by_id["b0"]["text"] = by_id["b0"]["text"][:2500] + " Changed."  # fewer chunks
    by_id["b1"]["label"] = "relabelled"
    by_id["s0"]["text"] = book(9)  # a short text becomes a long one
    by_id["b3"]["text"] = passage("sea", 3, 2)  # and a long one short
    by_id["b4"]["text"] = " "  # and one fails now
    del by_id["b2"], by_id["s1"]
    write_jsonl(tmp_path / "c.jsonl", list(by_id.values()))
    report = embedx.json(*CHUNK, "--mirror", "--max-failures", "1", env=SMALL)
    items = report["items"]
    assert (items["changed"], items["updated"], items["removed"], items["unchanged"]) == (4, 1, 2, 3)
    assert items["failed"] == 1 and report["rows"] == open_store(tmp_path / "s").count
    docs = [row for row in by_id.values() if row["id"] != "b4"]
    check(tmp_path / "s", docs, session)
    assert embedx.json("verify", "s", "--deep", "20")["ok"]
    assert embedx.json("delete", "s", "--ids", write_ids(tmp_path, "copy"))["removed"] == 1
    assert rows_of(tmp_path / "s").keys() == {row["id"] for row in docs if row["id"] != "copy"}


def write_ids(folder, *ids):
    (folder / "ids.txt").write_text("\n".join(ids))
    return "ids.txt"


def test_an_interrupted_run_is_adopted_by_whole_texts(embedx, tmp_path, session):  # noqa: F811
    docs = documents()
    write_jsonl(tmp_path / "c.jsonl", [*docs, {"id": "bad", "text": " ", "label": ""}])
    embedx(*CHUNK, "--max-failures", "0", status=3, env=SMALL)
    docs[1] = {**docs[1], "text": book(7)}  # of the first shard: b0 and b2 of it are wanted still
    write_jsonl(tmp_path / "c.jsonl", docs)
    report = embedx.json(*CHUNK, env=SMALL)
    assert report["items"]["embedded"] == 9 and report["items"]["new"] == 1
    assert report["shards"]["reused"] == 2 and report["rows"] == check(tmp_path / "s", docs, session)
    assert embedx.json("verify", "s")["ok"]
    write_jsonl(tmp_path / "c.jsonl", docs[:6])
    error = embedx.json(*CHUNK, "--mirror", "--dry-run", status=1)["error"]
    assert "would remove 3 of 9 items" in error["message"], "texts are counted, not rows"
    write_jsonl(tmp_path / "c.jsonl", [{**docs[0], "id": "b0#c0001"}])
    assert "'b0#c0001' ends as those of chunks" in embedx.json(*CHUNK, "--dry-run", status=1)["error"]["message"]
    error = embedx.json(*CHUNK, "--chunk-pool", "max", "--dry-run", status=1)["error"]
    assert "created with --long chunk, not --long chunk --chunk-pool max" in error["message"]


def test_a_book_among_a_thousand_documents_is_found_by_its_passage(embedx, tmp_path):
    rng = random.Random(5)
    parts = [passage(rng.choice(list(SUBJECTS)), n) for n in range(150)]
    parts[97] = STARS
    docs = [{"id": "book", "text": "\n\n".join(parts), "label": "book"}]
    docs += [{"id": f"m{n}", "text": book(n), "label": "middle"} for n in range(6)]
    docs += [{"id": f"d{n}", "text": passage(rng.choice(list(SUBJECTS)), n, 1), "label": "small"} for n in range(990)]
    write_jsonl(tmp_path / "c.jsonl", docs)
    report = embedx.json(*CHUNK)
    assert report["items"]["embedded"] == 997 and report["long"]["chunked"] == 7 and report["rows"] > 1080
    embedx("index", "s", "--out", "i")
    hits = embedx.json("search", "i", "--text", "How do astronomers measure the distance of stars?", "-k", "5")["hits"]
    assert (
        hits[0]["parent_id"] == "book" and "parallax" in hits[0]["text"] and re.fullmatch(r"book#c\d{4}", hits[0]["id"])
    )
    hits = embedx.json(
        "search", "i", "--text", "sailor and boat on the ocean", "-k", "20", "--where", "label != 'small'"
    )["hits"]
    assert sorted(hit["parent_id"] for hit in hits) == ["book", *(f"m{n}" for n in range(6))], "the best chunk of each"
    near = embedx.json("search", "i", "--id", "book#c0003", "-k", "5")["hits"]
    assert len(near) == 5 and all(hit["parent_id"] != "book" for hit in near)
    store = open_store(tmp_path / "s")
    rows = read_labels(store, "label")
    assert rows.groups.tolist() == [re.sub(r"#c\d+$", "", item_id) for item_id in rows.ids]
    write_jsonl(tmp_path / "l.jsonl", [{"id": row["id"], "kind": row["label"]} for row in docs])
    joined = read_labels(store, "kind", tmp_path / "l.jsonl")
    assert joined.labels.tolist() == rows.labels.tolist() and joined.n_unmatched == 0


def test_an_item_with_a_failed_chunk_has_no_rows():
    windows = Windows(list("abcdef"), np.array([1, 3, 2]))
    vectors = np.arange(5, dtype=np.float32)[:, None]
    broken = Broken("forward", "Odd", "why")
    chunks = list_chunks(Embedded(vectors, np.array([0, 1, 3, 4, 5]), {2: broken}, {}), windows)
    assert chunks.positions.tolist() == [0, 2, 2] and chunks.numbers.tolist() == [-1, 0, 1]
    assert chunks.texts == ["a", "e", "f"] and chunks.vectors[:, 0].tolist() == [0, 3, 4]
    assert list(chunks.failures) == [1] and chunks.failures[1].message == "window 2 of 3: why"
    spread = spread_copies(chunks, np.array([2, 1, 0, 2]))
    assert isinstance(spread, EmbeddedChunks)
    assert spread.positions.tolist() == [0, 0, 2, 3, 3] and spread.texts == ["e", "f", "a", "e", "f"]
    assert spread.numbers.tolist() == [0, 1, -1, 0, 1] and list(spread.failures) == [1]


@pytest.mark.parametrize("repeats", [1, 3])
def test_copies_of_plain_items(repeats):
    once = Embedded(np.array([[1.0], [2.0]], dtype=np.float32), np.array([0, 2]), {1: Broken("a", "b", "c")}, {})
    spread = spread_copies(once, np.array([2, 1, 0, 0] * repeats))
    assert spread.vectors[:, 0].tolist() == [2.0, 1.0, 1.0] * repeats
    assert spread.positions.tolist() == [place + 4 * n for n in range(repeats) for place in (0, 2, 3)]
