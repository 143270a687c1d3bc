"""Several encoders in one run: each its own store, every item read once, through the real command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from filelock import FileLock

from embedx.store.reader import open_store
from tests import servers
from tests.conftest import SUPPORT, Command, write_jsonl
from tests.remote_services import serve
from tests.steps.test_poison import PLUGIN

SQUEEZENET = """
family = "torchvision"
name = "squeezenet1_0"
weights = "{weights}/squeezenet1_0.pth"
"""

MOBILENET = """
family = "timm"
name = "mobilenetv2_100"
weights = "{weights}/mobilenetv2_100_same.pth"
model_args = {{ pad_type = "same" }}

[preprocess]
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""

BOTH = ("--encoder", "squeezenet.toml", "--encoder", "mobilenet.toml", "--precision", "fp32")
SMALL_SHARDS = {"EMBEDX_SHARD_ITEMS": "12"}


LOCAL = {"EMBEDX_CLUSTER": "local"}
"""Workers of the command's own: for what kills them."""


@pytest.fixture(scope="module", autouse=True)
def workers(cache):
    """Workers that stay warm between the commands."""
    with servers.dask_cluster({}) as scheduler, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDX_CLUSTER", scheduler)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared):
    """A folder with 60 photographs and two encoders."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "squeezenet.toml").write_text(SQUEEZENET.format(weights=shared / "weights"))
    (folder / "mobilenet.toml").write_text(MOBILENET.format(weights=shared / "weights"))
    (folder / "photos").mkdir()
    for number, path in enumerate(sorted((shared / "data" / "clothing" / "test").rglob("*.jpg"))[:240:4]):
        (folder / "photos" / f"{number:03d}.jpg").write_bytes(path.read_bytes())
    return Command(folder)


@pytest.fixture(scope="module")
def joint(place):
    """The report of both encoders in one run, to `stores`."""
    return place.json("extract", "photos", *BOTH, "--out", "stores", env=SMALL_SHARDS)


def vectors_of(store):
    ids, vectors = open_store(store).vectors()
    return dict(zip(ids, vectors))


def assert_equal(one, other):
    assert one.keys() == other.keys() and one
    for item_id, vector in one.items():
        np.testing.assert_allclose(vector, other[item_id], rtol=2e-3, atol=2e-3 * np.abs(vector).max())


def test_each_store_is_as_its_own_run_makes_it(place, joint):
    assert joint["items"] | {"listed": 60, "read": 60, "embedded": 120, "failed": 0} == joint["items"]
    assert [store["out"] for store in joint["stores"]] == ["stores/squeezenet", "stores/mobilenet"]
    assert joint["bytes_read"] == sum(path.stat().st_size for path in (place.cwd / "photos").iterdir())
    first, second = (store["stage_seconds"] for store in joint["stores"])
    assert "read" in first and "read" not in second, "reading is counted once"
    assert joint["stage_seconds"]["read"] == first["read"] and second["forward"] > 0
    alone = place.json("extract", "photos", *BOTH[2:], "--out", "alone", env=SMALL_SHARDS)
    assert alone["items"]["embedded"] == 60
    assert_equal(vectors_of(place.cwd / "alone"), vectors_of(place.cwd / "stores" / "mobilenet"))
    for name, dim in (("squeezenet", 512), ("mobilenet", 1280)):
        store = place.cwd / "stores" / name
        assert open_store(store).card.dim == dim
        assert place.json("verify", store, "--deep", 5)["ok"]
        again = place.json("extract", "photos", "--encoder", f"{name}.toml", "--out", store)
        assert again["run"] is None and again["items"]["unchanged"] == 60
    place("extract", "photos", *BOTH, "--out", "stores", "--exit-nothing-to-do", status=99)


def test_what_one_store_has_is_read_for_the_other_only(place, joint, tmp_path):
    out = place.cwd / "older"
    place("extract", "photos", *BOTH[:2], *BOTH[4:], "--limit", 25, "--out", out / "squeezenet")
    planned = place.json("extract", "photos", *BOTH, "--out", out, "--dry-run", env=SMALL_SHARDS)
    assert planned["items"]["read"] == 60 and [store["items"]["new"] for store in planned["stores"]] == [35, 60]
    report = place.json("extract", "photos", *BOTH, "--out", out, env=SMALL_SHARDS)
    assert (report["items"]["read"], report["items"]["embedded"], report["items"]["unchanged"]) == (60, 95, 25)
    # 35 rows of both in shards of 12, and 25 of the second alone.
    assert [store["shards"]["computed"] for store in report["stores"]] == [3, 6]
    for name in ("squeezenet", "mobilenet"):
        assert_equal(vectors_of(out / name), vectors_of(place.cwd / "stores" / name))


def test_killing_the_run_resumes_both(place, joint):
    out = place.cwd / "killed"
    command = [sys.executable, "-m", "embedx", "extract", "photos", *BOTH, "--out", str(out)]
    env = {**os.environ, **LOCAL, "EMBEDX_SHARD_ITEMS": "4"}
    run = subprocess.Popen(command, cwd=place.cwd, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    names = ("squeezenet", "mobilenet")
    end = time.monotonic() + 600
    while not all(any((out / name).glob("data/*/[0-9]*.parquet")) for name in names):
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not any((out / name / "_delta_log").exists() for name in names), "nothing may be published"
    # As if it had been killed between the two files of a task: the first store is one shard ahead.
    finished = {name: sorted((out / name).glob("data/*/[0-9]*.parquet")) for name in names}
    finished["mobilenet"][-1].unlink()
    report = place.json("extract", "photos", *BOTH, "--out", out, env={"EMBEDX_SHARD_ITEMS": "4"})
    reused = [store["shards"]["reused"] for store in report["stores"]]
    assert reused == [len(finished["squeezenet"]), len(finished["mobilenet"]) - 1]
    assert report["items"]["read"] == 60 - 4 * min(reused), "what both have is not read again"
    for name in names:
        assert_equal(vectors_of(out / name), vectors_of(place.cwd / "stores" / name))


def test_layers_and_poolings_share_one_forward_pass(place):
    how = ("--precision", "fp32", "--runtime", "torch", "--limit", 24)
    layers = ("--encoder", "squeezenet.toml", "--layer", "features.5", "--layer", "features.12")
    report = place.json(
        *("extract", "photos", *layers, "--pooling", "avg", "--pooling", "max", *how, "--out", "layers")
    )
    names = [f"squeezenet-features.{layer}-{pooling}" for layer in (5, 12) for pooling in ("avg", "max")]
    assert [store["out"] for store in report["stores"]] == [f"layers/{name}" for name in names]
    assert ["forward" in store["stage_seconds"] for store in report["stores"]] == [True, False, False, False]
    assert report["items"]["read"] == 24 and report["items"]["embedded"] == 96
    alone = ("--encoder", "squeezenet.toml", "--layer", "features.5", "--pooling", "max")
    place.json("extract", "photos", *alone, *how, "--out", "layer")
    assert_equal(vectors_of(place.cwd / "layer"), vectors_of(place.cwd / "layers" / names[1]))


def test_texts_in_chunks_and_a_job(place):
    long = " ".join(f"Sentence number {n} says something about refunds." for n in range(80))
    rows = [{"id": "long", "text": long}, {"id": "a", "text": "short"}, {"id": "b", "text": "short"}]
    write_jsonl(place.cwd / "texts.jsonl", rows)
    (place.cwd / "minilm-128.toml").write_text('family = "minilm"\ntruncate_dim = 128\n')
    (place.cwd / "job.toml").write_text(
        """
[[step]]
use = "extract"
sources = ["texts.jsonl"]
encoder = ["minilm", "minilm-128.toml"]
long = "chunk"
out = "texts"
"""
    )
    (step,) = place.json("run", "job.toml")["steps"]
    report = step["report"]
    assert report["items"]["read"] == 3 and report["items"]["embedded"] == 6
    first, second = (store["stage_seconds"] for store in report["stores"])
    assert "prepare" in first and "prepare" not in second, "texts are tokenised once for encoders that read them alike"
    minilm, short = (open_store(place.cwd / "texts" / name) for name in ("minilm", "minilm-128"))
    assert minilm.count == short.count > 3 and short.card.dim == 128
    place.json("extract", "texts.jsonl", "--encoder", "minilm", "--long", "chunk", "--out", "texts-alone")
    assert_equal(vectors_of(place.cwd / "texts-alone"), vectors_of(minilm.path))
    shown = place("run", "job.toml").stdout
    assert "6 unchanged" in shown


def test_a_store_that_fails_leaves_the_other_alone(place):
    rows = [{"id": f"t{n:02d}", "text": f"item {n} of many"} for n in range(80)]
    write_jsonl(place.cwd / "paid.jsonl", rows)
    env = {"EMBEDX_SHARD_ITEMS": "8"}
    with serve(place.cwd) as service:
        service.write_encoder(place.cwd / "paid.toml", batch_items=4)
        command = ("extract", "paid.jsonl", "--encoder", "minilm", "--encoder", "paid.toml", "--out", "paid")
        report = place.json(*command, "--max-requests", 12, status=1, env=env)
        assert "1 of 2 stores" in report["error"]["message"] and "all 12 requests" in report["error"]["message"]
        first, second = report["stores"]
        assert first["version"] == 0 and "error" not in first and first["items"]["embedded"] == 80
        assert second["error"]["code"] == 1 and second["rows"] == 0 and second["version"] == -1
        assert report["usage"]["requests"] <= 12
        shown = place(*command, "--max-requests", 3, status=1, env=env)
        assert "paid/paid" in shown.stderr
        again = place.json(*command, env=env)
        assert again["stores"][0]["run"] is None and again["stores"][1]["items"]["embedded"] == 80
        assert "error" not in again and again["stores"][1]["shards"]["reused"] > 0


def test_an_item_that_kills_one_encoder_is_the_others(place, shared, support_store):
    rows = [{"id": f"t{n:02d}", "text": f"text {n}" + " KILL" * (n == 9)} for n in range(16)]
    write_jsonl(place.cwd / "poison.jsonl", rows)
    potion = f"potion=sentence_transformers:{shared / 'weights' / 'potion-base-4m'}"
    report = place.json(
        *("extract", "poison.jsonl", "--encoder", potion, "--encoder", "poison=poison:minilm"),
        *("--max-failures", 1, "--out", "poisoned"),
        env={**PLUGIN, **LOCAL, "EMBEDX_SHARD_ITEMS": "4"},
    )
    assert [(store["items"]["embedded"], store["items"]["failed"]) for store in report["stores"]] == [(16, 0), (15, 1)]
    (failure,) = place.json("failures", "poisoned/poison")["failures"]
    assert failure["id"] == "t09" and "kills the worker" in failure["message"]


def test_usage_errors_name_both(embedx, tmp_path, place):
    def refused(*arguments, status=2):
        return embedx.json("extract", SUPPORT, *arguments, "--out", "stores", status=status)["error"]

    twice = refused("--encoder", "minilm", "--encoder", "minilm")
    assert "two encoders would have the store 'minilm'" in twice["message"] and "NAME=minilm" in twice["remedy"]
    same = refused("--encoder", "a=minilm", "--encoder", "b=minilm")
    assert same["message"] == "a and b are the same encoder"
    layered = refused("--encoder", "minilm", "--encoder", "b=minilm", "--layer", "-2")
    assert "--layer belongs to one encoder" in layered["message"]
    mixed = refused("--encoder", "minilm", "--encoder", place.cwd / "squeezenet.toml")
    assert "minilm embeds texts, torchvision:squeezenet1_0 embeds images" in mixed["message"]
    named = refused("--encoder", "a=minilm")
    assert "names the store of one encoder" in named["message"]
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_folder_of_stores_is_no_store(embedx, tmp_path, support_store):
    two = ("--encoder", "minilm", "--encoder", "b=minilm")
    error = embedx.json("extract", SUPPORT, *two, "--out", support_store, status=2)["error"]
    assert "is a store" in error["message"]


def test_a_locked_store_holds_up_the_run(place, joint):
    with FileLock(str(place.cwd / "stores" / "mobilenet" / "_embedx" / "lock")):
        error = place.json("extract", "photos", *BOTH, "--out", "stores", status=75)["error"]
        assert "stores/mobilenet" in error["message"]
