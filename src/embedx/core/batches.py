"""Batches: items sorted by cost and packed under a budget of padded cost."""

from __future__ import annotations

import numpy as np

TOKENS_STEP = 8
"""Batches of texts are as wide as a multiple of so many tokens. A runtime keeps what it compiled for each shape that it
has seen: without steps a worker's memory grows with the number of texts, and kernels like multiples of 8 better."""


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of a step that is not below a value."""
    return -(-value // step) * step


def plan_batches(costs: np.ndarray, budget: int, max_items: int, step: int = 1) -> list[np.ndarray]:
    """Pack items, costliest first, so that (longest cost x items) stays within a budget.

    Sorting puts items of like length together, so padding is small; costliest first means that memory peaks
    at the start, where a batch that does not fit is cheap to notice (crossfit issue 18).

    Args:
        costs: (n,) int, cost of each item, e.g. tokens; 0 counts as 1.
        budget: the most padded cost of a batch; an item above it gets a batch of its own.
        max_items: the most items of a batch.
        step: the costs of a batch are padded to a multiple of this.

    Returns:
        Position arrays (int64), each one batch; together they hold every position once.
    """
    costs = np.maximum(np.asarray(costs, dtype=np.int64), 1)
    order = np.argsort(-costs, kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        longest = round_up(int(costs[order[start]]), step)
        size = max(1, min(max_items, budget // longest))
        batches.append(order[start : start + size])
        start += size
    return batches
