"""What an index is asked to be: store, place, metric, recall target, memory, factory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from embedx.core.errors import UsageError
from embedx.core.places import Place
from embedx.indexes.metrics import METRICS

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*$", re.IGNORECASE)


def parse_memory_size(text: str) -> int:
    """Read `4GiB`, `500 MB`, `2g` or a plain number of bytes.

    Returns:
        The size in bytes.

    Raises:
        UsageError: not a size, or zero.
    """
    match = _SIZE.match(text)
    unit = match.group(2).lower() if match else None
    if match is None or unit not in _UNITS or float(match.group(1)) <= 0:
        raise UsageError(f"--memory {text!r} is not a size", "Pass e.g. 4GiB or 500MB")
    return int(float(match.group(1)) * _UNITS[unit])


@dataclass(frozen=True)
class IndexSpec:
    """What one index build makes.

    Attributes:
        store: the store.
        out: the index's folder or URL.
        metric: cosine, ip or l2.
        recall: the recall@10 that must be measured before the index is published, above 0 and at most 1.
        memory_bytes: the most memory an opened index may need; None is what the machine has.
        factory: the structure, in FAISS's notation; None chooses by size.
    """

    store: Place
    out: Place
    metric: str = "cosine"
    recall: float = 0.95
    memory_bytes: int | None = None
    factory: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            known = ", ".join(METRICS)
            raise UsageError(f"--metric {self.metric!r} is not one of {known}", f"Pass one of: {known}")
        if not 0 < self.recall <= 1:
            raise UsageError(f"--recall {self.recall:g} is not a share", "Pass a number above 0 and at most 1")
