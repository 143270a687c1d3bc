"""Tables as sources: .jsonl, .csv, .tsv, .txt (also .gz) and .parquet, read row by row in pieces."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from embedx.core.errors import CorpusError

PIECE_ROWS = 8_192

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
}

csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a table.

    Attributes:
        start: number of the first row, from 0, blank lines not counted.
        rows: the values, column -> value.
        lines: the line each row began on, from 1; for Parquet the row number.
    """

    start: int
    rows: list[dict[str, Any]]
    lines: list[int]


@dataclass
class Table:
    """One table file.

    Attributes:
        path: the file.
        format: jsonl, csv, tsv, txt or parquet.
        blank_lines: lines without content met while iterating.
    """

    path: Path
    format: str
    blank_lines: int = 0

    def columns(self) -> dict[str, str]:
        """Return column -> type (`string`, `long`, `double`, `boolean` or `other`), from the file's beginning.

        Raises:
            CorpusError: the file is empty or broken.
        """
        if self.format == "parquet":
            return {field.name: _parquet_type(field.type) for field in self._parquet().schema_arrow}
        if self.format == "txt":
            return {"text": "string"}
        first = next(self.iterate_pieces(), None)
        self.blank_lines = 0
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
        return names

    def iterate_pieces(self) -> Iterator[Piece]:
        """Yield the rows in order.

        Raises:
            CorpusError: a row is broken; the message names file and line.
        """
        readers: dict[str, Callable[[], Iterator[tuple[int, dict[str, Any]]]]] = {
            "jsonl": self._iterate_jsonl,
            "csv": lambda: self._iterate_csv(","),
            "tsv": lambda: self._iterate_csv("\t"),
            "txt": self._iterate_txt,
        }
        if self.format == "parquet":
            yield from self._iterate_parquet()
            return
        start, rows, lines = 0, [], []
        with _naming(self.path):
            for line, row in readers[self.format]():
                rows.append(row)
                lines.append(line)
                if len(rows) == PIECE_ROWS:
                    yield Piece(start, rows, lines)
                    start, rows, lines = start + len(rows), [], []
        if rows:
            yield Piece(start, rows, lines)

    def _lines(self) -> Iterator[tuple[int, str]]:
        with _open_binary(self.path) as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(
                        f"{self.path}:{number} is not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start})",
                        "Convert the file, e.g. iconv -f latin1 -t utf-8",
                    ) from None
                text = text.rstrip("\r\n")
                if text.strip():
                    yield number, text
                else:
                    self.blank_lines += 1

    def _iterate_txt(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, text in self._lines():
            yield number, {"text": text}

    def _iterate_jsonl(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, text in self._lines():
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
            yield number, row

    def _iterate_csv(self, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
        with _open_binary(self.path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            line = 1
            try:
                header = next(reader, None)
                if header is None:
                    return
                if len(set(header)) != len(header) or any(not name for name in header):
                    raise CorpusError(
                        f"{self.path}:1 has empty or repeated column names",
                        "Give every column a name of its own",
                    )
                line = reader.line_num + 1
                for values in reader:
                    if not values:
                        self.blank_lines += 1
                    elif len(values) != len(header):
                        raise CorpusError(
                            f"{self.path}:{line} has {len(values)} fields, the header has {len(header)}",
                            "Mend the line, or quote fields that contain the delimiter or line breaks",
                        )
                    else:
                        yield line, dict(zip(header, values))
                    line = reader.line_num + 1
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{self.path}:{line} or soon after is not UTF-8 (byte 0x{error.object[error.start]:02x})",
                    "Convert the file, e.g. iconv -f latin1 -t utf-8",
                ) from None
            except csv.Error as error:
                raise CorpusError(f"{self.path}:{line} is not valid CSV ({error})", "Mend the line") from None

    def _parquet(self) -> pq.ParquetFile:
        with _naming(self.path):
            return pq.ParquetFile(self.path)

    def _iterate_parquet(self, columns: list[str] | None = None) -> Iterator[Piece]:
        start = 0
        file = self._parquet()
        with _naming(self.path):
            for batch in file.iter_batches(PIECE_ROWS, columns=columns):
                rows = batch.to_pylist()
                yield Piece(start, rows, list(range(start, start + len(rows))))
                start += len(rows)


def table_format(path: Path) -> str | None:
    """Return the format of a table by its name, `.gz` aside; None for other files."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None
    return FORMATS.get(suffixes[-1]) if suffixes else None


def text_of(value: Any) -> str | None:
    """Return a carried value as a string: strings as they are, everything else as JSON; None stays None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _describe(value: Any) -> str:
    kinds: dict[type, str] = {
        list: "a list",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "a boolean",
    }
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def _open_binary(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except CorpusError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise CorpusError(
            f"{path} cannot be read ({reason})", "Check the file, or remove it from the sources"
        ) from error


def _parquet_type(kind: pa.DataType) -> str:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    if types.is_integer(kind) and kind != pa.uint64():
        return "long"
    if types.is_floating(kind):
        return "double"
    return "boolean" if types.is_boolean(kind) else "other"
