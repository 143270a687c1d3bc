"""Which rows train and which ones judge: stratified, aware of groups, safe with rare classes. Pure functions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

NEVER_SCORED = -1
"""Fold of a row that trains in every fold: the only row of its class."""

MAX_PARTS = 20
"""Of a hold-out of groups: its share is met in steps of a twentieth or finer."""

SMALLEST_SHARE = 0.001


def plan_holdout(codes: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Choose the rows to hold out, in every class the same share as nearly as whole rows allow.

    Every class keeps at least one row to train on. With groups, whole groups are held out and the share is
    met only as nearly as their sizes allow.

    Args:
        codes: (n,) int, class of each row, 0 to K-1.
        share: part of the rows to hold out, 0 to 1.
        seed: of the shuffle.
        groups: (n,) int, group of each row, 0 to G-1; None when rows are independent.

    Returns:
        (n,) bool, True where held out.
    """
    if groups is not None:
        return _hold_out_groups(codes, groups, share, seed)
    generator = np.random.default_rng(seed)
    counts = np.bincount(codes)
    wanted = counts * share
    quota = np.floor(wanted).astype(np.int64)
    # Largest remainders bring the total to the share of all rows; a random order breaks ties fairly.
    missing = round(float(wanted.sum())) - int(quota.sum())
    order = generator.permutation(len(counts))
    order = order[np.argsort(-(wanted - quota)[order], kind="stable")]
    quota[order[:missing]] += 1
    quota = np.minimum(quota, np.maximum(counts - 1, 0))
    return _rank_within_class(codes, generator) < quota[codes]


def plan_folds(codes: np.ndarray, n_folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Deal rows into folds whose sizes and class counts differ by one at most.

    The only row of a class gets `NEVER_SCORED`. With groups, whole groups are dealt, as evenly as they allow.

    Args:
        codes: (n,) int, class of each row.
        n_folds: number of folds.
        seed: of the shuffle.
        groups: (n,) int, group of each row; None when rows are independent.

    Returns:
        (n,) int, fold of each row.
    """
    if groups is not None:
        return _assign_groups(codes, groups, n_folds, seed)
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(codes))
    in_class_order = shuffled[np.argsort(codes[shuffled], kind="stable")]
    single = (np.bincount(codes) == 1)[codes[in_class_order]]
    folds = np.full(len(codes), NEVER_SCORED, dtype=np.int64)
    dealt = in_class_order[~single]
    # Dealing on from class to class, not from fold 0 each time, keeps the folds' sizes equal too.
    folds[dealt] = np.arange(len(dealt)) % n_folds
    return folds


def _rank_within_class(codes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return each row's random place (0, 1, ...) among the rows of its class."""
    shuffled = generator.permutation(len(codes))
    order = shuffled[np.argsort(codes[shuffled], kind="stable")]
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    ranks = np.empty(len(codes), dtype=np.int64)
    ranks[order] = np.arange(len(codes)) - np.repeat(starts, counts)
    return ranks


def _hold_out_groups(codes: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Deal whole groups to equal parts, and hold out those whose sizes are nearest to what is wanted.

    Dealt to two unequal parts, largest first, the larger one would get the large groups, and what judges would be
    unlike what trains: short texts, patients of few scans.
    """
    finest = math.ceil(1 / max(min(share, 1 - share), SMALLEST_SHARE))
    wanted = Fraction(share).limit_denominator(max(MAX_PARTS, finest))
    parts = _assign_groups(codes, groups, wanted.denominator, seed)
    sizes = np.bincount(parts, minlength=wanted.denominator)
    nearest = np.argsort(np.abs(sizes - len(codes) / wanted.denominator), kind="stable")
    return np.isin(parts, nearest[: wanted.numerator])


def _assign_groups(codes: np.ndarray, groups: np.ndarray, n_parts: int, seed: int) -> np.ndarray:
    """Give whole groups to equal parts, largest first, each where its classes are most wanted.

    The greedy rule of scikit-learn's StratifiedGroupKFold: it takes the part that least increases the squared
    distance to the target counts, every class weighted by its size.
    """
    n_classes, n_groups = int(codes.max()) + 1, int(groups.max()) + 1
    table = np.zeros((n_groups, n_classes), dtype=np.float64)
    np.add.at(table, (groups, codes), 1)
    totals = np.maximum(table.sum(axis=0), 1)
    excess = -np.tile(totals / n_parts, (n_parts, 1))
    shuffled = np.random.default_rng(seed).permutation(n_groups)
    parts = np.empty(n_groups, dtype=np.int64)
    for group in shuffled[np.argsort(-table[shuffled].sum(axis=1), kind="stable")]:
        part = int(np.argmin(excess @ (table[group] / totals)))
        parts[group] = part
        excess[part] += table[group]
    return parts[groups]
