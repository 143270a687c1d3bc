"""Sources that other packages add: `NAME:PLACE`, found by the entry point `embedx.sources`; see docs/plugins.md."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from embedx.core.errors import CorpusError, EmbedxError
from embedx.core.sources import COLUMN_TYPES, PluginSource
from embedx.core.specs import NO_ACCESS, Access
from embedx.corpora.decode import MAX_FILE_BYTES
from embedx.corpora.errors import ReadError
from embedx.corpora.locators import REMOTE
from embedx.corpora.tables import FORMATS, Piece, cut_pieces

ENTRY_POINTS = "embedx.sources"
"""Packages add sources under this entry point: name = what stands before the colon, value = module."""

TAKEN = REMOTE | {*FORMATS.values(), "file", "plugin", "sql", "tar"}
"""Names that mean something already, in a source or in a plan."""


@functools.cache
def plugin_modules() -> dict[str, str]:
    """Return name -> module of the installed plug-ins."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS) if point.name not in TAKEN}


def is_plugin_place(place: str) -> bool:
    """Whether a source names an installed plug-in; a path that exists is that path."""
    name, colon, rest = place.partition(":")
    return bool(colon and rest) and name in plugin_modules() and not os.path.exists(place)


@dataclass(frozen=True)
class PluginTable:
    """The rows of a plug-in's source, with the interface of `tables.Table`. Open it with `open_plugin`.

    Attributes:
        path: NAME:PLACE, as it opens anywhere.
        format: the plug-in's name.
        source: what its module opened.
        access: whose options are in no message.
        blank_lines: always 0.
    """

    path: str
    format: str
    source: PluginSource
    access: Access = NO_ACCESS
    blank_lines: int = 0

    def columns(self) -> dict[str, str]:
        """Return column -> type.

        Raises:
            CorpusError: the plug-in fails, or knows other types than `COLUMN_TYPES`.
        """
        with _naming(self.path, self.access):
            columns = dict(self.source.columns())
        for name, kind in columns.items():
            if not isinstance(name, str) or not name or kind not in COLUMN_TYPES:
                raise CorpusError(
                    f"{self.path}: its plug-in gives the column {name!r} the type {kind!r}",
                    f"Types are {', '.join(COLUMN_TYPES)}: mend the package that adds {self.format}:",
                )
        return columns

    def iterate_pieces(self, columns: Sequence[str] | None = None) -> Iterator[Piece]:
        """Yield the rows in the source's order.

        Raises:
            CorpusError: the plug-in fails.
        """
        wanted = list(columns if columns is not None else self.columns())
        with _naming(self.path, self.access):
            yield from cut_pieces(self._rows(wanted))

    def _rows(self, columns: list[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
        for number, row in enumerate(self.source.iterate_rows(columns)):
            values = {name: row.get(name) for name in columns}
            yield number, sum(len(value) for value in values.values() if isinstance(value, str)), values

    def read(self, key: str) -> bytes:
        """Return the bytes of an item, on a worker.

        Raises:
            ReadError: there are none.
        """
        try:
            data = self.source.read(key)
        except Exception as error:  # a plug-in raises anything; it is one item's failure
            said = self.access.hide(" ".join(str(error).split())[:300])
            is_gone = not isinstance(error, OSError) or isinstance(error, FileNotFoundError)
            raise ReadError(f"{self.path}, {key!r}: {said}", type(error).__name__, not is_gone) from None
        if not isinstance(data, bytes):
            raise ReadError(
                f"{self.path}, {key!r}: its plug-in gives {type(data).__name__}, not bytes", "NoBytes", False
            )
        if len(data) > MAX_FILE_BYTES:
            raise ReadError(f"{self.path}, {key!r} has {len(data):,} bytes, which is refused", "FileTooLarge", False)
        return data


def open_plugin(place: str, access: Access = NO_ACCESS) -> PluginTable:
    """Open `NAME:PLACE`.

    Raises:
        CorpusError: the plug-in is not installed here, breaks the contract, or cannot open the place.
    """
    name, _, rest = place.partition(":")
    module_name = plugin_modules().get(name)
    if module_name is None:
        raise CorpusError(f"{place} needs the source plug-in {name!r}", "Install its package here, and on every worker")
    with _naming(place, access):
        opened = importlib.import_module(module_name).open_source(rest, dict(access.options))
        missing = [part for part in ("place", "columns", "iterate_rows") if not hasattr(opened, part)]
        if missing:
            raise AttributeError(f"what open_source of {module_name} returns has no {missing[0]}; see docs/plugins.md")
    return PluginTable(f"{name}:{opened.place}", name, opened, access)


@contextmanager
def _naming(place: str, access: Access) -> Iterator[None]:
    """Name the source of whatever a plug-in raises."""
    try:
        yield
    except EmbedxError:
        raise
    except Exception as error:
        said = access.hide(" ".join(str(error).split())[:300])
        name = place.partition(":")[0]
        raise CorpusError(
            f"{place} cannot be read ({type(error).__name__}: {said})",
            f"Check the source; if it is whole, mend the package that adds {name}:",
        ) from error
