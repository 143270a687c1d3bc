"""The contract of source plug-ins: what gives the rows of a corpus that embedx does not read by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

COLUMN_TYPES = ("string", "long", "double", "boolean", "image")
"""What a plug-in's column may hold; an image is a `Stored`."""


@dataclass(frozen=True)
class Stored:
    """An image whose bytes stay where they are until a worker reads them: the value of a column of type `image`.

    Attributes:
        key: what `PluginSource.read` finds the bytes by.
        version: another one whenever the bytes may be others: a checksum, an ETag, size and time.
    """

    key: str
    version: str


class PluginSource(Protocol):
    """An opened source of a plug-in; its module's `open_source(place, options)` returns one."""

    place: str
    """What `open_source` opens it by in any process and folder, on any worker: an absolute path, a URL."""

    def columns(self) -> dict[str, str]:
        """Return column -> type, one of `COLUMN_TYPES`; `item_id` or `id` holds ids, `text` is what is embedded."""

    def iterate_rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows, column -> value, in the same order each time; more columns than asked for do no harm."""

    def read(self, key: str) -> bytes:
        """Return the bytes of a `Stored`; needed where there are images. Called on workers, by several threads.

        Raises:
            OSError: it cannot be read now; another try may help.
            LookupError: it is gone.
        """
