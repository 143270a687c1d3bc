"""What this machine computes with: the name of its CPU and its GPUs, asked without loading a library for them."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
from pathlib import Path

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What decides which kernels a CPU runs; virtual machines give CPUs that differ in them one name."""


@functools.cache
def cpu_name() -> str:
    """Return the CPU's name and which of `CPU_FLAGS` it has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    there = set(flags[1].split()) if flags else set()
    return " ".join([model[1] if model else platform.machine(), *(flag for flag in CPU_FLAGS if flag in there)])


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """Return what `CUDA_VISIBLE_DEVICES` calls each CUDA device that this process may use; none where there is none.

    The driver itself is asked, in tenths of a second: device files and `/proc` name a whole machine's, also in a
    container that may use one of them. Nothing is allocated on a device.
    """
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return ()
    except (OSError, AttributeError):
        return ()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in listed.split(",")] if listed else [str(place) for place in range(count.value)]
    return tuple(names[: count.value])
