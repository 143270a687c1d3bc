"""`embedx` in a process that measures itself and its workers: what the benchmarks of memory run, not a benchmark.

It imports no more than the command does: what a library is told before it is loaded would else come too late.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

MEASURED = "measured="


def run_measured(arguments: list[str], env: dict[str, str] | None = None, exit_status: int = 0) -> dict:
    """Run `embedx extract` with some arguments.

    Returns:
        Its report, seconds, peak_mb (of the driver), workers_peak_mb, tree_peak_mb (of all), cpu_s (of the driver).
    """
    command = [sys.executable, __file__, "extract", *arguments, "--json"]
    here = Path(__file__).parent
    plugins = [str(here / "stub"), str(here.parent / "tests" / "plugins" / "pixels")]
    paths = os.pathsep.join([*plugins, os.environ.get("PYTHONPATH", "")])
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths, **(env or {})}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode != exit_status:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    measured = json.loads(done.stderr.rstrip().rsplit(MEASURED, 1)[1])
    return {"seconds": seconds, "report": json.loads(done.stdout), **measured}


def main() -> None:
    """Run the command line in this process; say its peak of anonymous memory, and its workers', on standard error."""
    own, others, tree = 0.0, 0.0, 0.0
    me = psutil.Process()

    def watch() -> None:
        nonlocal own, others, tree
        workers: list[psutil.Process] = []
        for tick in itertools.count():
            if tick % 25 == 0:
                workers = me.children(recursive=True)
            mine, theirs = anonymous_mb(me.pid), sum(anonymous_mb(worker.pid) for worker in workers)
            own, others, tree = max(own, mine), max(others, theirs), max(tree, mine + theirs)
            time.sleep(0.04)

    threading.Thread(target=watch, daemon=True).start()
    from embedx.cli.main import main as command_line

    try:
        command_line()
    finally:
        times = me.cpu_times()
        peaks = {"peak_mb": own, "workers_peak_mb": others, "tree_peak_mb": tree}
        measured = {**peaks, "cpu_s": times.user + times.system}
        print(f"{MEASURED}{json.dumps(measured)}", file=sys.stderr)


def anonymous_mb(pid: int) -> float:
    """Return a process's anonymous pages in MB; 0 once it is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon")), 0.0)
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
