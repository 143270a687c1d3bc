"""Sources: what each entry of a corpus is, and what it is called."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from embedx.core.errors import CorpusError, UsageError
from embedx.corpora.tables import Table, table_format
from embedx.corpora.values import printable, unicode_problem


@dataclass(frozen=True)
class Source:
    """One entry of the corpus: a folder of images, or a table.

    Attributes:
        label: its name: the alias given, else the last part of its path.
        path: where it is.
        table: how it is read; None for a folder.
        columns: of the table, column -> type.
    """

    label: str
    path: Path
    table: Table | None = None
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def is_parquet(self) -> bool:
        """Whether its columns have types; those of other tables hold strings."""
        return self.table is not None and self.table.format == "parquet"


def open_source(text: str) -> Source:
    """Understand one entry of the command line, `PATH` or `alias=PATH`; of a table, only the beginning is read.

    Raises:
        CorpusError: it does not exist, or is of no known type.
    """
    if not text or "\0" in text:
        raise CorpusError(f"the source {text!r} is no path", "Name a folder of images or a table")
    label, path = _label_and_path(text)
    if wrong := unicode_problem("its name", os.path.abspath(path)):
        raise CorpusError(f"source {printable(str(path))} cannot be recorded: {wrong}", "Rename it, or a folder above")
    if not os.path.exists(path):  # not Path.exists, which raises on names that are too long
        raise CorpusError(f"source {path} does not exist", "Check the path")
    if path.is_dir():
        return Source(label, path)
    kind = table_format(path)
    if kind is None:
        raise CorpusError(
            f"source {path} is of no known type",
            "Sources are folders of images and .jsonl, .csv, .tsv, .txt (also .gz) or .parquet files",
        )
    if not path.is_file():
        raise CorpusError(
            f"source {path} is no file but a pipe, socket or device", "Write it to a file first: it is read twice"
        )
    table = Table(path, kind, tolerant=True)
    return Source(label, path, table, table.columns())


def _label_and_path(text: str) -> tuple[str, Path]:
    alias, _, rest = text.partition("=")
    if alias and rest and "/" not in alias and not os.path.exists(text):
        return alias, Path(rest).expanduser()
    path = Path(text).expanduser()
    return path.resolve().name or str(path), path


def check_labels(sources: tuple[Source, ...]) -> None:
    """Raise a UsageError if two sources have one name."""
    twice = [label for label, count in Counter(source.label for source in sources).items() if count > 1]
    if twice:
        paths = " and ".join(str(source.path) for source in sources if source.label == twice[0])
        raise UsageError(f"two sources are called {twice[0]!r}: {paths}", f"Name them, e.g. other={sources[-1].path}")
