"""Prefixes of object stores: listed once, in flat memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice

from embedx.corpora.storage import FileInfo

REMEMBERED = 5_000
"""Files of a prefix that are kept in memory; to see a larger one twice it is listed twice."""


class Prefix:
    """The files below a remote prefix.

    Its beginning is listed at once and remembered. The first to go through the files takes them from there on, and only
    of a prefix that is larger than what is remembered, the next one lists it again.

    Args:
        find: lists the files.
    """

    def __init__(self, find: Callable[[], Iterator[FileInfo]]) -> None:
        self._find = find
        found = find()
        self.head = list(islice(found, REMEMBERED))
        """The first files."""
        following = next(found, None)
        self._is_whole = following is None
        self._rest: Iterator[FileInfo] | None = None if following is None else chain([following], found)

    def __iter__(self) -> Iterator[FileInfo]:
        rest, self._rest = self._rest, None
        if self._is_whole:
            return iter(self.head)
        return chain(self.head, rest) if rest is not None else self._find()
