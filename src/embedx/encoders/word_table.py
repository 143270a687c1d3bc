"""Word vectors as one mapped table: read once per machine, shared by its processes, never a Python object per word."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from filelock import FileLock

from embedx.core.digests import fingerprint, stat_token
from embedx.core.errors import EncoderError
from embedx.core.paths import cache_dir, write_json
from embedx.encoders.word_files import WordFile, open_word_file

EXAMPLES = 200
"""First words of a file that its table keeps as text, for canaries."""

TABLE_FORMAT = 1
"""Raised when the files below change; tables of older versions are then made again."""


@dataclass(frozen=True)
class WordTable:
    """Words and their vectors; open it with `open_word_table`.

    Attributes:
        home: the folder of the table's files.
        facts: format, dim, words, ngrams, ngram_sizes, digest, counts_digest (None without counts), examples.
        vectors: (words + ngrams, dim) float32, mapped: the words in the file's order, then the sub-words.
        hashes: (2, words) uint64, mapped, ascending: both halves of each word's hash.
        rows: (words,) int64, mapped: the row of each hash.
    """

    home: Path
    facts: dict[str, Any]
    vectors: np.ndarray
    hashes: np.ndarray
    rows: np.ndarray

    @property
    def words(self) -> int:
        """Number of words."""
        return int(self.facts["words"])

    def find(self, words: Sequence[str]) -> np.ndarray:
        """Return (m,) int64: the row of each word, -1 for unknown ones."""
        return self.find_hashes(hash_words([word.encode(errors="replace") for word in words]))

    def find_hashes(self, wanted: np.ndarray) -> np.ndarray:
        """Return (m,) int64: the row of each (m, 2) uint64 hash, -1 for unknown ones."""
        first, second = self.hashes
        # Two words that share the first half: once in millions of tables of millions of words. One would be unknown.
        place = np.minimum(np.searchsorted(first, wanted[:, 0]), len(first) - 1)
        known = (first[place] == wanted[:, 0]) & (second[place] == wanted[:, 1])
        return np.where(known, self.rows[place], -1)

    def counts(self) -> np.ndarray | None:
        """Return (words,) int64, how often each word was seen in training; None where the file does not say."""
        path = self.home / "counts.npy"
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None


def hash_words(words: Sequence[bytes]) -> np.ndarray:
    """Return (n, 2) uint64: xxh3-128 of each word, so that no two of millions of words share one."""
    joined = b"".join(xxhash.xxh3_128_digest(word) for word in words)
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)


def open_word_table(path: Path) -> WordTable:
    """Open the table of a file of word vectors, reading the file first if no process of this machine has.

    Raises:
        EncoderError: the file is damaged, or of a kind that is not read.
    """
    home = cache_dir() / "wordvectors" / fingerprint([TABLE_FORMAT, str(path.resolve()), stat_token(path)])[:40]
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{home}.lock"):
            if not home.is_dir():
                _make_table(path, home)
    facts = json.loads((home / "table.json").read_text())
    vectors = np.memmap(home / "vectors.f32", dtype="<f4", mode="r").reshape(-1, facts["dim"])
    hashes, rows = (np.load(home / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("hashes", "rows"))
    return WordTable(home, facts, vectors, hashes, rows)


def _make_table(path: Path, home: Path) -> None:
    temporary = Path(tempfile.mkdtemp(dir=home.parent, prefix=".reading-"))
    try:
        with open_word_file(path) as source, (temporary / "vectors.f32").open("wb") as file:
            hashes, digest, examples = _copy(source, file)
            _sort(hashes, temporary)
            if source.counts is not None:
                np.save(temporary / "counts.npy", source.counts)
            facts = {
                "format": source.format,
                "dim": source.dim,
                "words": len(hashes),
                "ngrams": 0 if source.ngrams is None else len(source.ngrams),
                "ngram_sizes": source.ngram_sizes,
                "digest": digest,
                "counts_digest": None if source.counts is None else hashlib.sha256(source.counts.tobytes()).hexdigest(),
                "examples": examples,
            }
        if not len(hashes):
            raise EncoderError(f"{path} holds no word", "Fetch the file again")
        write_json(temporary / "table.json", facts)
        os.replace(temporary, home)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(source: WordFile, file: IO[bytes]) -> tuple[np.ndarray, str, list[str]]:
    """Write the vectors; return the words' hashes, a digest that no file format changes, and the first words."""
    digest = hashlib.sha256(f"{source.dim}|{source.ngram_sizes}|".encode())
    pieces: list[bytes] = []
    examples: list[str] = []

    def write(vectors: np.ndarray) -> None:
        data = np.ascontiguousarray(vectors, dtype="<f4").data
        file.write(data)
        digest.update(data)

    for word, vector in source.words:
        pieces.append(xxhash.xxh3_128_digest(word))
        if len(examples) < EXAMPLES:
            examples.append(word.decode(errors="replace"))
        write(vector)
    if source.ngrams is not None:
        write(source.ngrams)
    joined = b"".join(pieces)
    digest.update(joined)
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2), digest.hexdigest(), examples


def _sort(hashes: np.ndarray, folder: Path) -> None:
    """Write hashes in ascending order with their rows; of a word that stands twice the first row counts."""
    order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    np.save(folder / "hashes.npy", np.ascontiguousarray(ordered[is_first].T))
    np.save(folder / "rows.npy", order[is_first])
