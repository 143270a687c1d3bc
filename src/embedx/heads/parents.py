"""Texts of several rows judged as one: the probabilities of a text are the mean of those of its chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def mean_by_parent(parents: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what is known of each parent.

    The mean of probabilities, and not of the scores before them: one chunk that is very sure cannot outvote the others.

    Args:
        parents: (n,) object array of str or int, the parent of each row.
        probabilities: (n, K) float32.

    Returns:
        (p,) int64, the first row of each parent, ascending, and (p, K) float32, the mean of its rows.
    """
    _, first, inverse = np.unique(parents, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    counts = np.bincount(inverse)
    sums = np.add.reduceat(probabilities[order].astype(np.float64), np.cumsum(counts) - counts, axis=0)
    means = (sums / counts[:, None]).astype(np.float32)
    by_first = np.argsort(first)
    return first[by_first], means[by_first]


def join_parents(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Join the rows of each parent, batch by batch, in the memory of one batch and one parent.

    Args:
        batches: parents (n,) object array and probabilities (n, K); the rows of a parent stand one after the other, but
            may go on in the next batch.

    Yields:
        Distinct parents (p,) and the means of their rows (p, K) float32; at least one.
    """
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for parents, probabilities in batches:
        if not len(parents):
            continue
        held.append((parents, probabilities))
        last = parents[-1]
        if parents[0] == last and (len(held) == 1 or held[0][0][-1] == last):
            continue  # it may go on
        all_parents, values = (np.concatenate(parts) for parts in zip(*held))
        n_done = int(np.flatnonzero(all_parents != last)[-1]) + 1
        first, means = mean_by_parent(all_parents[:n_done], values[:n_done])
        yield all_parents[first], means
        held = [(all_parents[n_done:], values[n_done:])]
    if held:
        all_parents, values = (np.concatenate(parts) for parts in zip(*held))
        first, means = mean_by_parent(all_parents, values)
        yield all_parents[first], means
