"""Kill driver, workers, scheduler or everything at random moments, many times: the result is that of an unbroken run.

`make test` runs the short form; `make chaos` kills 50 times (EMBEDX_CHAOS_KILLS, EMBEDX_CHAOS_SEED).
"""

import math
import os
import random
import signal
import subprocess
import sys
import time

import psutil
from distributed.utils import json_load_robust

from embedx.core.places import Url
from tests.conftest import write_jsonl
from tests.servers import s3_process
from tests.steps.test_extract import assert_same, content, processes_of, start, texts

ARGUMENTS = ("extract", "c.jsonl", "--encoder", "minilm", "--out")
ENV = {"EMBEDX_SHARD_ITEMS": "40"}
TARGETS = ("worker", "driver", "scheduler", "worker", "everything")


class Fleet:
    """A scheduler and two workers in processes of their own, as on a cluster."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = []

    def ensure(self):
        """Start it, unless it is whole; returns the scheduler's file."""
        file = self.folder / "scheduler.json"
        if len(self.processes) == 3 and all(process.poll() is None for process in self.processes):
            return file
        self.kill()
        file.unlink(missing_ok=True)
        self._start("scheduler", "--port", "0", "--scheduler-file", str(file), "--no-dashboard")
        while not file.exists():
            assert self.processes[0].poll() is None, "the scheduler ended"
            time.sleep(0.1)
        for _ in range(2):
            self._start("worker", "--scheduler-file", str(file), "--nthreads", "2", "--death-timeout", "20")
        return file

    def _start(self, *arguments):
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                cwd=self.folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def address(self):
        return json_load_robust(self.ensure(), timeout=60)["address"]

    def workers(self):
        """The processes that work; each has a nanny that starts it again."""
        nannies = [psutil.Process(process.pid) for process in self.processes[1:] if process.poll() is None]
        return [child for nanny in nannies for child in nanny.children() if "spawn_main" in " ".join(child.cmdline())]

    def kill(self):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes = []


def strike(target, run, fleet):
    """Kill something of a running extraction; without a fleet the scheduler lives in the driver."""
    processes = processes_of(run)
    own = [process for process in processes[1:] if "spawn_main" in " ".join(process.cmdline())]
    workers = fleet.workers() if fleet else own
    if target == "worker" and workers:
        workers[0].kill()
        return True
    if target == "scheduler" and fleet:
        fleet.processes[0].kill()
    elif target == "everything":
        for process in processes:
            process.kill()
        if fleet:
            fleet.kill()
    else:
        run.send_signal(signal.SIGKILL)
    return False


def survivors(run, seconds=120):
    """Wait until nothing of a dead run's process group lives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        alive = []
        for process in psutil.process_iter(["pid"]):
            try:
                if os.getpgid(process.pid) == run.pid and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
            except (ProcessLookupError, psutil.Error):
                continue
        if not alive:
            return []
        time.sleep(0.2)
    return alive


def targets(rng):
    """Yield what to kill: every kind in each few, in random order."""
    while True:
        yield from rng.sample(TARGETS, len(TARGETS))


def test_chaos(embedx, tmp_path):
    endure(embedx, tmp_path, tmp_path / "s")


def test_chaos_in_an_object_store(embedx, tmp_path, monkeypatch):
    """The same on an S3 API; a killed driver's lease is taken over at once, for its machine knows that it is dead."""
    with s3_process(tmp_path) as s3:
        s3.client().create_bucket(Bucket="bucket")
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        endure(embedx, tmp_path, Url("s3://bucket/a/store"), share=0.6)


def endure(embedx, folder, out, share=1.0):
    kills_wanted = math.ceil(int(os.environ.get("EMBEDX_CHAOS_KILLS", "5")) * share)
    rng = random.Random(int(os.environ.get("EMBEDX_CHAOS_SEED", "1")))
    fleet = Fleet(folder)
    arguments = (*ARGUMENTS, str(out))
    try:
        rows = break_often(folder, arguments, kills_wanted, rng, fleet)
    finally:
        fleet.kill()
    report = embedx.json(*arguments, "--workers", "2", env=ENV)
    assert report["items"]["embedded"] + report["items"]["unchanged"] == len(rows)
    embedx("extract", "c.jsonl", "--encoder", "minilm", "--out", "whole")
    assert_same(content(out), content(folder / "whole"))
    assert embedx.json("verify", out)["ok"]
    embedx("vacuum", out)
    assert embedx.json("vacuum", out)["orphans"] == [] and embedx.json(*arguments)["items"]["planned"] == 0


def break_often(folder, arguments, kills_wanted, rng, fleet):
    """Run the extraction again and again, killing parts of it; returns the corpus as it is in the end."""
    rows = texts(1200 if kills_wanted <= 10 else 12000)
    write_jsonl(folder / "c.jsonl", rows)
    target, kills, ends = targets(rng), 0, []
    while kills < kills_wanted:
        on_fleet = rng.random() < 0.5
        where = ("--cluster", fleet.address()) if on_fleet else ("--workers", "2")
        run = start(folder, *arguments, *where, env=ENV)
        time.sleep(rng.uniform(1.5, 6))
        goes_on = True
        while goes_on and run.poll() is None and kills < kills_wanted:
            try:
                goes_on = strike(next(target), run, fleet if on_fleet else None)
            except psutil.Error:  # it ended by itself in this very moment
                continue
            kills += 1
            time.sleep(rng.uniform(0.5, 3))
        run.wait(900)
        ends.append(run.returncode)
        assert run.returncode in (0, 75, -signal.SIGKILL), (run.returncode, run.stderr.read())
        assert survivors(run) == [], "no process may outlive its driver"
        if run.returncode == 0 and kills < kills_wanted:
            # Done before all the kills were spent: more to do, so that the next ones hit something.
            for row in rows[:: max(1, len(rows) // 1000)]:
                row["text"] += " again"
            write_jsonl(folder / "c.jsonl", rows)
    print(f"{kills} kills, runs ended with {ends}")
    return rows
