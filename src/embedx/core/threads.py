"""The thread plan: how many cores this process really has, and how they are shared out.

Container quotas are invisible to OpenBLAS and OpenMP, and Dask's nanny sets OMP_NUM_THREADS=1; both make
libraries guess wrong by an order of magnitude. So the quota is read once here and handed out explicitly.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def cpu_quota() -> int:
    """Return the cores this process may use: the smaller of its affinity and its cgroup quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(affinity, quota)) if quota else max(1, affinity)


def _cgroup_quota() -> int | None:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else max(1, round(int(limit) / int(period)))
    except (OSError, ValueError):
        pass
    try:
        base = Path("/sys/fs/cgroup/cpu")
        limit_us = int((base / "cpu.cfs_quota_us").read_text())
        period_us = int((base / "cpu.cfs_period_us").read_text())
        return None if limit_us < 0 else max(1, round(limit_us / period_us))
    except (OSError, ValueError):
        return None


def memory_quota_bytes() -> int:
    """Return the memory this process may use: the smaller of the machine's and its cgroup's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text))
    return total


@dataclass(frozen=True)
class ThreadPlan:
    """Threads of one process.

    Attributes:
        forward: threads of the runtime that executes the encoder.
        prepare: threads that read, decode and tokenise.
        blas: threads of a linear-algebra library.
    """

    forward: int
    prepare: int
    blas: int


def plan_threads(cores: int, processes: int = 1) -> ThreadPlan:
    """Share `cores` among `processes` worker processes of one machine.

    The forward pass gets the process's whole share; preparation gets as many threads, because decoders wait
    for files and the runtime's idle gaps are theirs. BLAS gets one thread: on our 2-core machines two BLAS
    threads made a logistic regression 15 times slower than one (DECISIONS.md, thread plan).
    """
    share = max(1, cores // max(1, processes))
    return ThreadPlan(forward=share, prepare=share, blas=1)
