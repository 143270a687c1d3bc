"""Files on web servers as sources, read by ranges: fetched as politely as the URLs of a corpus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from embedx.corpora.errors import CHANGED, ReadError, changed
from embedx.corpora.http import Fetcher

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class WebFiles:
    """The files of web servers. Thread-safe.

    Args:
        fetcher: fetches them.
        headers: sent along, such as `Authorization`.
    """

    def __init__(self, fetcher: Fetcher, headers: Mapping[str, str]) -> None:
        self._fetcher = fetcher
        self._headers = dict(headers)

    def info(self, url: str) -> dict[str, Any]:
        """Return size and tags of a file.

        Raises:
            ReadError: it cannot be had, or the server knows no ranges.
        """
        # Not HEAD: many servers refuse it, and a signed URL is signed for GET alone.
        try:
            found = self._fetcher.ask(url, {**self._headers, "Range": "bytes=0-0"}, 1).headers
        except ReadError as error:
            if error.error != CHANGED:
                raise
            return {"type": "file", "size": 0}  # there is no first byte
        said = _RANGE.match(found.get("Content-Range", ""))
        if said is None:
            raise ReadError(f"{url}: the server does not know ranges: download the file first", "NoRanges", False)
        marks = {name: found[name] for name in ("ETag", "Content-MD5", "Last-Modified") if found.get(name)}
        return {"type": "file", "size": int(said[3]), **marks}

    def read_range(self, url: str, start: int, stop: int, tag: str) -> bytes:
        """Return some bytes of a file.

        Args:
            url: of it.
            start: first byte.
            stop: behind the last byte.
            tag: its ETag; empty if the server gives none.

        Raises:
            ReadError: they cannot be had, or the file has another tag by now.
        """
        wanted = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
        if tag and not tag.startswith("W/"):  # a weak tag never matches
            wanted["If-Match"] = tag
        answer = self._fetcher.ask(url, wanted, stop - start)
        if tag and answer.headers.get("ETag", tag) != tag:  # a server need not know If-Match
            raise changed(url)
        return answer.data
