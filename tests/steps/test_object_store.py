"""Stores, indexes and heads on an S3 API, as users run it: the real command, real weights, real Dask workers."""

import json
import signal
import subprocess
import sys
import threading
import time
from itertools import count

import numpy as np
import pytest

import embedx
from embedx.core.meter import Meter, RequestLimitError
from embedx.core.places import Access, Url
from embedx.steps.artefacts import inspect
from embedx.steps.verify import verify
from embedx.store.counting import open_counter
from embedx.store.layout import RunLayout
from tests import servers
from tests.conftest import SUPPORT, Command, write_jsonl
from tests.steps.test_extract import assert_same, content, texts

_numbers = count()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with servers.s3_process(tmp_path_factory.mktemp("s3")) as server:
        server.client().create_bucket(Bucket="bucket")
        yield server


@pytest.fixture(scope="module")
def scheduler(cache):
    """Workers that know no credentials but those that travel with the tasks."""
    with servers.dask_cluster({}) as address:
        yield address


class Remote:
    """The command line with a store of its own on the S3 API."""

    def __init__(self, folder, s3, scheduler):
        self.folder, self.s3 = folder, s3
        self.prefix = f"test-{next(_numbers)}"
        self.store = f"s3://bucket/{self.prefix}/store"
        self.flags = [*servers.s3_options(s3.url), "--storage-option", "region=us-east-1"]
        self.env = {"EMBEDX_SHARD_ITEMS": "20", "EMBEDX_CLUSTER": scheduler}
        self.said = []

    def __call__(self, *arguments, status=0, **env):
        done = Command(self.folder)(*arguments, *self.flags, "--json", status=status, env={**self.env, **env})
        self.said += [done.stdout, done.stderr]
        return json.loads(done.stdout)

    def extract(self, *arguments, status=0, **env):
        where = ("--encoder", "minilm", "--columns", "k", "--out", self.store)
        return self("extract", "c.jsonl", *where, *arguments, status=status, **env)

    def start(self, **env):
        where = ("extract", "c.jsonl", "--encoder", "minilm", "--columns", "k", "--out", self.store)
        return subprocess.Popen(
            [sys.executable, "-m", "embedx", *where, *self.flags, "--json"],
            cwd=self.folder,
            env={**servers.os.environ, **self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_shards(self, number, run):
        end = time.monotonic() + 600
        while sum(name.endswith(".parquet") for name in self.keys("store/data/")) < number:
            if run.poll() is not None or time.monotonic() > end:
                run.kill()
                raise AssertionError(run.communicate())
            time.sleep(0.05)

    def keys(self, prefix=""):
        return [key.removeprefix(f"{self.prefix}/") for key in self.s3.keys("bucket", f"{self.prefix}/{prefix}")]

    def url(self, name="store"):
        options = {**servers.S3_FLAGS, "endpoint_url": self.s3.url, "region": "us-east-1"}
        return Url(f"s3://bucket/{self.prefix}/{name}", Access(tuple(options.items())))

    def put(self, name, data):
        self.s3.client().put_object(Bucket="bucket", Key=f"{self.prefix}/{name}", Body=data)

    def get(self, name):
        return self.s3.client().get_object(Bucket="bucket", Key=f"{self.prefix}/{name}")["Body"].read()


@pytest.fixture
def remote(tmp_path, s3, scheduler):
    remote = Remote(tmp_path, s3, scheduler)
    yield remote
    # Whatever a test did: no secret is in any object, message or report.
    held = [remote.get(key) for key in remote.keys("")]
    for secret in servers.S3_FLAGS.values():
        assert not [data for data in held if secret.encode() in data] and not [
            text for text in remote.said if secret in text
        ]


def test_the_life_of_a_store(remote, tmp_path):
    rows = [*texts(70), {"id": "empty", "text": "", "k": "0"}]
    write_jsonl(tmp_path / "c.jsonl", rows)
    plan = remote.extract("--dry-run")
    assert plan["items"]["planned"] == 71 and remote.keys() == [], "a dry run writes nothing"
    first = remote.extract("--max-failures", "1")
    assert first["items"]["embedded"] == 70 and first["items"]["failed"] == 1 and first["version"] == 0
    again = remote.extract()
    assert again["run"] is None and again["items"]["unchanged"] == 70
    rows[3]["text"], rows[25]["k"] = "entirely new words", "relabelled"
    gone = rows.pop(50)["id"]
    rows.append({"id": "new", "text": "something new", "k": "9"})
    write_jsonl(tmp_path / "c.jsonl", rows)
    second = remote.extract("--mirror")
    items = second["items"]
    assert (items["embedded"], items["updated"], items["unchanged"], items["removed"]) == (2, 1, 67, 1)
    Command(tmp_path)(
        "extract", "c.jsonl", "--encoder", "minilm", "--columns", "k", "--out", "local", "--max-failures", "1"
    )
    assert_same(content(remote.url()), content(tmp_path / "local"))
    assert [failure["id"] for failure in remote("failures", remote.store)["failures"]] == ["empty"]
    (tmp_path / "ids.txt").write_text("t00007\nnobody\n")
    deleted = remote("delete", remote.store, "--ids", "ids.txt")
    assert deleted["removed"] == 1 and deleted["missing"] == ["nobody"]
    store = embedx.open_store(remote.store, storage_options=dict(remote.url().access.options))
    assert store.count == 69 and not {gone, "t00007"} & set(store.vectors()[0])
    assert embedx.open_store(remote.url(), version=0).count == 70
    assert store.table(["item_id", "k"]).num_rows == 69
    assert remote("verify", remote.store, "--deep", "5")["ok"]
    remote.put("store/data/000001-aaaaaa/00009.parquet", b"of a writer that died")
    assert remote("vacuum", remote.store, "--retention-hours", "0")["orphans"] == ["data/000001-aaaaaa/00009.parquet"]
    described = remote("inspect", remote.store)
    assert described["count"] == 69 and described["files"][0].startswith(remote.store + "/data/")
    assert sorted(described["files"]) == [f"s3://bucket/{remote.prefix}/{key}" for key in remote.keys("store/data/")]
    assert len(remote("history", remote.store)["versions"]) == described["version"] + 1
    victim = remote.keys("store/data/")[0]
    data = bytearray(remote.get(victim))
    data[len(data) // 2] ^= 1
    remote.put(victim, bytes(data))
    (problem,) = remote("verify", remote.store, status=1)["problems"]
    assert problem["path"] == victim.removeprefix("store/") and "sha256" in problem["message"]


def test_two_writers_one_wins(remote, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", texts(600))
    run = remote.start()
    remote.wait_for_shards(1, run)
    run.send_signal(signal.SIGSTOP)  # so that it cannot be done before the other has asked
    try:
        error = remote.extract(status=75)["error"]
    finally:
        run.send_signal(signal.SIGCONT)
    assert "another embedx process is writing to" in error["message"] and "runs out in" in error["remedy"]
    stdout, stderr = run.communicate(timeout=900)
    assert run.returncode == 0, stderr
    assert json.loads(stdout)["items"]["embedded"] == 600 == embedx.open_store(remote.url()).count


def test_killed_and_resumed_with_few_requests(remote, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", texts(1600))
    run = remote.start()
    remote.wait_for_shards(5, run)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=600)
    finished = len(remote.keys("store/data/"))
    assert run.returncode == 143 and 5 <= finished < 80
    remote.s3.new_requests()
    plan = remote.extract("--dry-run")
    assert plan["shards"]["reused"] == finished
    asked = remote.s3.new_requests()
    listings = [path for method, path, _ in asked if method == "GET" and "list-type=2" in path and "/data/" in path]
    assert len(listings) == 1, "one listing of the shards"
    shards = [(method, path) for method, path, _ in asked if path.endswith(".parquet")]
    assert shards == [], "receipts that were noted are not read from the files, nor asked for one by one"
    # A driver that is killed notes nothing more: the footers say it, one request each.
    run = remote.start()
    remote.wait_for_shards(finished + 5, run)
    run.kill()
    run.communicate(timeout=600)
    wait_until_idle(remote.env["EMBEDX_CLUSTER"])
    now = len(remote.keys("store/data/"))
    remote.s3.new_requests()
    report = remote.extract()
    asked = remote.s3.new_requests()
    assert report["shards"]["reused"] >= now > finished and report["items"]["embedded"] == 1600
    old = [path for method, path, _ in asked if method == "HEAD" and path.endswith(".parquet")]
    assert len(old) == report["shards"]["computed"], "workers look once before they compute, and the driver never"
    assert remote("verify", remote.store)["ok"]


def tasks_in_work(dask_worker):
    return dask_worker.state.executing_count


def wait_until_idle(address):
    """The worker of a killed run finishes what it has in work."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        end = time.monotonic() + 120
        while any(client.processing().values()) or any(client.run(tasks_in_work).values()):
            assert time.monotonic() < end
            time.sleep(0.1)


def lease_of_another(remote, **changes):
    lease = {"owner": "x", "seconds": 3600, "beat": 0, "host": "far", "pid": 7, "machine": "other", "since": "today"}
    remote.put("store/_embedx/lease.json", json.dumps({**lease, **changes}).encode())


def test_who_lost_the_lease_publishes_nothing(remote, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", texts(400))
    run = remote.start()
    remote.wait_for_shards(2, run)
    lease_of_another(remote)
    stdout, stderr = run.communicate(timeout=900)
    assert run.returncode == 75 and "took over" in json.loads(stdout)["error"]["message"], stderr
    assert not remote.keys("store/_delta_log/"), "no version"
    for command in (("vacuum", remote.store), ("delete", remote.store, "--ids", "c.jsonl")):
        assert remote(*command, status=1)["error"], "nothing was published yet"
    error = remote.extract(status=75)["error"]
    assert "far, process 7" in error["message"]
    lease_of_another(remote, seconds=1)
    time.sleep(2.1)
    report = remote.extract()
    assert report["shards"]["reused"] >= 2 and report["items"]["embedded"] == 400


def test_indexes_and_heads(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path / "cache"))
    options = dict(remote.url().access.options)
    remote("extract", SUPPORT, "--encoder", "minilm", "--columns", "intent", "--out", remote.store)
    index, head = f"s3://bucket/{remote.prefix}/index", f"s3://bucket/{remote.prefix}/head"
    assert remote("index", remote.store, "--out", index)["version"] == 1
    assert remote("index", remote.store, "--out", index)["version"] == 2
    for folder in (tmp_path / "cache", tmp_path / "elsewhere"):  # where it was built, and where it was not
        monkeypatch.setenv("EMBEDX_CACHE", str(folder))
        opened = embedx.open_index(index, storage_options=options)
        assert (opened.version, opened.count) == (2, 60)
    remote.s3.new_requests()
    hits = opened.search(opened.vector("refund-00")[None], 1)
    assert embedx.open_index(index, storage_options=options).version == 2 and hits.ids == [["refund-00"]]
    assert len(remote.s3.new_requests()) == 2, "CURRENT and the card: the rest is there"
    there, head_there = remote.url("index"), remote.url("head")
    assert verify(there)["ok"] and inspect(there)["card"]["count"] == 60
    fitted = remote("fit-head", remote.store, "--label", "intent", "--out", head)
    assert [name for name in remote.keys("head/") if name.endswith(".skops")] == [
        f"head/head-{inspect(head_there)['card']['files']['head.skops']['sha256'][:12]}.skops"
    ]
    assert verify(head_there)["ok"] and fitted["head"] == head
    assert remote("evaluate", remote.store, "--head", head, "--label", "intent")["n"] == 60
    predicted = remote("predict", remote.store, "--head", head, "--out", f"s3://bucket/{remote.prefix}/p.parquet")
    assert predicted["n"] == 60 and len(remote.get("p.parquet")) == predicted["bytes"]
    vectors = embedx.open_store(remote.url()).vectors()[1]
    # Copied to a disk by other tools, a head is still one.
    (tmp_path / "copy").mkdir()
    for name in remote.keys("head/"):
        (tmp_path / "copy" / name.partition("/")[2]).write_bytes(remote.get(name))
    both = embedx.open_head(head, storage_options=options), embedx.open_head(tmp_path / "copy")
    assert np.array_equal(both[0].predict(vectors)[0], both[1].predict(vectors)[0])
    for command in (("index", remote.store), ("fit-head", remote.store, "--label", "intent")):
        assert "is no embedx" in remote(*command, "--out", remote.store, status=1)["error"]["message"]


def test_a_head_is_replaced_card_last(remote, monkeypatch):
    from embedx.heads import objects

    place = remote.url("h")
    contents = {"head.skops": b"old", "report.html": b"", "card.json": b"old"}
    objects.write_head(place, contents)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("embedx.store.objects.ObjectFiles.write", fail_at("card.json"))
        objects.write_head(place, {**contents, "head.skops": b"new", "card.json": b"new"})
    assert remote.get("h/card.json") == b"old"
    assert remote.get(f"h/{objects.estimator_name(objects.hashlib.sha256(b'old').hexdigest())}") == b"old"


def fail_at(end):
    from embedx.store.objects import ObjectFiles

    write = ObjectFiles.write

    def failing(self, name, data):
        if name.endswith(end):
            raise OSError("killed")
        write(self, name, data)

    return failing


def test_requests_are_counted_across_writers(remote):
    counter = RunLayout(remote.url(), "000001-abc").file("requests.json")
    with pytest.raises(Exception, match="is over"):
        Meter(5, open_counter(counter)).take_request()
    open_counter(counter).begin()
    taken = []

    def take():
        meter = Meter(40, open_counter(counter))
        with pytest.raises(RequestLimitError):
            while True:
                meter.take_request()
                taken.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 40 and Meter(40, open_counter(counter)).sums()["requests"] == 40


def test_places_that_cannot_be(remote, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", texts(5))

    def refused(out, status=1, **env):
        return remote("extract", "c.jsonl", "--encoder", "minilm", "--out", out, status=status, **env)["error"]

    assert "bucket of s3://nowhere/s does not exist" in refused("s3://nowhere/s")["message"]
    remote.put("other/things.txt", b"of somebody else")
    assert "is not empty and no embedx store" in refused(f"s3://bucket/{remote.prefix}/other")["message"]
    for url, said in (
        ("http://x/y", "no place"),
        ("s3://", "no bucket"),
        ("s3://u:canary-secret-77f0@b/x", "password"),
    ):
        assert said in refused(url, status=2)["message"]
    assert "does not exist" in remote("inspect", f"s3://bucket/{remote.prefix}/none", status=1)["error"]["message"]
