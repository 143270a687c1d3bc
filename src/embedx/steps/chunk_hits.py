"""Hits of texts in chunks: the best chunk of each text, until as many texts are found as were asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embedx.indexes.search import Hits, VectorIndex

MORE = 4
"""Times k that are asked for at first, and again as long as too few texts are among them."""


def search_items(index: VectorIndex, search: Callable[[int], Hits], k: int, without: str | None = None) -> Hits:
    """Search for k items: of a text in chunks the hit is its best chunk.

    Args:
        index: what is searched.
        search: finds the given number of rows.
        k: hits wanted of each query.
        without: a row's id; neither it nor other chunks of its text are hits.
    """
    if "parent_id" not in index.columns:
        return search(k)
    asked = MORE * k
    while True:
        hits = search(asked)
        owners = _owners(index, hits)
        own = None if without is None else _owner_of(index, without)
        chosen = [_first_of_each(names, k, own) for names in owners]
        if asked >= index.count or all(len(places) == k or len(names) < asked for places, names in zip(chosen, owners)):
            return _taken(hits, chosen)
        asked *= MORE


def _owners(index: VectorIndex, hits: Hits) -> list[list[str]]:
    """Return the item that each hit belongs to."""
    rows = np.concatenate([*hits.rows, np.empty(0, np.int64)]).astype(np.int64)
    parents = iter(index.table(rows).column("parent_id").to_pylist())
    return [[next(parents) or item_id for item_id in ids] for ids in hits.ids]


def _owner_of(index: VectorIndex, item_id: str) -> str:
    row = np.array([index.row(item_id)], dtype=np.int64)
    return index.table(row).column("parent_id")[0].as_py() or item_id


def _first_of_each(owners: list[str], k: int, own: str | None) -> list[int]:
    """Return the places of the first k different owners, nearest first, but for one."""
    seen: set[str | None] = {own}
    places: list[int] = []
    for place, owner in enumerate(owners):
        if owner not in seen and len(places) < k:
            seen.add(owner)
            places.append(place)
    return places


def _taken(hits: Hits, chosen: list[list[int]]) -> Hits:
    return Hits(
        ids=[[ids[place] for place in places] for ids, places in zip(hits.ids, chosen)],
        scores=[scores[places] for scores, places in zip(hits.scores, chosen)],
        rows=[rows[places] for rows, places in zip(hits.rows, chosen)],
    )
