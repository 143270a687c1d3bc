"""Canaries: fixed items whose vectors tell whether an encoder still computes what it did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedx.core.errors import FingerprintMismatchError
from embedx.inference.gates import measure_fidelity

CANARY_MIN_COSINE = 0.999
"""Between the canary vectors of then and today's: below it something changed what the encoder computes."""


def compare_canaries(
    today: np.ndarray | Sequence[Sequence[float]], known: Sequence[Sequence[float]], what: str, remedy: str
) -> None:
    """Refuse an encoder that computes other vectors than it did.

    Args:
        today: (m, dim), its vectors of its canary items.
        known: (m, dim), those of then.
        what: which encoder, and than when, for the message: "X computes other vectors than when Y was created".
        remedy: what to do.

    Raises:
        FingerprintMismatchError: they are others.
    """
    now, then = np.asarray(today, dtype=np.float32), np.asarray(known, dtype=np.float32)
    if now.shape != then.shape:
        raise FingerprintMismatchError(f"{what} ({now.shape} canary values today, {then.shape} then)", remedy)
    fidelity = measure_fidelity(now, then)
    if fidelity.raw_min < CANARY_MIN_COSINE:
        raise FingerprintMismatchError(f"{what} ({fidelity.describe()})", remedy)
