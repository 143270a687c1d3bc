"""Files of word vectors, read word by word: word2vec's binary and text formats, GloVe's, fastText's."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from embedx.core.errors import EncoderError

FASTTEXT_MAGIC = (793_712_314).to_bytes(4, "little")
"""The first bytes of a fastText model with its sub-words."""

CHUNK_BYTES = 2**20

MAX_DIM = 65_536


@dataclass
class WordFile:
    """A file of word vectors that is being read.

    Attributes:
        format: for people and the card.
        dim: length of a vector.
        words: (word as UTF-8, (dim,) float32), in the file's order; can be read once.
        counts: how often each word stood in the text that the vectors were trained on; None where the file is silent.
        ngrams: (buckets, dim) float32 vectors of sub-words; None where there are none.
        ngram_sizes: shortest and longest sub-word in characters.
    """

    format: str
    dim: int
    words: Iterator[tuple[bytes, np.ndarray]]
    counts: np.ndarray | None = None
    ngrams: np.ndarray | None = None
    ngram_sizes: tuple[int, int] = field(default=(0, 0))


@contextmanager
def open_word_file(path: Path) -> Iterator[WordFile]:
    """Open a file of word vectors; its first bytes and its name say which format it has.

    Raises:
        EncoderError: a pickle, or no file of word vectors. Reading the words raises it where the file is damaged.
    """
    if path.suffix == ".kv" or _begins_with(path, b"\x80"):
        raise EncoderError(
            f"{path} is a Python pickle, which can run code when it is read; embedx never reads one",
            "Export it in gensim: KeyedVectors.load(FILE).save_word2vec_format('vectors.bin', binary=True), or "
            "gensim.models.fasttext.save_facebook_model(model, 'vectors.bin') for sub-words",
        )
    if _begins_with(path, FASTTEXT_MAGIC):
        yield _read_fasttext(path)
        return
    with _open_bytes(path) as file:
        try:
            yield _read_word2vec(path, file)
        except (ValueError, EOFError, OSError) as error:
            raise EncoderError(
                f"{path} is not a whole file of word vectors ({error})",
                "It takes word2vec's .bin, and text with a word and its numbers on each line (word2vec, GloVe, .vec)",
            ) from error


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


@contextmanager
def _open_bytes(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix == ".gz":
        with gzip.open(path) as packed:
            yield io.BufferedReader(packed, CHUNK_BYTES)  # type: ignore[type-var]
    else:
        with path.open("rb", buffering=CHUNK_BYTES) as file:
            yield file


def _read_word2vec(path: Path, file: IO[bytes]) -> WordFile:
    first = file.readline(CHUNK_BYTES)
    header = first.split()
    is_binary = ".bin" in path.suffixes
    if len(header) == 2 and all(part.isdigit() for part in header):
        count, dim = int(header[0]), int(header[1])
        if not count or not 0 < dim <= MAX_DIM:
            raise ValueError(f"its first line promises {count} words of {dim} numbers")
        if is_binary:
            return WordFile("word2vec, binary", dim, _iterate_binary(file, count, dim))
        return WordFile("word2vec, text", dim, _iterate_text(file, dim, line=2, promised=count))
    if is_binary:
        raise ValueError("a word2vec .bin begins with the number of its words and of their values")
    dim = len(header) - 1
    if not 0 < dim <= MAX_DIM:
        raise ValueError("its first line is neither a header nor a word with its numbers")
    return WordFile("GloVe, text", dim, _iterate_text(file, dim, line=1, pending=first))


def _iterate_binary(file: IO[bytes], count: int, dim: int) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yield the words of word2vec's binary format: the word, a space, its float32 values, maybe a line break."""
    size = 4 * dim
    buffer, place = b"", 0
    for number in range(count):
        while (space := buffer.find(b" ", place)) < 0 or space + 1 + size > len(buffer):
            more = file.read(CHUNK_BYTES)
            if not more or len(buffer) - place > CHUNK_BYTES + size:
                raise EOFError(f"it ends after {number:,} of {count:,} words")
            buffer, place = buffer[place:] + more, 0
        word = buffer[place:space].lstrip(b"\n")
        yield word, np.frombuffer(buffer, dtype="<f4", count=dim, offset=space + 1)
        place = space + 1 + size


def _iterate_text(
    file: IO[bytes], dim: int, line: int, promised: int | None = None, pending: bytes = b""
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yield the words of lines `word number number ...`; a word may hold spaces, as some of GloVe's do."""
    found = 0
    for number, text in enumerate([pending] if pending else [], line):
        yield _parse_line(text, dim, number)
        found, line = found + 1, number + 1
    for number, text in enumerate(file, line):
        if text.strip():
            yield _parse_line(text, dim, number)
            found += 1
    if promised is not None and found != promised:
        raise EOFError(f"it has {found:,} words, its first line promises {promised:,}")


def _parse_line(text: bytes, dim: int, number: int) -> tuple[bytes, np.ndarray]:
    word, *values = text.rstrip().rsplit(b" ", dim)
    if len(values) != dim:
        raise ValueError(f"line {number} has {len(values)} numbers instead of {dim}")
    try:
        return word, np.array(values, dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def _read_fasttext(path: Path) -> WordFile:
    """Read a fastText model through gensim, which knows how it joins words and sub-words."""
    check_gensim(path)
    from gensim.models.fasttext import load_facebook_vectors

    try:
        model = load_facebook_vectors(str(path))
    except Exception as error:
        # The reader raises anything on a damaged file; supervised models have no vectors of this kind.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EncoderError(
            f"{path} is no fastText model that can be read ({reason})", "Fetch it again; supervised models are not read"
        ) from error
    words = ((word.encode(), vector) for word, vector in zip(model.index_to_key, model.vectors))
    counts = np.array([model.get_vecattr(word, "count") for word in model.index_to_key], dtype=np.int64)
    ngrams = model.vectors_ngrams if model.bucket else None
    return WordFile("fastText", model.vector_size, words, counts, ngrams, (model.min_n, model.max_n))


def check_gensim(path: Path) -> None:
    """Raise where gensim, which reads fastText models, is not installed.

    Raises:
        EncoderError: it is missing.
    """
    try:
        import gensim  # noqa: F401
    except ImportError:
        raise EncoderError(
            f"{path} is a fastText model with sub-words, which needs the package gensim",
            "pip install 'embedx[wordvectors]', or use the model's .vec file without sub-words",
        ) from None
