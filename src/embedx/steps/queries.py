"""Files of queries: texts or image paths from .txt, .jsonl, .csv, .tsv and .parquet, vectors from .npy."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.errors import UsageError

TEXT_COLUMNS = ("text", "query")
IMAGE_COLUMN = "image"


@dataclass(frozen=True)
class QueryFile:
    """The queries of a file, in its order.

    Attributes:
        names: what each one is called in the answer: its text, its image's path as the file says it, or its row
            for vectors.
        images: the image files; None where the file holds something else.
        vectors: (m, dim); None where the file holds something else.
        ids: the file's own ids; None where it has none.
    """

    names: list[str]
    images: list[Path] | None = None
    vectors: np.ndarray | None = None
    ids: list[str] | None = None


def read_queries(path: Path) -> QueryFile:
    """Read a file of queries; its suffix says how.

    Raises:
        UsageError: no such file, an unknown suffix, no usable column, broken content or no query at all.
    """
    readers: dict[str, Callable[[Path], QueryFile]] = {
        ".txt": _read_lines,
        ".jsonl": _read_json_lines,
        ".csv": lambda file: _read_delimited(file, ","),
        ".tsv": lambda file: _read_delimited(file, "\t"),
        ".parquet": _read_parquet,
        ".npy": _read_vectors,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"--queries {path} has an unknown suffix", f"Known: {', '.join(readers)}")
    try:
        queries = reader(path)
    except OSError as error:
        raise UsageError(f"--queries {path} cannot be read ({error.strerror or error})", "Check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--queries {path} is not UTF-8 ({error})", "Convert it to UTF-8") from error
    if not queries.names:
        raise UsageError(f"--queries {path} holds no query", "Put at least one in it")
    return queries


def _read_lines(path: Path) -> QueryFile:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    texts = [line for line in lines if line]
    return QueryFile(names=texts)


def _read_json_lines(path: Path) -> QueryFile:
    rows: list[Mapping[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number} is not valid JSON ({error})", "Mend the line") from error
            if not isinstance(row, dict):
                raise UsageError(f"{path}, line {number} is not a JSON object", 'Write e.g. {"text": "..."}')
            rows.append(row)
    return _from_rows(path, rows, sorted({name for row in rows for name in row}))


def _read_delimited(path: Path, delimiter: str) -> QueryFile:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise UsageError(f"{path}, line {reader.line_num}: {error}", "Mend the line") from error
        return _from_rows(path, rows, list(reader.fieldnames or []))


def _read_parquet(path: Path) -> QueryFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        wanted = [name for name in (*TEXT_COLUMNS, IMAGE_COLUMN, "id") if name in names]
        return _from_rows(path, file.read(columns=wanted).to_pylist(), names)
    except pa.ArrowException as error:
        raise UsageError(f"{path} is not a readable Parquet file ({error})", "Write it again") from error


def _from_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> QueryFile:
    column = next((name for name in (*TEXT_COLUMNS, IMAGE_COLUMN) if name in columns), None)
    if column is None:
        raise UsageError(
            f"{path} has no column {' or '.join(TEXT_COLUMNS)}, and no column {IMAGE_COLUMN} of image paths",
            f"Its columns: {', '.join(columns) or 'none'}",
        )
    names, ids = [], []
    for number, row in enumerate(rows, start=1):
        name = row.get(column)
        if not isinstance(name, str) or not name.strip():
            raise UsageError(f"{path}, query {number} has no text in the column {column!r}", "Fill it or leave it out")
        names.append(name)
        ids.append("" if row.get("id") is None else str(row["id"]))
    # Like the paths of a corpus: relative to the table that names them.
    images = [path.parent / name for name in names] if column == IMAGE_COLUMN else None
    return QueryFile(names=names, images=images, ids=ids if "id" in columns else None)


def _read_vectors(path: Path) -> QueryFile:
    try:
        vectors = np.load(path, allow_pickle=False, mmap_mode="r")
    except ValueError as error:
        raise UsageError(f"{path} is not a readable .npy array ({error})", "Save it with numpy.save") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
        shape = getattr(vectors, "shape", None)
        raise UsageError(f"{path} has shape {shape}, queries are (m, dim)", "Save one vector a row")
    return QueryFile(names=[str(row) for row in range(len(vectors))], vectors=vectors)
