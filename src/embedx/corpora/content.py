"""Reading an item's content: its bytes, their digest, and the decoded item or why there is none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import xxhash

from embedx.core.contracts import Broken
from embedx.corpora.decode import MAX_FILE_BYTES, decode_image
from embedx.corpora.values import printable


@dataclass(frozen=True)
class Content:
    """An item's content.

    Attributes:
        item: a decoded image, or a Broken.
        digest: xxh3-128 (hex) of the bytes; empty if they could not be read.
        size_bytes: of the content.
    """

    item: Any
    digest: str
    size_bytes: int


def read_image(path: str) -> Content:
    """Read and decode an image file; failures are values."""
    try:
        if refused := _refuse(os.stat(path)):
            return Content(Broken("read", refused[0], f"{path} {refused[1]}"), "", 0)
        data = Path(path).read_bytes()
    except OSError as error:
        # A file system that hiccups may not the next time: worth another try.
        return Content(Broken("read", type(error).__name__, f"{path}: {error.strerror or error}", True), "", 0)
    except ValueError as error:
        return Content(Broken("read", "ValueError", f"{printable(path)!r} can be no path: {error}"), "", 0)
    return Content(decode_image(data, path), xxhash.xxh3_128_hexdigest(data), len(data))


def digest_file(path: str) -> str | None:
    """Return the xxh3-128 (hex) of a file, or None if it cannot be read."""
    try:
        if _refuse(os.stat(path)):
            return None
        return xxhash.xxh3_128_hexdigest(Path(path).read_bytes())
    except (OSError, ValueError):
        return None


def _refuse(stat: os.stat_result) -> tuple[str, str] | None:
    """Return (error, reason) for what must not even be read: it might never end, or not fit the memory."""
    if not S_ISREG(stat.st_mode):
        return "NotAFile", "is no file but a folder, pipe, socket or device"
    if stat.st_size > MAX_FILE_BYTES:
        return "FileTooLarge", f"has {stat.st_size:,} bytes; more than {MAX_FILE_BYTES:,} are refused unread"
    return None
