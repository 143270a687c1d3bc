"""Items of a source: each kind of source becomes rows of the listing, as dicts."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from embedx.core.errors import CorpusError
from embedx.core.redaction import redact
from embedx.core.sources import Stored
from embedx.core.specs import CorpusSpec
from embedx.corpora import tars
from embedx.corpora.columns import id_column, image_column, text_column
from embedx.corpora.columnwise import ColumnItems, ContentOf, cells_of, texts_of
from embedx.corpora.decode import IMAGE_SUFFIXES, MAX_FILE_BYTES
from embedx.corpora.errors import ReadError
from embedx.corpora.folders import iterate_images, suffix_reason
from embedx.corpora.locators import Locator, is_remote, scheme_of, url_path, url_problem
from embedx.corpora.plugins import PluginTable
from embedx.corpora.sources import Source
from embedx.corpora.sql import SqlTable
from embedx.corpora.storage import file_identity, shared_storage
from embedx.corpora.tables import Piece, Table
from embedx.corpora.values import broken_identity, text_of, text_problem
from embedx.store.listing import INLINE, ListingColumns

Row = dict[str, Any]
"""Columns of the listing -> value; carried ones begin with `c_`."""


def iterate_items(
    source: Source, spec: CorpusSpec, kind: str, columns: ListingColumns, ignored: Counter[str]
) -> Iterator[Row | pa.RecordBatch]:
    """Yield the items of a source in its order, one by one, or some as a batch of the listing without `row`.

    Args:
        source: to read.
        spec: what was asked for.
        kind: image or text.
        columns: the carried columns.
        ignored: counts what is passed over.

    Raises:
        CorpusError: the source is broken.
    """
    ignored.update(source.ignored)
    rows: Iterator[Row | pa.RecordBatch]
    if source.kind == "tar":
        rows = _iterate_tar(source, columns, ignored)
    elif source.table is None:
        rows = _iterate_folder(source, ignored) if source.files is None else _iterate_prefix(source, ignored)
    else:
        rows = _TableItems(source, source.table, spec, kind, columns).iterate(ignored)
    if spec.id_prefix is None:
        return rows
    return (_prefixed(row, f"{source.label}/") for row in rows)


def _prefixed(row: Row | pa.RecordBatch, prefix: str) -> Row | pa.RecordBatch:
    if isinstance(row, pa.RecordBatch):
        ids = pc.binary_join_element_wise(prefix, row.column("item_id"), "")
        return row.set_column(row.schema.get_field_index("item_id"), row.schema.field("item_id"), ids)
    return {**row, "item_id": prefix + row["item_id"]}


# -- folders -------------------------------------------------------------------------------------------------------


def _iterate_folder(source: Source, ignored: Counter[str]) -> Iterator[Row]:
    for path, relative in iterate_images(Path(source.path), ignored):
        yield {**_named(source, relative, path, file_identity(path)), "c_label": _folder_label(relative)}


def _iterate_prefix(source: Source, ignored: Counter[str]) -> Iterator[Row]:
    assert source.files is not None
    for file in source.files:
        relative = file.place.removeprefix(source.path).lstrip("/")
        suffix = posixpath.splitext(relative)[1].lower()
        if any(part.startswith(".") for part in relative.split("/")):
            ignored["hidden"] += 1
        elif suffix not in IMAGE_SUFFIXES:
            ignored[suffix_reason(suffix, ignored)] += 1
        else:
            row = {**_named(source, relative, file.place, file.token), "c_label": _folder_label(relative)}
            if file.size_bytes > MAX_FILE_BYTES:
                row["problem"] = f"{file.place} has {file.size_bytes:,} bytes; more than {MAX_FILE_BYTES:,} are refused"
            yield row


def _folder_label(relative: str) -> str | None:
    return relative.split("/", 1)[0] if "/" in relative else None


def _named(source: Source, item_id: str, locator: str, identity: str) -> Row:
    return {
        "item_id": item_id,
        "source": source.label,
        "locator": locator,
        "identity": identity,
        "c_path": redact(locator),
    }


# -- tars ----------------------------------------------------------------------------------------------------------


def _iterate_tar(source: Source, columns: ListingColumns, ignored: Counter[str]) -> Iterator[Row]:
    wanted = {column.name for column in columns.listed}
    storage = shared_storage(source.access)
    place = source.path if is_remote(source.path) else os.path.abspath(source.path)
    try:
        info = storage.info(place)
    except ReadError as error:
        raise CorpusError(
            f"{place} cannot be read ({error})", "Check the file, or remove it from the sources"
        ) from None
    with storage.open(place, info) as file:
        for sample in tars.iterate_samples(file, place, ignored):
            locator = str(Locator("tar", place, offset=sample.offset, length=sample.length))
            # The token says whether the tar is still the one that was listed; the worker asks before it reads.
            row = _named(source, sample.name, locator, f"{sample.offset}:{sample.length}:{info.token}")
            values = tars.companion_values(file, sample, wanted | {"cls"}) if sample.companions else {}
            row |= {f"c_{name}": text_of(values[name]) for name in wanted - {"path"} if name in values}
            if "label" in wanted:
                row["c_label"] = tars.label_of(sample, values)
            if sample.problem:
                row |= {"problem": sample.problem, "locator": ""}
            yield row


# -- tables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TableItems:
    """The items of a table: texts, or images that its rows hold or name."""

    source: Source
    table: Table | SqlTable | PluginTable
    spec: CorpusSpec
    kind: str
    columns: ListingColumns

    def iterate(self, ignored: Counter[str]) -> Iterator[Row | pa.RecordBatch]:
        source, table = self.source, self.table
        id_name = id_column(source, self.spec.id_column)
        is_image = self.kind == "image"
        content_name = image_column(source, self.spec.image_column) if is_image else text_column(source, self.spec)
        if is_image and id_name is None and table.format == "txt":
            id_name = content_name  # the URL
        read_name, content_of, contents_of = self._content(content_name)
        carried = [
            (column, f"c_{column.name}")
            for column in self.columns.listed
            # The path of an image is where it was read from, whatever a column of that name says.
            if not (is_image and column.name == "path")
        ]
        needed = [name for name in (id_name, read_name, *(column.name for column, _ in carried)) if name is not None]
        is_place = is_image and id_name == content_name
        id_of = _numbers(source) if id_name is None else _ids(table, id_name, is_place)
        by_column = ColumnItems(
            source.label,
            id_name,
            contents_of,
            tuple(column for column, _ in carried),
            pa.schema(list(self.columns.schema())[1:]),
        )
        for piece in table.iterate_pieces(needed):
            if piece.batch is not None and (listed := by_column.list_batch(piece.batch, piece.start)) is not None:
                yield listed
                continue
            for position, row in enumerate(piece.rows):
                content = content_of(row, piece.start + position)
                item = {"item_id": id_of(piece, position), "source": source.label, **content}
                for column, name in carried:
                    item[name] = text_of(row.get(column.name)) if column.type == "string" else row.get(column.name)
                yield item
        if table.blank_lines:
            ignored["blank lines"] += table.blank_lines

    def _content(self, name: str) -> tuple[str | None, Callable[[Row, int], Row], ContentOf]:
        """Return which column must be read for the content, and what makes content: of a row, of a batch."""
        if self.kind == "text":
            return name, _text_reader(name), texts_of(name)
        kind = self.source.columns.get(name)
        if kind not in ("image", "binary"):
            return name, _place_reader(self.source, name), _row_by_row
        if isinstance(self.table, PluginTable):
            return name, _stored_reader(self.table.path, name), _row_by_row
        if isinstance(self.table, SqlTable):
            raise CorpusError(
                f"column {name!r} of --sql holds bytes, which workers could not read again",
                "Select paths or URLs of images, or give the file that holds the bytes as a source",
            )
        file = self.table.open_columnar()
        if kind == "image" and file.has_only_paths(name):
            return f"{name}.path", _place_reader(self.source, f"{name}.path"), _row_by_row
        locator = Locator(file.kind, file.place, row=0, column=name)
        before, behind = str(locator).split(":0:", 1)
        cells = cells_of(f"{before}:", f":{behind}", redact(f":{behind}"), file.token)
        return None, _cell_reader(locator, file.token), cells


def _row_by_row(batch: pa.RecordBatch, start: int) -> None:
    """Make no contents of a batch."""


def _cell_reader(first: Locator, token: str) -> Callable[[Row, int], Row]:
    def read(row: Row, number: int) -> Row:
        locator = str(replace(first, row=number))
        return {"locator": locator, "identity": f"{number}:{token}", "c_path": redact(locator)}

    return read


def _text_reader(name: str) -> Callable[[Row, int], Row]:
    def read(row: Row, number: int) -> Row:
        value = row.get(name)
        if problem := text_problem(name, value):
            return {"locator": INLINE, "identity": broken_identity(repr(value)), "problem": problem}
        return {"locator": INLINE, "identity": xxhash.xxh3_128_hexdigest(str(value).encode()), "content": value}

    return read


def _stored_reader(place: str, name: str) -> Callable[[Row, int], Row]:
    """Return what makes content of what a plug-in gives for an image."""

    def read(row: Row, number: int) -> Row:
        value = row.get(name)
        if not isinstance(value, Stored):
            problem = f"column {name!r} holds no Stored image but {value!r}"[:200]
            return {"locator": "", "identity": broken_identity(repr(value)), "problem": problem}
        locator = str(Locator("plugin", place, key=value.key))
        return {"locator": locator, "identity": f"{value.key}:{value.version}", "c_path": locator}

    return read


def _place_reader(source: Source, name: str) -> Callable[[Row, int], Row]:
    """Return what makes content of a path, relative to the table, or of a URL."""
    remote_home = posixpath.dirname(url_path(source.path)) if is_remote(source.path) else ""
    home = "" if source.kind in ("sql", "plugin") or remote_home else os.path.dirname(source.path)

    def read(row: Row, number: int) -> Row:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            problem = f"column {name!r} holds no path but {value!r}"[:200]
            return {"locator": "", "identity": "no path", "problem": problem}
        value = value.strip() if scheme_of(value.strip()) else value
        if scheme_of(value):
            wrong = url_problem(value)
            # What no network was asked for is known by its name alone; see the documents on URL lists.
            shown = value.partition("://")[0] + "://..." if wrong else value
            # A URL that is signed anew is the same one; its signature stands in the plan alone.
            known = xxhash.xxh3_128_hexdigest(redact(value).encode("utf-8", "replace"))
            return {"locator": shown, "identity": f"url:{known}", "c_path": redact(shown), "problem": wrong}
        if remote_home:
            url = f"{remote_home}/{value}"
            outside = value.startswith("/") or ".." in value.split("/")
            leads_out = f"column {name!r} names {value!r}, outside of {remote_home}"[:300] if outside else None
            return {"locator": url, "identity": f"url:{redact(url)}", "c_path": redact(url), "problem": leads_out}
        path = os.path.abspath(os.path.join(home, value))
        return {"locator": path, "identity": file_identity(path), "c_path": path}

    return read


def _numbers(source: Source) -> Callable[[Piece, int], str]:
    return lambda piece, position: f"{source.label}#{piece.start + position}"


def _ids(table: Table | SqlTable | PluginTable, name: str, is_place: bool) -> Callable[[Piece, int], str]:
    def read(piece: Piece, position: int) -> str:
        value = piece.rows[position].get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value:
            return redact(value) if is_place else value
        raise CorpusError(
            f"{table.path}:{piece.lines[position]} has no id in column {name!r} but {value!r}",
            "Ids are non-empty strings or whole numbers; mend the row, or name another --id-column",
        )

    return read
