"""Compressed tables read as the plain one does, and bombs take no memory."""

import bz2
import gzip
import lzma
import subprocess
import sys

import pyarrow as pa
import pytest

from embedx.core.errors import CorpusError
from embedx.core.specs import CorpusSpec
from embedx.corpora.listing import open_corpus
from tests.conftest import ROOT
from tests.corpora.test_hostile_tables import UNPACK

TEXTS = [f"line {number} é" for number in range(5000)]


def zst(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}


def texts_of(path):
    corpus = open_corpus(CorpusSpec((str(path),)))
    return [row["content"] for batch in corpus.iterate_batches() for row in batch.to_pylist()]


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("parts", [1, 3])
def test_packed_lines_are_the_lines(tmp_path, suffix, parts):
    """Also of several files one after the other, which all four formats allow."""
    data = "".join(text + "\n" for text in TEXTS).encode()
    step = -(-len(data) // parts)
    packed = [PACKERS[suffix](data[start : start + step]) for start in range(0, len(data), step)]
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(b"".join(packed))
    assert texts_of(path) == TEXTS


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("how", ["cut", "noise", "empty"])
def test_damaged_packed_files_are_named(tmp_path, suffix, how):
    packed = PACKERS[suffix]("".join(text + "\n" for text in TEXTS).encode())
    data = {"cut": packed[: len(packed) // 2], "noise": b"noise" * 100, "empty": b""}[how]
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=rf"a\.jsonl\.{suffix}"):
        texts_of(path)


@pytest.mark.parametrize("suffix", ["bz2", "xz", "zst"])
def test_bombs_take_no_memory(tmp_path, suffix):
    """A hundred megabytes without a line break; gz has its own test."""
    path = tmp_path / f"bomb.txt.{suffix}"
    path.write_bytes(PACKERS[suffix](b"x" * 100_000_000) if suffix != "xz" else lzma.compress(b"x" * 10**8, preset=0))
    done = subprocess.run([sys.executable, "-c", UNPACK, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, _, message = done.stdout.partition(" ")
    assert int(taken) < 150 * 1024 and ":1 is longer than" in message


def test_an_xz_that_wants_gigabytes_of_memory_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    data = bytearray(lzma.compress(b"x\n" * 100, filters=filters))
    # The block header says the size of the dictionary in one byte; its checksum is made good again.
    import zlib

    start = 12
    size = (data[start] + 1) * 4
    place = data.index(b"\x21\x01", start) + 2
    data[place] = 39  # 3 GiB
    data[start + size - 4 : start + size] = zlib.crc32(data[start : start + size - 4]).to_bytes(4, "little")
    path = tmp_path / "a.txt.xz"
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"a\.txt\.xz cannot be read \(Memory usage limit"):
        texts_of(path)
