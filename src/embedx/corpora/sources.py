"""Sources: what each entry of a corpus is, and what it is called."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from embedx.core.errors import CorpusError, UsageError
from embedx.core.specs import NO_ACCESS, Access, CorpusSpec
from embedx.corpora import tars
from embedx.corpora.expansion import Place, expand_sources
from embedx.corpora.locators import is_remote, url_path
from embedx.corpora.plugins import PluginTable, is_plugin_place, open_plugin
from embedx.corpora.prefixes import Prefix
from embedx.corpora.sql import SqlTable
from embedx.corpora.storage import shared_storage
from embedx.corpora.tables import COLUMNAR, Table, table_format

OPENING_THREADS = 8
"""Sources that are opened or listed at a time; of remote ones each waits for the network."""


@dataclass(frozen=True)
class Source:
    """One entry of the corpus.

    Attributes:
        label: its name: the alias given, else the last part of its path.
        path: where it is: a path, a URL, `--sql`, or NAME:PLACE of a plug-in.
        kind: folder (of images), tar, table, sql or plugin.
        table: how its rows are read; None for a folder and a tar.
        columns: of the table, column -> type.
        access: how a remote one is reached.
        files: of a remote folder, what is in it.
        ignored: files beside it that are no part of the corpus: reason -> count.
    """

    label: str
    path: str
    kind: str
    table: Table | SqlTable | PluginTable | None = None
    columns: dict[str, str] = field(default_factory=dict)
    access: Access = NO_ACCESS
    files: Prefix | None = None
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def is_typed(self) -> bool:
        """Whether its columns have types; those of other tables hold strings."""
        return self.kind in ("sql", "plugin") or (self.table is not None and self.table.format in COLUMNAR)

    @property
    def is_image_archive(self) -> bool:
        """Whether it holds images under names of their own: a folder or a tar."""
        return self.table is None

    @property
    def is_url_list(self) -> bool:
        """Whether, as images, it is a plain list of URLs, which are then its ids."""
        return self.table is not None and self.table.format == "txt"

    def known_columns(self) -> dict[str, str]:
        """Return the columns of a table, or those that the first samples of a tar have."""
        return _tar_columns(self.path, self.access) if self.kind == "tar" else self.columns


@functools.lru_cache(maxsize=4096)
def _tar_columns(path: str, access: Access) -> dict[str, str]:
    with shared_storage(access).open(path) as file:
        return tars.head_columns(file, path)


def open_sources(spec: CorpusSpec) -> tuple[Source, ...]:
    """Understand the sources of a corpus; of tables and tars, only the beginning is read.

    Raises:
        CorpusError: one does not exist, or is of no known type.
        UsageError: two have one name.
    """
    if spec.sql is not None:
        table = SqlTable(spec.sql, spec.sources)
        return (Source("sql", table.path, "sql", table, table.columns()),)
    storage = shared_storage(spec.access)
    places = list(expand_sources(spec.sources, storage))
    check_labels(places)
    with ThreadPoolExecutor(OPENING_THREADS) as pool:
        return tuple(pool.map(lambda place: open_source(place, spec.access), places))


def open_source(place: Place, access: Access) -> Source:
    """Understand one place.

    Raises:
        CorpusError: it is of no known type, or cannot be read.
    """
    path, label = place.path, place.label
    if is_plugin_place(path):
        plugin = open_plugin(path, access)
        return Source(label, plugin.path, "plugin", plugin, plugin.columns(), access)
    if place.files is not None or os.path.isdir(path):
        return Source(label, path, "folder", access=access, files=place.files, ignored=place.ignored)
    if not is_remote(path) and not os.path.isfile(path):
        raise CorpusError(
            f"source {path} is no file but a pipe, socket or device", "Write it to a file first: it is read twice"
        )
    if url_path(path).lower().endswith(".tar"):
        return Source(label, path, "tar", access=access, ignored=place.ignored)
    kind = table_format(url_path(path))
    if kind is None:
        raise CorpusError(f"source {path} is of no known type", _remedy(path))
    table = Table(path, kind, tolerant=True, access=access)
    return Source(label, path, "table", table, table.columns(), access, ignored=place.ignored)


def _remedy(path: str) -> str:
    if url_path(path).lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        return "Members of a tar are read by offset: unpack it to a plain .tar"
    return (
        "Sources are folders of images, .tar files, and .jsonl, .csv, .tsv, .txt (also .gz, .zst, .bz2, .xz), "
        ".parquet or .arrow tables"
    )


def check_labels(sources: Sequence[Place]) -> None:
    """Raise a UsageError if two sources have one name."""
    twice = [label for label, count in Counter(source.label for source in sources).items() if count > 1]
    if twice:
        paths = " and ".join(source.path for source in sources if source.label == twice[0])
        raise UsageError(f"two sources are called {twice[0]!r}: {paths}", f"Name them, e.g. other={sources[-1].path}")
