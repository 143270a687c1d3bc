"""Listing: the sources of a corpus become one stream of rows with ids, locators, identities and carried columns."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from embedx.core.errors import CorpusError, UsageError
from embedx.core.specs import CorpusSpec
from embedx.corpora.decode import IMAGE_SUFFIXES
from embedx.corpora.tables import Piece, Table, table_format, text_of
from embedx.store.listing import BATCH_CHARACTERS, BATCH_ROWS, INLINE, ListingColumns
from embedx.store.schema import RESERVED, CarriedColumn, is_column_name


@dataclass(frozen=True)
class Source:
    """One entry of the corpus: a folder of images, or a table."""

    label: str
    path: Path
    table: Table | None = None
    columns: dict[str, str] = field(default_factory=dict)


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
            for row in (
                self._iterate_folder(source) if source.table is None else self._iterate_table(source, source.table)
            ):
                found = True
                rows.append(row)
                size += len(row.get("content") or "")
                if len(rows) == BATCH_ROWS or size > BATCH_CHARACTERS:
                    yield rows
                    rows, size = [], 0
            if not found:
                what = "images" if source.table is None else "rows"
                seen = f" ({sum(self.ignored.values())} other files)" if source.table is None and self.ignored else ""
                raise CorpusError(f"{source.path} has no {what}{seen}", "Check the path, or remove it from the sources")
            yield rows

    def _iterate_folder(self, source: Source) -> Iterator[dict[str, Any]]:
        for path, relative in _walk(source.path, self.ignored):
            label = relative.split("/", 1)[0] if "/" in relative else None
            yield {
                "item_id": relative,
                "source": source.label,
                "c_label": label,
                "c_path": path,
                **_file_location(path),
            }

    def _iterate_table(self, source: Source, table: Table) -> Iterator[dict[str, Any]]:
        id_of = _id_reader(source, table, self.spec.id_column)
        item_of = self._image_item(source, table) if self.kind == "image" else self._text_item(source)
        carried = [
            (column, f"c_{column.name}")
            for column in self.columns.listed
            # The path of an image is where it was read from, whatever a column of that name says.
            if not (self.kind == "image" and column.name == "path")
        ]
        for piece in table.iterate_pieces():
            for position, row in enumerate(piece.rows):
                listed = {"item_id": id_of(piece, position), "source": source.label, **item_of(row)}
                for column, name in carried:
                    listed[name] = text_of(row.get(column.name)) if column.type == "string" else row.get(column.name)
                yield listed
        if table.blank_lines:
            self.ignored["blank lines"] += table.blank_lines

    def _text_item(self, source: Source) -> Callable[[dict[str, Any]], dict[str, Any]]:
        name = text_column(source, self.spec)

        def item(row: dict[str, Any]) -> dict[str, Any]:
            value = row.get(name)
            problem = _text_problem(name, value)
            if problem is None and value is not None:
                digest = xxhash.xxh3_128_hexdigest(value.encode())
                return {"locator": INLINE, "identity": digest, "content": value}
            # Marked, so that no broken value can share the identity of a text: null is not "None".
            broken = f"\0broken\0{type(value).__name__}\0{value!r}".encode("utf-8", "surrogatepass")
            return {"locator": INLINE, "identity": xxhash.xxh3_128_hexdigest(broken), "problem": problem}

        return item

    def _image_item(self, source: Source, table: Table) -> Callable[[dict[str, Any]], dict[str, Any]]:
        name = self.spec.image_column or ""
        base = table.path.parent

        def item(row: dict[str, Any]) -> dict[str, Any]:
            value = row.get(name)
            if not isinstance(value, str) or not value.strip():
                problem = f"column {name!r} holds no path but {value!r}"[:200]
                return {"locator": "", "identity": "no path", "problem": problem}
            path = os.path.abspath(base / value)
            return {"c_path": path, **_file_location(path)}

        return item


def open_corpus(spec: CorpusSpec, frozen: tuple[CarriedColumn, ...] | None = None) -> Corpus:
    """Understand the sources of a corpus; only their beginnings are read.

    Args:
        spec: what was asked for.
        frozen: the carried columns of an existing store, which `spec.columns` must agree with.

    Raises:
        CorpusError: a source is missing, empty or of an unknown type, or a column is missing.
        UsageError: the flags do not fit the sources.
    """
    sources = tuple(_open_source(text) for text in spec.sources)
    _check_labels(sources)
    kind = _corpus_kind(spec, sources)
    tables = [source for source in sources if source.table is not None]
    for source in tables:
        if kind == "text":
            text_column(source, spec)
        else:
            _require_column(source, spec.image_column or "", "--image-column")
        if spec.id_column:
            _require_column(source, spec.id_column, "--id-column")
    columns = _carried_columns(spec, kind, sources, frozen)
    positional = tuple(source.label for source in tables if _id_column(source, spec.id_column) is None)
    return Corpus(spec, kind, sources, columns, positional)


def _open_source(text: str) -> Source:
    alias, _, rest = text.partition("=")
    path = Path(rest if rest and alias and "/" not in alias and not Path(text).exists() else text).expanduser()
    label = alias if str(path) != str(Path(text).expanduser()) else path.resolve().name
    if not path.exists():
        raise CorpusError(f"source {path} does not exist", "Check the path")
    if path.is_dir():
        return Source(label, path)
    kind = table_format(path)
    if kind is None:
        raise CorpusError(
            f"source {path} is of no known type",
            "Sources are folders of images and .jsonl, .csv, .tsv, .txt (also .gz) or .parquet files",
        )
    table = Table(path, kind)
    return Source(label, path, table, table.columns())


def _check_labels(sources: tuple[Source, ...]) -> None:
    twice = [label for label, count in Counter(source.label for source in sources).items() if count > 1]
    if twice:
        paths = " and ".join(str(source.path) for source in sources if source.label == twice[0])
        raise UsageError(f"two sources are called {twice[0]!r}: {paths}", f"Name them, e.g. other={sources[-1].path}")


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


def text_column(source: Source, spec: CorpusSpec) -> str:
    """Return the name of a table's text column.

    Raises:
        CorpusError: it is missing, or there are several candidates.
    """
    if spec.text_column:
        _require_column(source, spec.text_column, "--text-column")
        return spec.text_column
    if "text" in source.columns:
        return "text"
    strings = [
        name
        for name, kind in source.columns.items()
        if kind == "string" and name not in ("item_id", "id", spec.id_column, *(spec.columns or ()))
    ]
    if len(strings) == 1:
        return strings[0]
    raise CorpusError(
        f"{source.path} has no column 'text'",
        f"Name the text with --text-column; its columns: {', '.join(source.columns)}",
    )


def _require_column(source: Source, name: str, flag: str) -> None:
    if name not in source.columns:
        raise CorpusError(
            f"{source.path} has no column {name!r} ({flag})",
            f"Its columns: {', '.join(source.columns) or 'none'}",
        )


def _carried_columns(
    spec: CorpusSpec, kind: str, sources: tuple[Source, ...], frozen: tuple[CarriedColumn, ...] | None
) -> ListingColumns:
    content = text_column(next(s for s in sources if s.table is not None), spec) if kind == "text" else None
    folders = any(source.table is None for source in sources)
    default = (["label"] if folders else []) + (["path"] if kind == "image" else ["text"])
    if spec.columns is None and frozen is not None:
        names = [column.name for column in frozen]
    elif spec.columns is None:
        names = default
    else:
        names = list(dict.fromkeys([*(default if spec.columns else []), *spec.columns]))
    if kind == "text" and content not in names and "text" in names:
        # The text is carried under the name it has in the source.
        names = [content if name == "text" and not _all_have(sources, "text") else name for name in names]  # type: ignore[misc]
    for source in sources:
        for name in names:
            built_in = name in default if source.table is None else name == "path" and kind == "image"
            if not built_in:
                _require_column(source, name, "--columns")
    bad = [name for name in names if not is_column_name(name)]
    if bad:
        raise UsageError(
            f"column {bad[0]!r} cannot be carried under this name",
            "Rename it: item_id, vector, source, digest and parent_id are taken, and spaces and ,;{}()= not allowed",
        )
    lowered = Counter(name.lower() for name in [*names, *RESERVED])
    twice = [name for name in names if lowered[name.lower()] > 1]
    if twice:
        raise UsageError(
            f"column {twice[0]!r} differs from another of the store in case only", "Delta cannot keep both: rename one"
        )
    carried = tuple(CarriedColumn(name, _common_type(name, sources)) for name in names)
    _check_frozen(carried, frozen)
    return ListingColumns(frozen if frozen is not None else carried, content if content in names else None)


def _all_have(sources: tuple[Source, ...], name: str) -> bool:
    return all(name in source.columns for source in sources)


def _check_frozen(carried: tuple[CarriedColumn, ...], frozen: tuple[CarriedColumn, ...] | None) -> None:
    if frozen is None:
        return
    names, known = {column.name for column in carried}, {column.name for column in frozen}
    if names != known:
        added, missing = sorted(names - known), sorted(known - names)
        what = f"new column {added[0]!r}" if added else f"missing column {missing[0]!r}"
        raise UsageError(
            f"the store's columns are fixed ({', '.join(sorted(known)) or 'none'}): {what}",
            "Leave out --columns to carry the store's own, or extract to another store",
        )


def _common_type(name: str, sources: tuple[Source, ...]) -> str:
    types = {
        source.columns.get(name, "string") if source.table and source.table.format == "parquet" else "string"
        for source in sources
    }
    only = types.pop() if len(types) == 1 else "string"
    return "string" if only == "other" else only


def _id_column(source: Source, given: str | None) -> str | None:
    return given or next((name for name in ("item_id", "id") if name in source.columns), None)


def _id_reader(source: Source, table: Table, given: str | None) -> Callable[[Piece, int], str]:
    name = _id_column(source, given)
    if name is None:
        return lambda piece, position: f"{source.label}#{piece.start + position}"

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


def _text_problem(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"column {name!r} is null"
    if not isinstance(value, str):
        return f"column {name!r} holds {type(value).__name__}, not text"
    if not value.strip():
        return f"column {name!r} is empty"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"column {name!r} holds a lone surrogate at position {error.start}: not valid Unicode"
    return None


def _file_location(path: str) -> dict[str, Any]:
    try:
        stat = os.stat(path)
    except OSError as error:
        return {"locator": path, "identity": "missing", "problem": f"cannot read {path}: {error.strerror}"}
    # With the path, for a table may point an id to another file of like size and time, and with the ctime, which
    # tells two swapped files apart. Where any of it differs, the file's digest decides.
    return {"locator": path, "identity": f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{path}"}


def _walk(root: Path, ignored: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield (absolute path, path relative to `root`) of image files, sorted, hidden and other files counted."""
    top = os.path.abspath(root)
    stack = [top]
    while stack:
        folder = stack.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise CorpusError(f"cannot list {folder}: {error.strerror}", "Check its permissions") from error
        folders = []
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                folders.append(entry.path)
            elif entry.name.startswith("."):
                ignored["hidden"] += 1
            elif os.path.isdir(entry.path):
                ignored["link to a folder"] += 1
            elif suffix not in IMAGE_SUFFIXES:
                ignored[suffix or "no suffix"] += 1
            else:
                yield entry.path, os.path.relpath(entry.path, top).replace(os.sep, "/")
        stack.extend(reversed(folders))


def _array(name: str, values: list[Any], schema: pa.Schema) -> pa.Array:
    try:
        return pa.array(values, schema.field(name).type)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise CorpusError(
            f"a value of column {name.removeprefix('c_')!r} is not a {schema.field(name).type} ({error})",
            "Mend the value, or do not carry the column",
        ) from error
