"""Fidelity gates: how far fast vectors may be from the library's own in fp32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fidelity:
    """Cosines of vectors to their reference, raw and minus the mean over the items.

    Raw cosines of CNN features are near 1 for any two images; only the centred ones tell whether what
    distinguishes the items survived.
    """

    raw_min: float
    raw_mean: float
    centred_min: float
    centred_mean: float

    def describe(self) -> str:
        """Return the figures in one line."""
        return (
            f"cosine to fp32: min {self.raw_min:.5f}, mean {self.raw_mean:.5f}; "
            f"centred: min {self.centred_min:.5f}, mean {self.centred_mean:.5f}"
        )


def measure_fidelity(vectors: np.ndarray, reference: np.ndarray) -> Fidelity:
    """Compare (n, dim) vectors with their fp32 reference, row by row.

    The mean that is subtracted is the reference's own, from both, so that a constant shift is not hidden.
    """
    vectors = vectors.astype(np.float64)
    reference = reference.astype(np.float64)
    raw = _cosines(vectors, reference)
    mean = reference.mean(axis=0)
    # With one item, or identical ones, nothing is left after centring.
    centred = _cosines(vectors - mean, reference - mean) if _spread(reference) > 1e-6 else raw
    return Fidelity(float(raw.min()), float(raw.mean()), float(centred.min()), float(centred.mean()))


def passes_gate(fidelity: Fidelity, precision: str, share: float = 1.0) -> bool:
    """Whether vectors of a precision are faithful (DESIGN: fidelity gates).

    Args:
        fidelity: as measured.
        precision: fp32 or bf16.
        share: of what the gate lets be lost; the rest is for what else will be lost.
    """
    if precision == "fp32":
        return fidelity.raw_min >= 1 - 1e-5 * share and fidelity.centred_min >= 1 - 1e-4 * share
    mean, least = min(fidelity.raw_mean, fidelity.centred_mean), min(fidelity.raw_min, fidelity.centred_min)
    return mean >= 1 - 5e-4 * share and least >= 1 - 1e-3 * share


def is_interchangeable(fidelity: Fidelity, precision: str) -> bool:
    """Whether another way to compute, chosen after the precision, gives the vectors of the first one.

    A compiled module, for instance, or another kernel for resizing. They must keep the gate in fp32; in bf16 a tenth of
    what it lets them lose, for the rest is bf16's.

    Args:
        fidelity: against the first way in the same precision.
        precision: fp32 or bf16.
    """
    return passes_gate(fidelity, precision, 1.0 if precision == "fp32" else 0.1)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosines; two vectors of zeros are alike, and one is like no other."""
    of_a, of_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(of_a * of_b > 0, (a * b).sum(axis=1) / (of_a * of_b), (of_a + of_b == 0) * 1.0)


def _spread(reference: np.ndarray) -> float:
    centred = reference - reference.mean(axis=0)
    scale = float(np.linalg.norm(reference, axis=1).mean()) or 1.0
    return float(np.linalg.norm(centred, axis=1).min()) / scale
