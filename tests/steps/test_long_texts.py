"""`--long chunk`: long texts are read whole, in windows, through the real command."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedx.core.contracts import Broken
from embedx.core.errors import UsageError
from embedx.core.long_texts import parse_long
from embedx.inference.pipeline import Embedded
from embedx.steps.encoding import open_encoder_session
from embedx.steps.long_texts import Windows, pool_windows
from embedx.store.reader import open_store
from tests.conftest import SUPPORT, write_jsonl

SUBJECTS = {
    "sea": "The ship sailed over the stormy ocean towards the harbour. Waves broke over the sailor and his boat.",
    "kitchen": "Chop the onions and fry them in butter. Add flour to the soup and let it simmer for an hour.",
    "law": "The court rejected the appeal of the defendant. The judge ruled that the contract was void.",
}


def passage(subject: str, seed: int, sentences: int = 14) -> str:
    rng = random.Random(f"{subject}{seed}")
    words = SUBJECTS[subject].rstrip(".").replace(". ", " ").lower().split()
    return " ".join(f"{' '.join(rng.choices(words, k=9)).capitalize()}." for _ in range(sentences))


def book(seed: int) -> str:
    return "\n\n".join(passage(subject, seed) for subject in SUBJECTS for _ in range(2))


@pytest.fixture(scope="module")
def session():
    return open_encoder_session({"family": "minilm"}, "", "fp32")


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    broken=st.sets(st.integers(0, 47)),
    pool=st.sampled_from(["mean", "max"]),
    normalized=st.booleans(),
)
def test_pooling_is_that_of_each_item_alone(counts, broken, pool, normalized):
    windows = Windows([""] * sum(counts), np.array(counts))
    vectors = np.random.default_rng(1).normal(size=(sum(counts), 3)).astype(np.float32)
    good = np.array([row for row in range(len(vectors)) if row not in broken], dtype=np.int64)
    failed = {row: Broken("forward", "Odd", f"row {row}") for row in sorted(broken) if row < len(vectors)}
    pooled = pool_windows(Embedded(vectors[good], good, failed, {}), windows, pool, normalized)
    assert sorted([*pooled.positions.tolist(), *pooled.failures]) == list(range(len(counts)))
    found = dict(zip(pooled.positions.tolist(), pooled.vectors))
    for item, first in enumerate(windows.firsts.tolist()):
        own = range(first, first + counts[item])
        if bad := [row for row in own if row in failed]:
            where = f"window {bad[0] - first + 1} of {counts[item]}: " if counts[item] > 1 else ""
            assert pooled.failures[item].message == f"{where}row {bad[0]}"
            continue
        want = vectors[own].max(axis=0) if pool == "max" else vectors[own].mean(axis=0, dtype=np.float64)
        if normalized and counts[item] > 1:
            want = want / np.linalg.norm(want)
        np.testing.assert_allclose(found[item], want, rtol=1e-5, atol=1e-6)
        assert counts[item] > 1 or (found[item] == vectors[first]).all()


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_one_row_per_text_pooled_over_all_of_it(embedx, tmp_path, session, pool):
    rows = [{"id": f"b{n}", "text": book(n)} for n in range(4)] + [{"id": "short", "text": SUBJECTS["law"]}]
    write_jsonl(tmp_path / "c.jsonl", [*rows, {"id": "again", "text": rows[0]["text"]}])
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--precision", "fp32", "--out", "s")
    chunked = ("--long", "chunk", "--chunk-pool", pool)
    report = embedx.json(*arguments, *chunked)
    assert report["items"]["embedded"] == 6 and report["truncated_share"] == 0.0
    spans = {row["id"]: session.embedder.encoder.windows([row["text"]])[0] for row in rows}
    assert report["long"] == {
        "mode": "chunk",
        "pool": pool,
        "chunked": 4,
        "windows": sum(len(found) for found in spans.values()),
    }
    assert report["long"]["windows"] > 15
    ids, vectors = open_store(tmp_path / "s").vectors()
    found = dict(zip(ids, vectors))
    assert (found["again"] == found["b0"]).all()
    for row in rows:
        parts, failures = session.embed_texts([row["text"][a:b] for a, b in spans[row["id"]]])
        assert not failures
        want = parts.mean(axis=0) if pool == "mean" else parts.max(axis=0)
        assert found[row["id"]] @ want / np.linalg.norm(want) > 0.9999
        assert np.isclose(np.linalg.norm(found[row["id"]]), 1, atol=1e-3)
    if pool == "max":
        return
    assert embedx.json("verify", "s", "--deep", "6")["ok"]
    assert embedx.json(*arguments)["items"]["unchanged"] == 6, "without the flag it is as the store has it"
    for other in (("--long", "truncate"), ("--long", "chunk", "--chunk-pool", "max")):
        error = embedx.json(*arguments, *other, status=1)["error"]
        assert f"created with {' '.join(chunked)}, not {' '.join(other)}" in error["message"]


def test_the_share_of_truncated_texts_is_reported(embedx, tmp_path):
    rows = [{"id": str(n), "text": book(0) if n < 3 else f"short {n}"} for n in range(10)]
    write_jsonl(tmp_path / "c.jsonl", rows)
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s")
    report = embedx.json(*arguments, "--estimate")
    assert report["estimate"]["truncated_share"] == 0.125, "one of eight distinct texts"
    shown = embedx(*arguments, "--long", "truncate").stdout
    assert "12.5% of the texts are longer than the encoder reads: --long chunk reads all of them" in shown
    error = embedx.json(*arguments, "--long", "chunk", "--chunk-pool", "mean", status=1)["error"]
    assert "created with --long truncate, not --long chunk --chunk-pool mean" in error["message"]


def test_what_cannot_be_chunked_is_refused_before_anything_is_written(embedx, tmp_path):
    (tmp_path / "words.vec").write_text("2 2\na 1 0\nb 0 1\n")
    chunk = ("--long", "chunk", "--chunk-pool", "mean", "--out", "s")
    error = embedx.json("extract", SUPPORT, "--encoder", "word2vec:words.vec", *chunk, status=2)["error"]
    assert "words.vec cannot cut texts into windows" in error["message"] and "--long" in error["remedy"]
    assert not (tmp_path / "s").exists()


def test_flags_that_make_no_sense():
    assert parse_long(None, None) is None
    for mode, pool, what in (
        ("cut", None, "--long 'cut'"),
        ("chunk", "sum", "--chunk-pool 'sum'"),
        (None, "mean", "--chunk-pool mean"),
        ("truncate", "max", "--chunk-pool max"),
    ):
        with pytest.raises(UsageError, match=what):
            parse_long(mode, pool)
