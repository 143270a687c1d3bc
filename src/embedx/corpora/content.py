"""Reading an item's content: its bytes, their digest, and the decoded item or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from embedx.core.contracts import Broken
from embedx.corpora.decode import decode_image


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
        data = Path(path).read_bytes()
    except OSError as error:
        # A file system that hiccups may not the next time: worth another try.
        return Content(Broken("read", type(error).__name__, f"{path}: {error.strerror or error}", True), "", 0)
    return Content(decode_image(data, path), xxhash.xxh3_128_hexdigest(data), len(data))


def digest_file(path: str) -> str | None:
    """Return the xxh3-128 (hex) of a file, or None if it cannot be read."""
    try:
        return xxhash.xxh3_128_hexdigest(Path(path).read_bytes())
    except OSError:
        return None
