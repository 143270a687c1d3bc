"""A hundred thousand texts, then 1 % of each kind of change: exactly that is embedded, updated and removed."""

import csv
import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.store.reader import open_store


@pytest.fixture
def rows(shared):
    with gzip.open(shared / "data" / "tatoeba" / "eng-fra.tsv.gz") as file:
        pairs = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    return [{"id": f"s{number:06d}", "text": pair["en"], "topic": "a"} for number, pair in enumerate(pairs[:100_000])]


@pytest.mark.slow
def test_a_hundred_thousand_texts(embedx, tmp_path, rows, shared):
    # Static embeddings: what is tested is not the encoder, and MiniLM takes minutes.
    encoder = f"sentence_transformers:{shared / 'weights' / 'potion-base-4m'}"
    arguments = ("extract", "texts.parquet", "--encoder", encoder, "--columns", "topic", "--out", "s")
    write = lambda: pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet")  # noqa: E731
    write()
    first = embedx.json(*arguments, env={"EMBEDX_SHARD_ITEMS": "4096"})
    assert first["items"]["embedded"] == 100_000 and first["shards"]["computed"] == 25
    before = {item_id: vector for item_id, vector in zip(*open_store(tmp_path / "s").vectors())}

    rng = np.random.default_rng(0)
    changed, gone, relabelled = np.split(rng.permutation(100_000)[:3_000], 3)
    for row in changed.tolist():
        rows[row]["text"] += f" Indeed, that is what number {row} says."
    for row in relabelled.tolist():
        rows[row]["topic"] = "b"
    removed = {rows[row]["id"] for row in gone.tolist()}
    rows[:] = [row for row in rows if row["id"] not in removed]
    rows.extend(
        {"id": f"new{number}", "text": f"A new sentence, number {number}.", "topic": "c"} for number in range(1_000)
    )
    write()
    second = embedx.json(*arguments, "--mirror")
    counts = {name: second["items"][name] for name in ("embedded", "updated", "removed", "unchanged", "failed")}
    assert counts == {"embedded": 2_000, "updated": 1_000, "removed": 1_000, "unchanged": 97_000, "failed": 0}

    now = open_store(tmp_path / "s")
    ids, vectors = now.vectors()
    after = dict(zip(ids, vectors))
    assert after.keys() == {row["id"] for row in rows}
    table = now.table(["item_id", "topic"])
    topics = dict(zip(table.column("item_id").to_pylist(), table.column("topic").to_pylist()))
    assert topics == {row["id"]: row["topic"] for row in rows}
    touched = {f"s{row:06d}" for row in changed.tolist()}
    assert all(np.array_equal(after[i], before[i]) != (i in touched) for i in after if i in before)

    old = open_store(tmp_path / "s", version=first["version"])
    assert old.count == 100_000 and set(old.vectors()[0]) == before.keys(), "the old version still reads"
    assert embedx.json(*arguments, "--mirror")["items"]["planned"] == 0
    assert embedx.json("verify", "s")["ok"]
