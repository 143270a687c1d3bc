"""How much each word weighs in the mean of a text: alike, by inverse frequency, or by SIF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.digests import fingerprint
from embedx.core.errors import EncoderError, UsageError
from embedx.core.paths import replacing
from embedx.encoders.weights import cached_file_sha256
from embedx.encoders.word_table import WordTable, hash_words

POOLINGS = ("mean", "idf", "sif")

SIF_A = 1e-3
"""The constant of smooth inverse frequency that its authors use (Arora, Liang, Ma 2017)."""


@dataclass(frozen=True)
class Weighting:
    """What decides the weights; equal values give equal weights on every machine.

    `p` is a word's share of the training text. It comes from a frequency file if one is given, else from the counts in
    the vector file (fastText models have them), else from the word's rank in the vector file by Zipf's law,
    p = 1 / (rank * H), for these files are sorted by frequency. Words without a frequency count as the rarest.

    Attributes:
        pooling: mean (1), idf (-log p) or sif (a / (a + p)).
        a: of sif.
        frequencies: a file of lines `word count`; None takes the vector file's own.
        total: what counts are shares of, such as the number of documents for document counts; None is their sum.
    """

    pooling: str
    a: float = SIF_A
    frequencies: Path | None = None
    total: float | None = None

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UsageError(f"pooling {self.pooling!r} of word vectors is unknown", f"Pass {', '.join(POOLINGS)}")
        if self.a <= 0 or (self.total is not None and self.total <= 0):
            raise UsageError("a and total of word weights must be above 0", "Leave them out for the defaults")

    def identity(self, table: WordTable) -> dict[str, Any]:
        """Return what of this changes the vectors."""
        if self.pooling == "mean":
            return {"weights": "mean"}
        if self.frequencies is not None:
            source = f"sha256 {cached_file_sha256(self.frequencies)}"
        else:
            counts = table.facts["counts_digest"]
            source = f"counts {counts}" if counts else "rank"
        return {
            "weights": self.pooling,
            "frequencies": source,
            **({"total": self.total} if self.total is not None else {}),
            **({"a": self.a} if self.pooling == "sif" else {}),
        }

    def open_weights(self, table: WordTable) -> np.ndarray:
        """Return (words + 1,) float32, mapped: the weight of each row, and last that of words outside the table.

        Raises:
            EncoderError: the frequency file is missing or broken.
        """
        path = table.home / f"weights-{fingerprint(self.identity(table))[:32]}.npy"
        if not path.exists():
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, self._weigh(table))
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _weigh(self, table: WordTable) -> np.ndarray:
        if self.pooling == "mean":
            return np.ones(table.words + 1, dtype=np.float32)
        shares = self._shares(table)
        if self.pooling == "sif":
            return (self.a / (self.a + shares)).astype(np.float32)
        return -np.log(np.minimum(shares, 1.0)).astype(np.float32)

    def _shares(self, table: WordTable) -> np.ndarray:
        """Return (words + 1,) float64: each word's p."""
        own = table.counts()
        if self.frequencies is not None:
            counts, total = _read_frequencies(self.frequencies, table)
        elif own is not None:
            counts, total = np.asarray(own, dtype=np.float64), float(np.sum(own))
        else:
            counts = 1.0 / np.arange(1, table.words + 1)
            total = float(counts.sum())
        known = counts[counts > 0]
        if not len(known):
            raise EncoderError(f"{self.frequencies or table.home} knows no word of the vectors", "Check its words")
        shares = np.append(counts, 0.0) / (self.total or total)
        return np.where(shares > 0, shares, known.min() / (self.total or total))


def _read_frequencies(path: Path, table: WordTable) -> tuple[np.ndarray, float]:
    """Return (words,) float64 counts, 0 where the file is silent, and the sum of all counts in the file."""
    words: list[bytes] = []
    values: list[float] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                word, _, count = line.rstrip().replace(b"\t", b" ").rpartition(b" ")
                if not word or not float(count) >= 0:
                    raise ValueError(f"line {number} is not a word and its count")
                words.append(word)
                values.append(float(count))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} is no file of frequencies ({error})", "Write lines `word count`") from error
    counts = np.zeros(table.words)
    rows = table.find_hashes(hash_words(words))
    counts[rows[rows >= 0]] = np.array(values)[rows >= 0]
    return counts, float(sum(values))
