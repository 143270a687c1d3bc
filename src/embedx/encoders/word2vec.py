"""Word vectors: a text is the mean of its words' vectors. Reads Word2Vec, GloVe and fastText; never imports torch.

`word2vec:vectors.bin` names the file. `--pooling mean|idf|sif` says how words weigh (`word_weights.Weighting`); in an
encoder file, `[model_args]` may hold `frequencies` (a file `word count`, beside the vectors), `total`, `a`, and
`unit_words = true`, which brings each word's vector to length 1 first, as gensim does by default.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.contracts import Broken, EncoderCard, Prepared
from embedx.core.digests import fingerprint, stat_token
from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec
from embedx.core.threads import cpu_quota
from embedx.encoders.cards import KnownCard, open_card
from embedx.encoders.text import CANARIES
from embedx.encoders.word_files import check_gensim
from embedx.encoders.word_table import WordTable, open_word_table
from embedx.encoders.word_weights import Weighting

WORDS_RULE = 1
"""Version of `split_words` and of the forms that are looked up; part of the fingerprint."""

BATCH_ROWS = 16_384
"""Rows of the table gathered at a time: 20 MB of 300-d vectors, which stay in the caches' reach."""

MODEL_ARGS = ("frequencies", "total", "a", "unit_words")

_WORD = re.compile(r"\w+(?:['’.-]\w+)*")
_MARKS = re.compile(r"['’.-]")


def split_words(text: str) -> list[str]:
    """Return the words of a text: letters, digits and underscores, with marks inside (don't, e-mail, U.S)."""
    return _WORD.findall(text)


@dataclass(frozen=True)
class _Found:
    """The distinct words of some texts that have a vector.

    Attributes:
        places: word -> its place in the arrays.
        rows: (k,) int64 rows of the table for each place, whose mean is the word's vector.
        first: (m,) int64, the first of them.
        sizes: (m,) int64, how many.
        weights: (m,) float32.
        composed: (m,) bool: the table lacks the word; its vector is put together from parts or sub-words.
    """

    places: dict[str, int]
    rows: list[np.ndarray]
    first: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray
    composed: np.ndarray

    def gather(self, index: np.ndarray) -> np.ndarray:
        """Return the rows of some places, one after the other."""
        if self.sizes[index].max() == 1:
            return self.first[index]
        return np.concatenate([self.rows[place] for place in index.tolist()])


class WordVectors:
    """An encoder of texts by a table of word vectors. Open it with `open_encoder`.

    A word is looked up as it stands, then in lower case, then by its parts between marks. With sub-words (fastText
    models) a word that the table lacks gets the mean of its sub-words at once, as fastText itself does.

    Args:
        card: what the encoder is.
        table: of words.
        weights: (words + 1,) float32, see `Weighting.open_weights`.
        unit_words: bring each word's vector to length 1 before the mean.
    """

    def __init__(self, card: EncoderCard, table: WordTable, weights: np.ndarray, unit_words: bool) -> None:
        self._card = card
        self._table = table
        self._weights = weights
        self._unit_words = unit_words

    @property
    def card(self) -> EncoderCard:
        """What the encoder is."""
        return self._card

    def prepare(self, items: Sequence[str | Broken]) -> Prepared:
        """Look up the words of texts; entries are (rows, rows of each word, weight of each word)."""
        texts = {place: Counter(split_words(item)) for place, item in enumerate(items) if isinstance(item, str)}
        failures = {place: item for place, item in enumerate(items) if isinstance(item, Broken)}
        found = self._look_up({word for words in texts.values() for word in words})
        entries, kept, sums = [], [], Counter(words=0, unknown_words=0, composed_words=0)
        for place, words in texts.items():
            known = {found.places[word]: count for word, count in words.items() if word in found.places}
            sums["words"] += words.total()
            sums["unknown_words"] += words.total() - sum(known.values())
            if not known:
                failures[place] = _no_vector(words)
                continue
            index, counts = np.array(list(known)), np.array(list(known.values()), dtype=np.float32)
            sums["composed_words"] += int(counts[found.composed[index]].sum())
            entries.append((found.gather(index), found.sizes[index], found.weights[index] * counts))
            kept.append(place)
        return Prepared(entries, np.array(kept, dtype=np.int64), failures, counts=dict(sums))

    def _look_up(self, words: set[str]) -> _Found:
        """Find the rows of words: as they stand, in lower case, by parts; or by sub-words where the table has them."""
        ordered = sorted(words)
        rows = self._table.find(ordered)
        found = {word: np.array([row]) for word, row in zip(ordered, rows.tolist()) if row >= 0}
        unknown = [word for word in ordered if word not in found]
        if self._table.facts["ngrams"]:
            return self._found(found, {word: self._subwords(word) for word in unknown})
        lower = self._table.find([word.lower() for word in unknown])
        found |= {word: np.array([row]) for word, row in zip(unknown, lower.tolist()) if row >= 0}
        return self._found(found, {word: self._parts(word) for word in unknown if word not in found})

    def _found(self, simple: dict[str, np.ndarray], composed: dict[str, np.ndarray]) -> _Found:
        composed = {word: rows for word, rows in composed.items() if len(rows)}
        rows = [*simple.values(), *composed.values()]
        if not rows:
            return _Found({}, [], *(np.empty(0) for _ in range(4)))
        sizes = np.array([len(row) for row in rows])
        # The sub-words of a word weigh as one word outside the table, parts as the words they are: on average.
        weights = np.add.reduceat(self._weights[np.minimum(np.concatenate(rows), self._table.words)], _starts(sizes))
        return _Found(
            {word: place for place, word in enumerate([*simple, *composed])},
            rows,
            np.array([row[0] for row in rows]),
            sizes,
            (weights / sizes).astype(np.float32),
            np.arange(len(rows)) >= len(simple),
        )

    def _parts(self, word: str) -> np.ndarray:
        parts = [part for part in _MARKS.split(word) if part]
        if len(parts) < 2:
            return np.empty(0, dtype=np.int64)
        rows = self._table.find(parts)
        rows = np.where(rows >= 0, rows, self._table.find([part.lower() for part in parts]))
        return rows[rows >= 0]

    def _subwords(self, word: str) -> np.ndarray:
        from gensim.models.fasttext import ft_ngram_hashes

        shortest, longest = self._table.facts["ngram_sizes"]
        hashes = ft_ngram_hashes(word, shortest, longest, self._table.facts["ngrams"])
        return self._table.words + np.array(hashes, dtype=np.int64)

    def cost(self, prepared: Prepared) -> np.ndarray:
        """Return (m,) int64 rows of the table that each text gathers."""
        return np.array([len(rows) for rows, _, _ in prepared.items], dtype=np.int64)

    def collate(self, entries: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
        """Join entries: rows (r,), row_counts and weights (w,) of each word, word_counts (n,) of each text."""
        rows, row_counts, weights = (np.concatenate(parts) for parts in zip(*entries))
        word_counts = np.array([len(entry[1]) for entry in entries])
        return {"rows": rows, "row_counts": row_counts, "weights": weights, "word_counts": word_counts}

    def build(self) -> WordMean:
        """Return the function of a batch."""
        return WordMean(self._table.vectors, self._unit_words)

    def canaries(self) -> list[Any]:
        """Return a few fixed texts, of the table's first words: it may know no word of ours."""
        words = [word for word in self._table.facts["examples"] if split_words(word) == [word]]
        return [" ".join(words[start : start + 10]) for start in range(0, len(words), 10)][:5] or list(CANARIES)


class WordMean:
    """The weighted mean of word vectors, gathered from a mapped table.

    Args:
        vectors: (rows, dim) float32.
        unit_words: bring each word's vector to length 1 first.
    """

    batch_cost = BATCH_ROWS

    def __init__(self, vectors: np.ndarray, unit_words: bool) -> None:
        self._vectors = vectors
        self._unit_words = unit_words
        self.parallel_requests = cpu_quota()

    def __call__(
        self, rows: np.ndarray, row_counts: np.ndarray, weights: np.ndarray, word_counts: np.ndarray
    ) -> np.ndarray:
        """Return (n, dim) float32; a text whose words all weigh nothing gets NaN, which is a failed item."""
        words = self._vectors[rows]
        if len(rows) > len(row_counts):
            words = np.add.reduceat(words, _starts(row_counts)) / row_counts[:, None].astype(np.float32)
        if self._unit_words:
            lengths = np.linalg.norm(words, axis=1, keepdims=True)
            words = words / np.where(lengths > 0, lengths, 1)
        sums = np.add.reduceat(words * weights[:, None], _starts(word_counts))
        with np.errstate(invalid="ignore"):
            return (sums / np.add.reduceat(weights, _starts(word_counts))[:, None]).astype(np.float32)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)[:-1]])


def _no_vector(words: Counter[str]) -> Broken:
    if not words:
        return Broken("prepare", "NoWords", "the text has no word")
    shown = ", ".join(repr(word[:40]) for word in list(words)[:3])
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return Broken("prepare", "UnknownWords", f"the encoder knows none of its words: {shown}{more}")


def open_encoder(spec: EncoderSpec) -> WordVectors:
    """Open a file of word vectors; the first time on a machine it is read whole, into a table in the cache.

    Raises:
        UsageError: options that word vectors do not have.
        EncoderError: the file is missing, damaged or of a kind that is not read.
    """
    path = _path(spec)
    weighting = _weighting(spec, path)
    spec = replace(spec, name="" if spec.weights else str(path), weights=str(path) if spec.weights else None)
    frequencies = weighting.frequencies
    beside = None if frequencies is None else [str(frequencies), stat_token(frequencies)]
    known = open_card(spec, [], lambda spec: _describe(spec, path, weighting), beside)
    table = open_word_table(path)
    if table.facts["ngrams"]:
        check_gensim(path)
    return WordVectors(known.card, table, weighting.open_weights(table), bool(spec.model_args.get("unit_words")))


def list_encoders() -> list[dict[str, Any]]:
    """Return nothing: word vectors are named by their file."""
    return []


def _path(spec: EncoderSpec) -> Path:
    path = Path(spec.weights or spec.name).expanduser().absolute()
    if not path.is_file():
        raise EncoderError(f"{spec.ref}: there is no file {path}", "Write word2vec:FILE, such as word2vec:vectors.bin")
    if spec.layer or spec.prompt or spec.truncate_dim:
        raise UsageError(f"{spec.ref}: word vectors have no layer, prompt or truncate_dim", "Leave them out")
    if unknown := [name for name in spec.model_args if name not in MODEL_ARGS]:
        raise UsageError(f"{spec.ref}: unknown model_args {unknown[0]!r}", f"Known: {', '.join(MODEL_ARGS)}")
    return path


def _weighting(spec: EncoderSpec, path: Path) -> Weighting:
    given = spec.model_args
    frequencies = path.parent / Path(given["frequencies"]).expanduser() if given.get("frequencies") else None
    if frequencies is not None and not frequencies.is_file():
        raise EncoderError(f"frequencies {frequencies} of {spec.ref} do not exist", "Name a file beside the vectors")
    options = {name: float(given[name]) for name in ("a", "total") if given.get(name) is not None}
    return Weighting(spec.pooling or "mean", frequencies=frequencies, **options)


def _describe(spec: EncoderSpec, path: Path, weighting: Weighting) -> KnownCard:
    table = open_word_table(path)
    unit_words = bool(spec.model_args.get("unit_words"))
    identity = {
        "architecture": "word vectors",
        "vectors": table.facts["digest"],
        "words_rule": WORDS_RULE,
        "unit_words": unit_words,
        **weighting.identity(table),
    }
    card = EncoderCard(
        ref=spec.ref,
        family=spec.family,
        modality="text",
        dim=table.facts["dim"],
        fingerprint=fingerprint(identity),
        identity=identity,
        spec=spec.to_dict(),
        normalized=False,
        flops=2.0 * table.facts["dim"],
        parameters=int(table.vectors.size),
        input={name: table.facts[name] for name in ("format", "words", "ngrams")},
        weights_from=str(path),
        direct=True,
    )
    return KnownCard(card, path)
