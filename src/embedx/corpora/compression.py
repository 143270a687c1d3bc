"""Compressed text files: .gz, .bz2, .xz and .zst, unpacked as a stream in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import BinaryIO

CHUNK_BYTES = 2**16

XZ_MEMORY_BYTES = 2**28
"""A file may ask for a dictionary of gigabytes; `xz -9` asks for 65 MiB. (zstd's reader stops at 128 MiB itself.)"""


def open_unpacked(raw: BinaryIO, name: str) -> BinaryIO:
    """Return a file unpacked as its name says; of one that is not compressed, the file itself."""
    for suffix, unpack in UNPACKERS.items():
        if name.lower().endswith(suffix):
            return unpack(raw)
    return raw


def _gz(raw: BinaryIO) -> BinaryIO:
    return gzip.open(raw)  # type: ignore[return-value]


def _bz2(raw: BinaryIO) -> BinaryIO:
    return bz2.open(raw)  # type: ignore[return-value]


def _xz(raw: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_XzReader(raw), CHUNK_BYTES)  # type: ignore[return-value]


def _zst(raw: BinaryIO) -> BinaryIO:
    import pyarrow as pa

    stream: BinaryIO = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
    return stream


UNPACKERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": _gz,
    ".bz2": _bz2,
    ".xz": _xz,
    ".zst": _zst,
    ".zstd": _zst,
}
"""Suffix -> how it is unpacked."""


class _XzReader(io.RawIOBase):
    """xz with a limit of memory, which lzma.open has not. Streams may follow each other, as `xz` allows."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._decoder.eof:
                self._rest = (self._decoder.unused_data or self._raw.read(CHUNK_BYTES)).lstrip(b"\0")
                if not self._rest:
                    following = self._raw.read(CHUNK_BYTES)
                    if not following:
                        return 0
                    self._rest = following
                self._decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)
            data = b""
            if self._decoder.needs_input and not self._rest:
                data = self._raw.read(CHUNK_BYTES)
                if not data:
                    raise EOFError("the file ends before its compressed data")
            unpacked = self._decoder.decompress(data or self._rest, max_length=len(buffer))
            self._rest = b""
            if unpacked:
                buffer[: len(unpacked)] = unpacked
                return len(unpacked)

    def close(self) -> None:
        self._raw.close()
        super().close()
