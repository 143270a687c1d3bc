"""A remote file that is read in pieces: more at a time, the more of it turns out to be wanted."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO

FIRST_BYTES = 2**17
"""Fetched around a place that is looked at once, such as the header of a large member."""

MOST_BYTES = 2**23
"""Fetched at a time of what is read on and on: one request then costs little beside its bytes."""

SKIPPED_BYTES = 2**19
"""A gap that is fetched rather than skipped: a request takes about as long as so many bytes."""


def open_ranges(read: Callable[[int, int], bytes], size_bytes: int) -> BinaryIO:
    """Open a file of which ranges can be read.

    Args:
        read: returns the bytes at (offset, length).
        size_bytes: of the file.
    """
    file: BinaryIO = io.BufferedReader(RangeFile(read, size_bytes))  # type: ignore[assignment]
    return file


class RangeFile(io.RawIOBase):
    """A file of known size, read by ranges through one window; see `open_ranges`. Not thread-safe.

    The window doubles while reading goes on where the last one ended, or a little behind, and begins anew after a jump.
    """

    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._read = read
        self._size = size_bytes
        self._position = 0
        self._start = 0
        self._window = b""
        self._next_bytes = FIRST_BYTES

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is fetched."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"a negative position {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as the file goes; returns how many bytes."""
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        place = self._position - self._start
        if not 0 <= place < len(self._window):
            self._fetch(wanted)
            place = 0
        piece = memoryview(self._window)[place : place + wanted]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fetch(self, wanted: int) -> None:
        gap = self._position - (self._start + len(self._window))
        goes_on = bool(self._window) and 0 <= gap <= SKIPPED_BYTES
        self._next_bytes = min(MOST_BYTES, 2 * self._next_bytes) if goes_on else FIRST_BYTES
        length = min(max(wanted, self._next_bytes), self._size - self._position)
        self._window = b""  # not two at a time
        self._window = self._read(self._position, length)
        self._start = self._position
