"""Listing: the sources of a corpus become one stream of rows with ids, locators, identities and carried columns."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import xxhash

from embedx.core.errors import CorpusError, UsageError
from embedx.core.specs import CorpusSpec
from embedx.corpora.columns import carried_columns, id_column, require_column, text_column
from embedx.corpora.folders import file_identity, iterate_images
from embedx.corpora.sources import Source, check_labels, open_source
from embedx.corpora.tables import Piece, Table
from embedx.corpora.values import printable, text_of, text_problem, unicode_problem
from embedx.store.listing import BATCH_CHARACTERS, BATCH_ROWS, INLINE, ListingColumns
from embedx.store.schema import CarriedColumn


@dataclass
class Corpus:
    """The sources of a corpus, understood: what they are, where ids come from, what is carried.

    Attributes:
        spec: what was asked for.
        kind: image or text.
        sources: in the order given.
        columns: the carried columns.
        positional: labels of the sources whose ids are row numbers.
        ignored: what was passed over while listing: suffix or reason -> count.
    """

    spec: CorpusSpec
    kind: str
    sources: tuple[Source, ...]
    columns: ListingColumns
    positional: tuple[str, ...]
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def derived_ids(self) -> list[str]:
        """Labels of the sources whose ids nobody gave: paths in a folder, row numbers."""
        return [*(source.label for source in self.sources if source.table is None), *self.positional]

    def iterate_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the listing in order, without the column `row`.

        Raises:
            CorpusError: a source is broken.
        """
        self.ignored.clear()
        left = self.spec.limit if self.spec.limit is not None else math.inf
        schema = pa.schema(list(self.columns.schema())[1:])
        for rows in self._iterate_rows():
            rows = rows[: int(min(left, len(rows)))]
            left -= len(rows)
            if rows:
                arrays = [_array(name, [row.get(name) for row in rows], schema) for name in schema.names]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
            if left <= 0:
                return

    def _iterate_rows(self) -> Iterator[list[dict[str, Any]]]:
        for source in self.sources:
            rows: list[dict[str, Any]] = []
            found, size = False, 0
            for row in self._iterate_source(source):
                found = True
                rows.append(_storable(row))
                size += len(row.get("content") or "")
                if len(rows) == BATCH_ROWS or size > BATCH_CHARACTERS:
                    yield rows
                    rows, size = [], 0
            if not found:
                what = "images" if source.table is None else "rows"
                seen = f" ({sum(self.ignored.values())} other files)" if source.table is None and self.ignored else ""
                raise CorpusError(f"{source.path} has no {what}{seen}", "Check the path, or remove it from the sources")
            yield rows

    def _iterate_source(self, source: Source) -> Iterator[dict[str, Any]]:
        if source.table is None:
            return self._iterate_folder(source)
        return self._iterate_table(source, source.table)

    def _iterate_folder(self, source: Source) -> Iterator[dict[str, Any]]:
        for path, relative in iterate_images(source.path, self.ignored):
            label = relative.split("/", 1)[0] if "/" in relative else None
            yield {
                "item_id": relative,
                "source": source.label,
                "locator": path,
                "identity": file_identity(path),
                "c_label": label,
                "c_path": path,
            }

    def _iterate_table(self, source: Source, table: Table) -> Iterator[dict[str, Any]]:
        id_name = id_column(source, self.spec.id_column)
        content_name = (self.spec.image_column or "") if self.kind == "image" else text_column(source, self.spec)
        content_of = _image_reader(table, content_name) if self.kind == "image" else _text_reader(content_name)
        carried = [
            (column, f"c_{column.name}")
            for column in self.columns.listed
            # The path of an image is where it was read from, whatever a column of that name says.
            if not (self.kind == "image" and column.name == "path")
        ]
        needed = [content_name, *(column.name for column, _ in carried)]
        id_of = _numbers(source) if id_name is None else _ids(table, id_name)
        for piece in table.iterate_pieces(needed if id_name is None else [id_name, *needed]):
            for position, row in enumerate(piece.rows):
                listed = {"item_id": id_of(piece, position), "source": source.label, **content_of(row)}
                for column, name in carried:
                    listed[name] = text_of(row.get(column.name)) if column.type == "string" else row.get(column.name)
                yield listed
        if table.blank_lines:
            self.ignored["blank lines"] += table.blank_lines


def open_corpus(spec: CorpusSpec, frozen: tuple[CarriedColumn, ...] | None = None) -> Corpus:
    """Understand the sources of a corpus; only their beginnings are read.

    Args:
        spec: what was asked for.
        frozen: the carried columns of an existing store, which `spec.columns` must agree with.

    Raises:
        CorpusError: a source is missing, empty or of an unknown type, or a column is missing.
        UsageError: the flags do not fit the sources.
    """
    sources = tuple(open_source(text) for text in spec.sources)
    check_labels(sources)
    kind = _corpus_kind(spec, sources)
    tables = [source for source in sources if source.table is not None]
    for source in tables:
        if kind == "text":
            text_column(source, spec)
        else:
            require_column(source, spec.image_column or "", "--image-column")
        if spec.id_column:
            require_column(source, spec.id_column, "--id-column")
    columns = carried_columns(spec, kind, sources, frozen)
    positional = tuple(source.label for source in tables if id_column(source, spec.id_column) is None)
    return Corpus(spec, kind, sources, columns, positional)


def _corpus_kind(spec: CorpusSpec, sources: tuple[Source, ...]) -> str:
    kinds = {"image" if source.table is None or spec.image_column else "text": source.path for source in sources}
    if len(kinds) > 1:
        raise UsageError(
            f"{kinds['image']} is a folder of images and {kinds['text']} a table of texts",
            "Extract them to two stores, or pass --image-column for a table of image paths",
        )
    (kind,) = kinds
    if spec.kind and spec.kind != kind:
        hint = "Pass --image-column for a table of image paths" if kind == "text" else "A folder is read as images"
        raise UsageError(f"{next(iter(kinds.values()))} holds {kind}s, not {spec.kind}s", hint)
    if kind == "image" and spec.text_column:
        raise UsageError(f"--text-column {spec.text_column} does not apply to images", "Leave it out")
    return kind


def _text_reader(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def read(row: dict[str, Any]) -> dict[str, Any]:
        value = row.get(name)
        if problem := text_problem(name, value):
            return {"locator": INLINE, "identity": _broken_identity(repr(value)), "problem": problem}
        return {"locator": INLINE, "identity": xxhash.xxh3_128_hexdigest(str(value).encode()), "content": value}

    return read


def _image_reader(table: Table, name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def read(row: dict[str, Any]) -> dict[str, Any]:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            problem = f"column {name!r} holds no path but {value!r}"[:200]
            return {"locator": "", "identity": "no path", "problem": problem}
        path = os.path.abspath(table.path.parent / value)
        return {"locator": path, "identity": file_identity(path), "c_path": path}

    return read


def _numbers(source: Source) -> Callable[[Piece, int], str]:
    return lambda piece, position: f"{source.label}#{piece.start + position}"


def _ids(table: Table, name: str) -> Callable[[Piece, int], str]:
    def read(piece: Piece, position: int) -> str:
        value = piece.rows[position].get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value:
            return value
        raise CorpusError(
            f"{table.path}:{piece.lines[position]} has no id in column {name!r} but {value!r}",
            "Ids are non-empty strings or whole numbers; mend the row, or name another --id-column",
        )

    return read


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without strings that no file can hold: an item of which one is not Unicode is a failed item."""
    for name, value in row.items():
        if isinstance(value, str) and not value.isascii() and name not in _CHECKED_BEFORE:
            what = {"item_id": "the id", "locator": "the path"}.get(name) or f"column {name.removeprefix('c_')!r}"
            if problem := unicode_problem(what, value):
                mended = {key: printable(old) if isinstance(old, str) else old for key, old in row.items()}
                return {**mended, "identity": _broken_identity(problem + row["identity"]), "problem": problem}
    return row


_CHECKED_BEFORE = ("source", "content", "identity", "problem")


def _broken_identity(content: str) -> str:
    """Return an identity that no good item has: null is not the text "None"."""
    return xxhash.xxh3_128_hexdigest(f"\0broken\0{content}".encode("utf-8", "surrogatepass"))


def _array(name: str, values: list[Any], schema: pa.Schema) -> pa.Array:
    try:
        return pa.array(values, schema.field(name).type)
    except (pa.ArrowException, OverflowError) as error:
        raise CorpusError(
            f"a value of column {name.removeprefix('c_')!r} is not a {schema.field(name).type} ({error})",
            "Mend the value, or do not carry the column",
        ) from error
