"""Tables as sources: .jsonl, .csv, .tsv, .txt (also compressed), .parquet and .arrow, read row by row in pieces."""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from embedx.core.errors import CorpusError
from embedx.core.specs import NO_ACCESS, SHARD_MAX_BYTES, Access
from embedx.corpora.columnar import PIECE_BYTES, PIECE_ROWS, ColumnarFile, batch_rows
from embedx.corpora.compression import UNPACKERS, open_unpacked
from embedx.corpora.errors import ReadError
from embedx.corpora.locators import url_path
from embedx.corpora.storage import shared_storage
from embedx.corpora.values import printable, unicode_problem

MAX_LINE_CHARACTERS = SHARD_MAX_BYTES
"""Longer lines are refused before they fill the memory, as a small .gz could: no shard could hold such a text."""

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
}

COLUMNAR = ("parquet", "arrow")
"""Formats whose columns have types."""

csv.field_size_limit(MAX_LINE_CHARACTERS)

_NumberedRow = tuple[int, int, dict[str, Any]]
"""A row with the number of its line and how many characters it has."""

_UTF_16_OR_32 = re.compile("\udcff\udcfe|\udcfe\udcff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0]|[^\0]\0\0\0|\0\0\0[^\0]")
"""How a file begins that is no UTF-8: with a byte order mark, or ASCII characters that take two or four bytes."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a table.

    Attributes:
        start: number of the first row, from 0, blank lines not counted.
        make_rows: makes the values of the rows.
        lines: the line each row began on, from 1; for Parquet the row number.
        batch: the same of a columnar table; None of others, and where it cannot be had.
    """

    start: int
    make_rows: Callable[[], list[dict[str, Any]]]
    lines: Sequence[int]
    batch: pa.RecordBatch | None = None

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The values of each row, column -> value."""
        return self.make_rows()


@dataclass
class Table:
    """One table file.

    Attributes:
        path: the file, or its URL.
        format: jsonl, csv, tsv, txt, parquet or arrow.
        tolerant: give values that are not UTF-8 with their bytes as lone surrogates (`surrogateescape`), for the
            caller to judge item by item; else the first one is an error.
        blank_lines: lines without content met in the latest iteration.
        access: how a remote file is reached.
    """

    path: Path | str
    format: str
    tolerant: bool = False
    blank_lines: int = 0
    access: Access = NO_ACCESS

    def columns(self) -> dict[str, str]:
        """Return column -> type (see `columnar.column_type`), from the file's beginning.

        Raises:
            CorpusError: the file is empty or broken.
        """
        if self.format in COLUMNAR:
            file = self.open_columnar()
            self._check_names(file.schema.names)
            return file.columns()
        if self.format == "txt":
            return {"text": "string"}
        first = next(self.iterate_pieces(), None)
        if first is None:
            raise CorpusError(f"{self.path} has no rows", "Remove it from the sources, or fill it")
        # Only Parquet says its types. A JSON key may hold a number in one row and a string in another, so what is
        # carried from text formats is carried as a string.
        names: dict[str, str] = {}
        for row in first.rows[:1000]:
            for name, value in row.items():
                if value is not None and names.get(name, "other") == "other":
                    names[name] = "string" if isinstance(value, str) else "other"
                names.setdefault(name, "other")
        self._check_names(list(names))
        return names

    def _check_names(self, names: list[str]) -> None:
        if any(not name for name in names) or len(set(names)) != len(names):
            raise CorpusError(f"{self.path} has empty or repeated column names", "Give every column a name of its own")
        for name in names:
            if wrong := unicode_problem(f"column {printable(name)!r}", name):
                raise CorpusError(f"{self.path}: the name of {wrong}", "Rename the column")

    def iterate_pieces(self, columns: Sequence[str] | None = None) -> Iterator[Piece]:
        """Yield the rows in order.

        Args:
            columns: the ones that are needed; a Parquet file is spared reading the others.

        Raises:
            CorpusError: a row is broken; the message names file and line.
        """
        self.blank_lines = 0
        readers: dict[str, Callable[[], Iterator[_NumberedRow]]] = {
            "jsonl": self._iterate_jsonl,
            "csv": lambda: self._iterate_csv(","),
            "tsv": lambda: self._iterate_csv("\t"),
            "txt": self._iterate_txt,
        }
        with _naming(self.path):
            if self.format in COLUMNAR:
                yield from self._iterate_columnar(columns)
            else:
                yield from cut_pieces(readers[self.format]())

    def _lines(self, newline: str) -> Iterator[tuple[int, str]]:
        """Yield (number, line with its end), with bytes that are not UTF-8 as lone surrogates if tolerant."""
        with (
            shared_storage(self.access).open(str(self.path)) as packed,
            open_unpacked(packed, url_path(str(self.path))) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline=newline) as file,
        ):
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_CHARACTERS), ""), 1):
                self._check_line(number, line)
                yield number, line

    def _check_line(self, number: int, line: str) -> None:
        if number == 1 and _UTF_16_OR_32.match(line):
            raise CorpusError(f"{self.path} is not UTF-8 but UTF-16 or UTF-32", "Convert it: iconv -f utf-16 -t utf-8")
        if len(line) >= MAX_LINE_CHARACTERS:
            raise CorpusError(
                f"{self.path}:{number} is longer than {MAX_LINE_CHARACTERS:,} characters",
                "Check that it has line breaks; cut longer texts into several items",
            )
        if not self.tolerant and (wrong := unicode_problem(f"{self.path}:{number}", line)):
            raise CorpusError(wrong, "Convert the file, e.g. iconv -f latin1 -t utf-8")

    def _text_lines(self) -> Iterator[tuple[int, str]]:
        for number, line in self._lines("\n"):
            text = line.rstrip("\r\n")
            if text.strip():
                yield number, text
            else:
                self.blank_lines += 1

    def _iterate_txt(self) -> Iterator[_NumberedRow]:
        for number, text in self._text_lines():
            yield number, len(text), {"text": text}

    def _iterate_jsonl(self) -> Iterator[_NumberedRow]:
        for number, text in self._text_lines():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise CorpusError(
                    f"{self.path}:{number} is not valid JSON ({error})", "Mend or remove the line"
                ) from None
            if not isinstance(row, dict):
                raise CorpusError(
                    f"{self.path}:{number} is not a JSON object but {_describe(row)}",
                    "Each line must be one object",
                )
            yield number, len(text), row

    def _iterate_csv(self, delimiter: str) -> Iterator[_NumberedRow]:
        lines = (line for _, line in self._lines(newline=""))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        line = 1
        try:
            header = next(reader, None)
            if header is None:
                return
            self._check_names(header)
            line = reader.line_num + 1
            for values in reader:
                if not values:
                    self.blank_lines += 1
                elif len(values) != len(header):
                    raise CorpusError(
                        f"{self.path}:{line} has {len(values)} fields, the header has {len(header)}",
                        "Mend the line, or quote fields that contain the delimiter or line breaks",
                    )
                elif delimiter == "\t" and any("\t" in value and "\n" in value for value in values):
                    # Much TSV is written without quoting: then a text that begins with a quote swallows rows.
                    raise CorpusError(
                        f"{self.path}:{line} has a quoted field with tabs that goes on to line {reader.line_num}",
                        "If quotes have no meaning there, double and enclose them, or write the table as .csv",
                    )
                else:
                    yield line, sum(map(len, values)), dict(zip(header, values))
                line = reader.line_num + 1
        except csv.Error as error:
            raise CorpusError(f"{self.path}:{line} is not valid CSV ({error})", "Mend the line") from None

    def open_columnar(self) -> ColumnarFile:
        """Open a Parquet or Arrow file.

        Raises:
            CorpusError: it is broken.
        """
        with _naming(self.path):
            return ColumnarFile(str(self.path), self.format, self.access)

    def _iterate_columnar(self, columns: Sequence[str] | None) -> Iterator[Piece]:
        start = 0
        for piece in self.open_columnar().iterate_pieces(columns, self.tolerant):
            lines = range(start, start + len(piece))
            if isinstance(piece, list):
                yield Piece(start, partial(list, piece), lines)
            elif self.tolerant:
                yield Piece(start, partial(self._batch_rows, piece), lines, piece)
            else:  # what is no UTF-8 is an error before anything of the piece is used
                yield Piece(start, partial(list, self._batch_rows(piece)), lines)
            start = lines.stop

    def _batch_rows(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        with _naming(self.path):
            return batch_rows(batch, self.tolerant)


def table_format(path: Path | str) -> str | None:
    """Return the format of a table by its name, that of a compression aside; None for other files."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in UNPACKERS:
        suffixes.pop()
        if suffixes and FORMATS.get(suffixes[-1]) in COLUMNAR:
            return None
    return FORMATS.get(suffixes[-1]) if suffixes else None


def cut_pieces(numbered: Iterator[_NumberedRow]) -> Iterator[Piece]:
    """Yield rows, which come with their line and their characters, in pieces of bounded size."""
    start, size = 0, 0
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for line, characters, row in numbered:
        rows.append(row)
        lines.append(line)
        size += characters
        if len(rows) == PIECE_ROWS or size > PIECE_BYTES:
            yield Piece(start, partial(list, rows), lines)
            start, size, rows, lines = start + len(rows), 0, [], []
    if rows:
        yield Piece(start, partial(list, rows), lines)


def _describe(value: Any) -> str:
    kinds: dict[type, str] = {
        list: "a list",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "a boolean",
    }
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


_BROKEN = (OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError, pa.ArrowException, ReadError)
"""What reading a table may raise."""


@contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    try:
        yield
    except CorpusError:
        raise
    except _BROKEN as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise CorpusError(
            f"{path} cannot be read ({reason})", "Check the file, or remove it from the sources"
        ) from error
