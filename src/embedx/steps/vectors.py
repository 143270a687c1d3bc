"""A store's vectors as heads need them: there are some, and every value is finite."""

from __future__ import annotations

import numpy as np

from embedx.core.errors import StoreError
from embedx.core.places import Place
from embedx.store.reader import Store, open_store


def open_filled_store(path: Place) -> Store:
    """Open a store that has rows.

    Raises:
        StoreError: there is no store, or it is empty.
    """
    store = open_store(path)
    if not store.count:
        raise StoreError(f"{path} has no rows", "Extract a corpus to it first")
    return store


def check_finite(store: Place, ids: np.ndarray, vectors: np.ndarray) -> None:
    """Refuse vectors that no arithmetic is possible with.

    Args:
        store: whose vectors they are, for the message.
        ids: (n,) object array of str.
        vectors: (n, dim) float32.

    Raises:
        StoreError: a value is infinite or no number.
    """
    # A row's sum is finite exactly when its values are (float32 cannot overflow float64), and needs no (n, dim) mask.
    bad = np.flatnonzero(~np.isfinite(vectors.sum(axis=1, dtype=np.float64)))
    if len(bad):
        raise StoreError(
            f"{len(bad):,} vectors of {store} are not finite (e.g. item {ids[bad[0]]!r})",
            f"Run embedx verify {store}, and extract these items again",
        )
