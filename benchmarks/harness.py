"""Whole processes side by side: each contestant in turn, several rounds, medians and ratios of one run.

Machines are shared and noisy, so a figure alone says little: what counts is the ratio to the peer that ran in the
same minutes. Each round runs every contestant once, in turn; a ratio is the median over the rounds of the ratios
within a round.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass
class Contestant:
    """A command to time.

    Attributes:
        name: in the table.
        command: argv.
        before: is called before each run, not timed.
        seconds: of each counted run.
    """

    name: str
    command: list[str]
    before: Callable[[], None] = lambda: None
    seconds: list[float] = field(default_factory=list)

    def run(self, counted: bool) -> None:
        """Run once, as a whole process with its children."""
        self.before()
        started = time.perf_counter()
        done = subprocess.run(self.command, capture_output=True, text=True, check=False)
        elapsed = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"{self.name} failed:\n{done.stdout}\n{done.stderr}")
        if counted:
            self.seconds.append(elapsed)


def race(contestants: list[Contestant], rounds: int, warm_up: int = 1) -> None:
    """Run all contestants in turn, `rounds` times after the warm-up."""
    for number in range(-warm_up, rounds):
        for contestant in contestants:
            contestant.run(counted=number >= 0)
            took = f"{contestant.seconds[-1]:.1f} s" if number >= 0 else "warm-up"
            print(f"round {number}: {contestant.name}: {took}", file=sys.stderr, flush=True)


def table(contestants: list[Contestant], items: int) -> list[str]:
    """Return a Markdown table: median seconds, items/s, and each one's speed against the first one's."""
    base = contestants[0]
    lines = ["| | median s | min-max s | items/s | speed vs " + base.name + " |", "|---|---|---|---|---|"]
    for contestant in contestants:
        ratios = [theirs / ours for theirs, ours in zip(base.seconds, contestant.seconds)]
        median = statistics.median(contestant.seconds)
        spread = f"{min(contestant.seconds):.1f}-{max(contestant.seconds):.1f}"
        ratio = f"{statistics.median(ratios):.2f}x"
        lines.append(f"| {contestant.name} | {median:.2f} | {spread} | {items / median:,.0f} | {ratio} |")
    return lines


def write_results(name: str, title: str, lines: list[str], facts: dict[str, object], part: str = "") -> Path:
    """Write `results/<date>-<cpu>-<name><part>.md`, with what ran where."""
    cpu = cpu_name()
    slug = "".join(c if c.isalnum() else "-" for c in cpu.lower()).strip("-")[:40]
    path = RESULTS / f"{datetime.date.today().isoformat()}-{slug}-{name}{part}.md"
    versions = {package: version(package) for package in ("torch", "sentence-transformers", "openvino", "dask")}
    described = {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), **versions}
    # Paths are of this machine only.
    command = ["python", f"benchmarks/{name}.py", *("PATH" if os.sep in word else word for word in sys.argv[1:])]
    head = [f"# {title}", "", f"`{' '.join(command)}`, {datetime.date.today().isoformat()}", ""]
    tail = ["", *(f"- {key}: {value}" for key, value in {**described, **facts}.items()), ""]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*head, *lines, *tail]))
    print("\n".join([*head, *lines, *tail]))
    return path


def cpu_name() -> str:
    """Return the processor's name and whether it multiplies bfloat16."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    flags = names.get("flags", "").split()
    return names.get("model name", "cpu") + "".join(f" {flag}" for flag in ("avx512_bf16", "amx_bf16") if flag in flags)


def read_texts(path: Path) -> list[str]:
    """Return the column `text` of a JSONL file."""
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]
