"""Whole runs over a service that misbehaves: right or named, never more requests than allowed, the key nowhere."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from embedx.core.errors import EmbedxError, FingerprintMismatchError
from embedx.encoders.registry import parse_ref
from embedx.indexes.spec import IndexSpec
from embedx.steps.conformance import check_conformance
from embedx.steps.index import index_store
from embedx.steps.search import SearchSpec, search_index
from embedx.store.reader import open_store
from tests.conftest import write_jsonl
from tests.remote_server import vector_of
from tests.remote_services import serve

KEY = "sk-very-secret-0815"


@pytest.fixture
def corpus(tmp_path):
    rows = [
        {"id": f"t{number:03d}", "text": f"item {number} of group{number % 5}", "group": f"g{number % 5}"}
        for number in range(160)
    ]
    write_jsonl(tmp_path / "c.jsonl", rows)
    return rows


def run(service, tmp_path, *more, **model_args):
    service.write_encoder(tmp_path / "e.toml", batch_items=4, **{"attempts": 9, **model_args})
    return ("extract", "c.jsonl", "--encoder", "e.toml", "--out", "s", "--columns", "group", *more)


def check_store(folder, rows, missing=()):
    ids, vectors = open_store(folder / "s").vectors()
    assert sorted(ids) == [row["id"] for row in rows if row["id"] not in missing]
    texts = {row["id"]: row["text"] for row in rows}
    for item_id, vector in zip(ids, vectors):
        np.testing.assert_allclose(vector, vector_of(texts[item_id]), atol=1e-3, err_msg=item_id)


def env(tmp_path, **more):
    # A cache of its own, because it is searched for the key too.
    return {"EMBEDX_REMOTE_KEY": KEY, "EMBEDX_SHARD_ITEMS": "20", "EMBEDX_CACHE": str(tmp_path / "cache"), **more}


def settled(service):
    """Return how many requests there were, once no more come."""
    count, before = len(service.requests()), -1
    while count != before:
        time.sleep(0.5)
        count, before = len(service.requests()), count
    return count


def files_with(secret: str, folder: Path):
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_all_right_or_named_and_the_key_nowhere(embedx, tmp_path, corpus):
    for place, mark in {7: "400", 71: "500", 140: "nan"}.items():
        corpus[place]["text"] += f" ALWAYS-{mark}"
    write_jsonl(tmp_path / "c.jsonl", corpus)
    logs = tmp_path / "service"
    logs.mkdir()
    said = []
    with serve(logs, chaos=0.3, key=KEY) as service:
        command = run(service, tmp_path, "--max-failures", "3", "--workers", 2, timeout_s=1.2)
        done = embedx(*command, env=env(tmp_path))
        assert "requests" in done.stdout and "retries" in done.stdout
        report = embedx.json("history", "s")
        bad = {f"t{place:03d}" for place in (7, 71, 140)}
        check_store(tmp_path, corpus, bad)
        listed = embedx("failures", "s", "--json").stdout
        assert all(item_id in listed for item_id in bad) and "HTTP 400" in listed and "NaN" in listed
        embedx("index", "s", "--out", "i")
        found = embedx("search", "i", "--text", "item 42 of group2", "-k", "1", "--json", env=env(tmp_path)).stdout
        assert '"t042"' in found
        shown = embedx("encoders", "show", "e.toml", env=env(tmp_path)).stdout
        assert "canary" in shown
        said += [done.stdout, done.stderr, listed, found, shown, str(report)]
    wrong = embedx(*command, env=env(tmp_path), status=75)  # the server is gone
    unset = embedx("search", "i", "--text", "x", env={**env(tmp_path), "EMBEDX_REMOTE_KEY": ""}, status=75)
    said += [wrong.stdout, wrong.stderr, unset.stderr]
    assert KEY not in "".join(said) and "cannot be reached" in wrong.stderr
    assert KEY not in os.environ.get("EMBEDX_REMOTE_KEY", "")
    assert files_with(KEY, tmp_path) == [] and files_with("item 42 of", tmp_path)  # the search for it does find


def test_never_more_requests_than_allowed_and_resume_is_free(embedx, tmp_path, corpus):
    with serve(tmp_path, chaos=0.25, seed=5) as service:
        command = run(service, tmp_path, "--workers", 2)
        seen = 0
        # The second one is more than four shards in work need, so that some finish, and less than all shards do.
        for limit in (2, 42):
            error = embedx.json(*command, "--max-requests", limit, status=1, env=env(tmp_path))["error"]
            asked = settled(service) - seen
            assert asked <= limit and f"all {limit} requests" in error["message"], (asked, limit)
            seen += asked
        before = len(service.requests())
        report = embedx.json(*command, "--max-requests", 500, env=env(tmp_path))
        time.sleep(0.2)
        assert report["shards"]["reused"] > 0 and report["items"]["embedded"] == 160
        check_store(tmp_path, corpus)
        asked = service.requests()[before:]
        assert report["usage"]["requests"] == len(asked) <= 500
        good = [text for request in asked if request["did"] == "good" for text in request["texts"] if "item" in text]
        # A good answer that came too late is asked for twice.
        assert len(set(good)) == 20 * report["shards"]["computed"], "finished shards are not asked for again"
        assert report["usage"]["retries"] > 0 and report["usage"]["tokens"] > 0
        assert not list(tmp_path.rglob("requests.json*"))
        again = embedx.json(*command, env=env(tmp_path))
        assert again["run"] is None and again["usage"]["requests"] >= 1


def test_an_estimate_keeps_to_the_limit(embedx, tmp_path, corpus):
    with serve(tmp_path) as service:
        command = run(service, tmp_path, "--estimate")
        report = embedx.json(*command, "--max-requests", 400, env=env(tmp_path))
        assert report["estimate"]["usage"]["requests"] == len(service.requests()) <= 400
        error = embedx.json(*command, "--max-requests", 3, env=env(tmp_path), status=1)["error"]
        assert "all 3 requests" in error["message"]
        assert "allows none" in embedx.json(*command, "--max-requests", 0, status=2)["error"]["message"]
    assert not (tmp_path / "s").exists()


def test_another_model_behind_the_address_is_noticed(embedx, tmp_path, corpus):
    with serve(tmp_path) as service:
        command = run(service, tmp_path)
        embedx(*command, "--limit", 40, env=env(tmp_path))
        port = service.port
    with serve(tmp_path, salt="another model", port=port) as service:
        error = embedx.json(*command, env=env(tmp_path), status=1)["error"]
        assert "computes other vectors than when s was created" in error["message"]
    with serve(tmp_path, dim=16, port=port) as service:
        error = embedx.json(*command, env=env(tmp_path), status=1)["error"]
        assert "holds vectors of remote:" in error["message"]
    assert open_store(tmp_path / "s").count == 40


@pytest.mark.parametrize("query_prompt", [None, "query: "])
def test_searches_see_another_model_and_no_fault_of_a_service(embedx, tmp_path, corpus, monkeypatch, query_prompt):
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EMBEDX_REMOTE_KEY", KEY)
    prompt = {} if query_prompt is None else {"query_prompt": query_prompt}
    with serve(tmp_path) as service:
        embedx(*run(service, tmp_path, "--limit", 40, attempts=7, **prompt), env=env(tmp_path))
        port = service.port
    index_store(IndexSpec(tmp_path / "s", tmp_path / "i"))
    write_jsonl(tmp_path / "q.jsonl", [{"id": str(n), "text": corpus[n]["text"]} for n in range(20)])
    queries = SearchSpec(tmp_path / "i", queries=tmp_path / "q.jsonl", k=1)
    with serve(tmp_path, chaos=0.3, port=port):
        found = search_index(queries)
        assert not found["failures"] and len(found["queries"]) == 20
        if query_prompt is None:
            assert [row["hits"][0]["id"] for row in found["queries"]] == [f"t{n:03d}" for n in range(20)]
            assert all(row["hits"][0]["score"] > 0.999 for row in found["queries"])
    with serve(tmp_path, salt="another model", port=port):
        with pytest.raises(FingerprintMismatchError, match="computes other vectors than when the index's were made"):
            search_index(SearchSpec(tmp_path / "i", text="item 3"))
        assert len(search_index(SearchSpec(tmp_path / "i", item_id="t003"))["hits"]) == 10, "needs no encoder"
    for fault, status, said in (
        ("nan", 1, "NaN"),
        ("dims", 1, "values instead of 8"),
        ("429", 75, "has no capacity"),
        ("missing", 1, "not those of the"),
        ("401", 1, "does not let us in"),
    ):
        with serve(tmp_path, always=fault, port=port), pytest.raises(EmbedxError, match=said) as raised:
            search_index(SearchSpec(tmp_path / "i", text="item 3"))
        assert raised.value.exit_code == status and KEY not in str(raised.value)


def test_conformance_of_a_service_that_misbehaves(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path / "cache"))
    with serve(tmp_path, chaos=0.3) as service:
        report = check_conformance(parse_ref(str(service.write_encoder(tmp_path / "e.toml", attempts=15))))
    assert report["ok"], report["checks"]
    for fault, said in (("nan", "NaN"), ("dims", "values instead of 8")):
        with serve(tmp_path, always=fault) as service:
            spec = parse_ref(str(service.write_encoder(tmp_path / "e.toml", attempts=2, dim=8)))
            report = check_conformance(spec)
        failed = [check for check in report["checks"] if check["status"] == "failed"]
        assert [check["name"] for check in failed] == ["vectors"] and said in failed[0]["detail"]
