"""Shard planning: rows of a listing cut into shards of about equal work."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from embedx.core.specs import SHARD_MAX_BYTES, SHARD_MAX_ROWS

SHARD_FLOPS = 1.5e13
"""Work of one shard: about 30 s of a 2-core bf16 machine at 0.5 TFLOP/s."""

RAMP = (1 / 8, 1 / 4, 1 / 2)
"""The first shards are smaller, so that progress, errors and an ETA come early."""


def max_shard_rows(dim: int) -> int:
    """Return the most rows a shard of `dim`-d float32 vectors may have."""
    return max(1, min(SHARD_MAX_ROWS, SHARD_MAX_BYTES // (4 * dim)))


class ShardCutter:
    """Decides, row by row in listing order, where one shard ends and the next begins.

    It keeps no rows, so a listing of any length is cut in one pass.

    Args:
        dim: length of a vector.
        fixed_items: rows of every shard (tests); None cuts by work.
        max_content_bytes: the most inline content (texts) of one shard.
    """

    def __init__(self, dim: int, fixed_items: int | None = None, max_content_bytes: int = SHARD_MAX_BYTES) -> None:
        self._max_rows = max_shard_rows(dim)
        self._fixed = min(fixed_items, self._max_rows) if fixed_items else None
        self._max_content = max_content_bytes
        self._shard = 0
        self._rows = 0
        self._flops = 0.0
        self._content = 0

    def assign(self, flops: np.ndarray, content_bytes: np.ndarray) -> np.ndarray:
        """Return the shard number of each of the next rows.

        Args:
            flops: (n,) estimated work of each row.
            content_bytes: (n,) bytes of inline content of each row.
        """
        numbers = np.empty(len(flops), dtype=np.int64)
        for position, (work, size) in enumerate(zip(flops.tolist(), content_bytes.tolist())):
            if self._rows and self._is_full(work, size):
                self._shard += 1
                self._rows, self._flops, self._content = 0, 0.0, 0
            self._rows += 1
            self._flops += work
            self._content += size
            numbers[position] = self._shard
        return numbers

    def _is_full(self, work: float, size: int) -> bool:
        if self._fixed:
            return self._rows >= self._fixed
        ramp = RAMP[self._shard] if self._shard < len(RAMP) else 1.0
        return (
            self._rows >= self._max_rows
            or self._flops + work > SHARD_FLOPS * ramp
            or self._content + size > self._max_content
        )


def iterate_groups(numbers: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, stop) for each run of equal numbers in an ascending array."""
    if len(numbers) == 0:
        return
    edges = np.flatnonzero(np.diff(numbers)) + 1
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(numbers)]):
        yield int(numbers[start]), start, stop
