"""Workers that cannot do a run's work are refused before its first shard, by name."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from embedx.core.errors import BusyError, EmbedxError
from embedx.core.specs import Resources
from embedx.engine import cluster as engine
from embedx.engine import window
from embedx.engine.cluster import Cluster, open_cluster, open_cluster_ahead, plan_workers
from embedx.engine.window import Task, Window
from embedx.steps.flight import check_workers
from embedx.steps.preflight import survey_worker
from embedx.steps.shard_job import ShardJob
from tests.conftest import ROOT, SUPPORT, write_jsonl
from tests.steps.test_extract import texts


def job(root):
    return ShardJob(
        root=str(root),
        run="000001-abcdef",
        encoder={},
        fingerprint="",
        precision="fp32",
        full_bits=False,
        kind="text",
        columns=(),
        content_column=None,
        runtime="auto",
        device="auto",
        threads=1,
    )


@pytest.fixture
def other_cluster(tmp_path, monkeypatch):
    """A cluster whose workers find another version of a library than this process does."""
    from distributed import LocalCluster

    folder = tmp_path / "site" / "timm-0.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.1.0\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder.parent)  # spawned workers take over this process's path
        with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
            patch.undo()
            yield cluster


def test_another_version_of_a_library(embedx, tmp_path, other_cluster):
    error = embedx.json(
        "extract", SUPPORT, "--encoder", "minilm", "--out", "s", "--cluster", other_cluster.scheduler_address, status=1
    )["error"]
    assert "timm 0.1.0 instead of" in error["message"] and "tcp://" in error["message"]
    assert not (tmp_path / "s").exists(), "nothing half-written"


def test_a_store_that_workers_do_not_see(tmp_path):
    assert "is not there" in survey_worker(job(tmp_path / "elsewhere")).problem
    fine = job(tmp_path)
    record = tmp_path / fine.layout.folder
    record.mkdir(parents=True)
    assert survey_worker(fine).problem == ""
    assert not list(record.iterdir()) and not (tmp_path / "data").exists(), "the trial leaves nothing"


def test_the_worker_is_named(tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as started,
        Client(started, set_as_default=False) as client,
        pytest.raises(EmbedxError, match="worker tcp://.* cannot use .*elsewhere"),
    ):
        check_workers(Cluster(client, 1, 1), job(tmp_path / "elsewhere"))


def profilers(dask_worker):
    found = dask_worker.periodic_callbacks.get("profile")
    return found is not None and found.is_running()


def test_no_profiler_that_can_freeze_python_311():
    from distributed import LocalCluster

    with open_cluster(Resources(workers=1)) as ours:
        assert not any(ours.run_everywhere(profilers).values())
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as started:
        with started.get_client() as client:
            assert all(client.run(profilers).values()), "somebody else's cluster has one"
        with open_cluster(Resources(cluster=started.scheduler_address)) as theirs:
            assert any(theirs.run_everywhere(profilers).values()) == (sys.version_info >= (3, 12))


def worker_processes():
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_workers_start_while_something_else_is_done():
    before = len(worker_processes())
    with open_cluster_ahead(Resources(workers=1), at_once=True) as open_workers:
        until = time.monotonic() + 60
        while len(worker_processes()) == before and time.monotonic() < until:
            time.sleep(0.05)
        assert len(worker_processes()) > before, "nobody has asked for the cluster yet"
        cluster = open_workers()
        (pid,) = cluster.run_everywhere(os.getpid).values()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_block_that_ends_early_leaves_no_workers(at_once):
    before = len(worker_processes())
    with pytest.raises(ZeroDivisionError), open_cluster_ahead(Resources(workers=1), at_once):
        assert at_once or len(worker_processes()) == before
        raise ZeroDivisionError
    assert len(worker_processes()) == before


def scratch(dask_worker):
    return dask_worker.local_directory


def test_workers_that_end_at_once_leave_no_files():
    with open_cluster(Resources(workers=1)) as cluster:
        (folder,) = cluster.run_everywhere(scratch).values()
        assert Path(folder).is_dir()
    assert not Path(folder).exists() and not Path(f"{folder}.dirlock").exists()


def pool():
    import pyarrow

    return pyarrow.default_memory_pool().backend_name


def test_arrow_gives_memory_back_in_our_processes(monkeypatch):
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    with open_cluster(Resources(workers=1)) as cluster:
        assert set(cluster.run_everywhere(pool).values()) == {"system"}
    script = (
        "import embedx.cli.main as m\n"
        "try: m.main(['extract', 'nothing', '--encoder', 'minilm', '--out', 'nowhere'])\n"
        "except SystemExit: pass\n"
        "import pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    )
    for environment, wanted in (({}, "system"), ({"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == wanted, "what the user says stands"


def test_nothing_large_goes_through_the_scheduler(tmp_path, monkeypatch):
    """Of real shards, as they are pickled: a call says where its rows stand, a receipt where its vectors are."""
    import pickle

    from distributed import Client, Future

    from embedx import extract

    rows = [
        {"id": f"a-rather-long-id-of-an-item-{n:08}", "text": f"text {n} " + "of some words " * 40} for n in range(400)
    ]
    write_jsonl(tmp_path / "c.jsonl", rows)
    monkeypatch.setenv("EMBEDX_SHARD_ITEMS", "100")
    sent: dict[str, int] = {}
    received: dict[str, int] = {}
    submit, result = Client.submit, Future.result

    def weigh_call(self, function, *arguments, key=None, **options):
        sent[str(key)] = len(pickle.dumps((function, arguments)))
        return submit(self, function, *arguments, key=key, **options)

    def weigh_result(self, *arguments, **options):
        value = result(self, *arguments, **options)
        received[str(self.key)] = len(pickle.dumps(value))
        return value

    monkeypatch.setattr(Client, "submit", weigh_call)
    monkeypatch.setattr(Future, "result", weigh_result)
    report = extract(str(tmp_path / "c.jsonl"), "minilm", str(tmp_path / "s"), resources=Resources(workers=1))
    shards = [key for key in sent if key.startswith("extract-")]
    assert len(shards) == report["shards"]["computed"] == 4
    for key in shards:
        assert sent[key] < 2048 and received[key] < 2048, (key, sent[key], received[key])
    # Once a run: the encoders' specs, and the canaries' vectors.
    assert max([*sent.values(), *received.values()]) < 2**16


@pytest.mark.parametrize("end", ["its nanny ends", "Dask gives it up"])
def test_a_worker_that_nobody_would_start_again_is_started(monkeypatch, end):
    if end == "Dask gives it up":
        monkeypatch.setitem(engine.CONFIG, "distributed.deploy.lost-worker-timeout", "1 ms")
    with open_cluster(Resources(workers=1)) as cluster:
        (before,) = cluster.run_everywhere(os.getpid).values()
        local = cluster.client.cluster
        nanny = local.workers[0]
        if end == "its nanny ends":
            local.sync(nanny.close)
        else:
            os.kill(before, signal.SIGKILL)
        until = time.monotonic() + 120
        while local.workers.get(0) in (nanny, None) and time.monotonic() < until:
            time.sleep(0.1)
        assert local.workers.get(0) not in (nanny, None), "nobody watches over a worker"
        assert cluster.client.submit(os.getpid, pure=False).result(timeout=120) != before


def test_a_run_without_workers_ends(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(window, "DESERTED_S", 0.2)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, processes=False) as started,
        open_cluster(Resources(cluster=started.scheduler_address)) as cluster,
    ):

        def run_one(name):
            return list(Window(cluster.client, 1, lambda: False).iterate([Task(name, os.getpid, ())]))

        assert [outcome.result for outcome in run_one("with") if outcome] == [os.getpid()]
        started.scale(0)
        while cluster.client.processing():
            time.sleep(0.05)
        monkeypatch.setenv("EMBEDX_WATCHDOG_S", "1")
        with pytest.raises(BusyError, match="there has been no worker for"):
            run_one("without")


def doze():
    time.sleep(3)
    return "done"


def test_a_task_that_has_just_ended_is_not_given_back(monkeypatch):
    """The scheduler may say already that it does not run, and the driver not know yet that it has ended."""
    stop = []
    with open_cluster(Resources(workers=1)) as cluster:
        real, looks = cluster.client.processing, []

        def processing():
            looks.append(stop)
            return {} if stop and len(looks) == 1 else real()

        monkeypatch.setattr(cluster.client, "processing", processing)
        outcomes = Window(cluster.client, 1, lambda: bool(stop)).iterate([Task("a", doze, ())])
        assert next(outcomes) is None, "it dozes"
        looks.clear()
        stop.append(True)
        assert [outcome.result for outcome in outcomes if outcome] == ["done"]
        assert len(looks) > 1


def test_every_worker_computes_what_the_store_holds(embedx, tmp_path):
    """The encoder is tried on one worker; another one may have another GPU, CPU or driver."""
    plugin = f"{ROOT / 'tests' / 'plugins' / 'fickle'}:{ROOT / 'src'}"
    own = {"PYTHONPATH": plugin, "FICKLE_MARK": str(tmp_path / "mark"), "EMBEDX_CLUSTER": "local"}
    write_jsonl(tmp_path / "c.jsonl", texts(200))
    # On torch, for openvino's converted model would be that of the first process.
    arguments = ("extract", "c.jsonl", "--encoder", "fickle:minilm", "--out", "s", "--runtime", "torch")
    error = embedx.json(*arguments, "--workers", "2", status=1, env={**own, "EMBEDX_SHARD_ITEMS": "5"})["error"]
    assert (
        "computes other vectors of fickle:minilm than" in error["message"] and socket.gethostname() in error["message"]
    )
    # Alone, the one that computed the store's goes on.
    (tmp_path / "mark").unlink()
    report = embedx.json(*arguments, "--workers", "1", env={**own, "EMBEDX_SHARD_ITEMS": "5"})
    assert report["items"]["embedded"] == 200


def visible_gpus():
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_each_worker_sees_its_own_gpu(monkeypatch):
    monkeypatch.setattr(engine, "gpu_names", lambda: ("3", "GPU-5ebe"))
    assert plan_workers(Resources(threads=16)) == (2, 8)
    assert plan_workers(Resources(threads=16, device="cpu")) == plan_workers(Resources(threads=16, runtime="openvino"))
    with open_cluster(Resources(threads=2)) as cluster:
        pids, gpus = cluster.run_everywhere(os.getpid), cluster.run_everywhere(visible_gpus)
        assert sorted(gpus.values()) == ["3", "GPU-5ebe"]
        (killed,) = (pid for address, pid in pids.items() if gpus[address] == "3")
        os.kill(killed, signal.SIGKILL)
        until, now = time.monotonic() + 120, {killed}
        while killed in now or len(now) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
            now = set(cluster.client.run(os.getpid, on_error="ignore").values())
        assert sorted(cluster.run_everywhere(visible_gpus).values()) == ["3", "GPU-5ebe"], "the same one again"


def blocks():
    from PIL import Image

    return Image.core.get_block_size(), Image.core.get_blocks_max()


def test_memory_of_images_is_used_again_in_workers():
    with open_cluster(Resources(workers=1)) as cluster:
        assert set(cluster.run_everywhere(blocks).values()) == {(512 * 2**20, 8)}


def test_workers_that_end_at_once_are_no_news():
    with open_cluster(Resources(workers=1)) as cluster:
        cluster.run_everywhere(os.getpid)
    # Said from the event loop, some time after the cluster is closed and Dask no longer silent.
    assert not logging.getLogger("distributed.batched").isEnabledFor(logging.INFO)


def test_a_scheduler_that_goes_away():
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, processes=False) as started:
        lost = pytest.raises(BusyError, match="connection to the scheduler or a worker was lost")
        with lost, open_cluster(Resources(cluster=started.scheduler_address)) as cluster:
            started.close()
            cluster.run_everywhere(os.getpid)


def test_an_error_of_the_disk_is_not_taken_for_a_lost_connection():
    with pytest.raises(OSError, match="No space left"), open_cluster(Resources(workers=1)):
        raise OSError("No space left on device")
