"""Kill the driver, a worker or everything at random moments, many times: the result is that of an unbroken run.

`make test` runs the short form; `make chaos` kills 50 times (EMBEDX_CHAOS_KILLS, EMBEDX_CHAOS_SEED).
"""

import os
import random
import signal
import time

import psutil

from tests.conftest import write_jsonl
from tests.steps.test_extract import assert_same, content, processes_of, start, texts

ARGUMENTS = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s", "--workers", "2")
ENV = {"EMBEDX_SHARD_ITEMS": "40"}


def strike(run, rng):
    """Kill something of a running extraction; returns what."""
    processes = processes_of(run)
    workers = [process for process in processes[1:] if "spawn_main" in " ".join(process.cmdline())]
    target = rng.choice(["driver", "everything", "worker", "worker"])
    if target == "worker" and workers:
        rng.choice(workers).kill()
    elif target == "everything":
        for process in processes:
            process.kill()
    else:
        run.send_signal(signal.SIGKILL)
    return target


def survivors(run, seconds=30):
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


def test_chaos(embedx, tmp_path):
    kills_wanted = int(os.environ.get("EMBEDX_CHAOS_KILLS", "4"))
    rng = random.Random(int(os.environ.get("EMBEDX_CHAOS_SEED", "1")))
    rows = texts(1200 if kills_wanted <= 10 else 12000)
    write_jsonl(tmp_path / "c.jsonl", rows)
    kills = []
    while len(kills) < kills_wanted:
        run = start(tmp_path, *ARGUMENTS, env=ENV)
        time.sleep(rng.uniform(1.5, 6))
        while run.poll() is None and len(kills) < kills_wanted:
            try:
                kills.append(strike(run, rng))
            except psutil.Error:
                continue
            time.sleep(rng.uniform(0.5, 3))
            if kills[-1] != "worker":
                break
        if kills and kills[-1] != "worker":
            run.wait(60)
            assert survivors(run) == [], "no process may outlive its driver"
        elif run.poll() is None:
            assert run.wait(300) == 0, run.stderr.read()
        if run.returncode == 0 and len(kills) < kills_wanted:
            # Done before all the kills were spent: more to do, so that the next ones hit something.
            for row in rows[:: max(1, len(rows) // 1000)]:
                row["text"] += " again"
            write_jsonl(tmp_path / "c.jsonl", rows)
    assert len(kills) == kills_wanted
    report = embedx.json(*ARGUMENTS, env=ENV)
    assert report["items"]["embedded"] + report["items"]["unchanged"] == len(rows)
    embedx("extract", "c.jsonl", "--encoder", "minilm", "--out", "whole")
    assert_same(content(tmp_path / "s"), content(tmp_path / "whole"))
    assert embedx.json("verify", "s")["ok"]
    embedx("vacuum", "s")
    assert embedx.json("vacuum", "s")["orphans"] == [] and embedx.json(*ARGUMENTS)["items"]["planned"] == 0
