"""Listing: the sources of a corpus become one stream of rows with ids, locators, identities and carried columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from embedx.core.errors import CorpusError, UsageError
from embedx.core.specs import CorpusSpec
from embedx.corpora.ahead import iterate_ahead
from embedx.corpora.columns import (
    carried_columns,
    id_column,
    image_candidates,
    image_column,
    require_column,
    text_column,
)
from embedx.corpora.describing import describe_source
from embedx.corpora.items import iterate_items
from embedx.corpora.locators import is_remote
from embedx.corpora.sources import OPENING_THREADS, Source, open_sources
from embedx.corpora.values import broken_identity, printable, unicode_problem
from embedx.store.listing import BATCH_CHARACTERS, BATCH_ROWS, ListingColumns
from embedx.store.schema import CarriedColumn

FIRST_ITEMS = 3
"""Of each source, to be shown before anything is embedded."""


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
        first: source -> (id, locator, what is carried) of its first items, once it was listed.
    """

    spec: CorpusSpec
    kind: str
    sources: tuple[Source, ...]
    columns: ListingColumns
    positional: tuple[str, ...]
    ignored: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def derived_ids(self) -> list[str]:
        """Labels of the sources whose ids nobody gave: paths in a folder, row numbers."""
        return [*(source.label for source in self.sources if source.is_image_archive), *self.positional]

    def describe_sources(self) -> list[dict[str, Any]]:
        """Return, for people, how each source was understood; with its first items once it was listed."""
        return [describe_source(source, self.spec, self.kind, self.first) for source in self.sources]

    def iterate_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the listing in order, without the column `row`.

        Raises:
            CorpusError: a source is broken.
        """
        self.ignored.clear()
        self.first.clear()
        left = self.spec.limit if self.spec.limit is not None else math.inf
        listings: list[Callable[[], Iterator[_Listed]]] = [
            partial(self._iterate_source, source) for source in self.sources
        ]
        # Of remote sources each waits for the network. Local ones keep the interpreter busy: threads make them slower.
        threads = OPENING_THREADS if any(is_remote(source.path) for source in self.sources) else 1
        for listed in iterate_ahead(listings, threads):
            batch = listed.rows.slice(0, int(min(left, listed.rows.num_rows)))
            left -= batch.num_rows
            self.ignored.update(listed.ignored)
            if listed.first:
                self.first.setdefault(listed.label, []).extend(listed.first)
            if batch.num_rows:
                yield batch
            if left <= 0:
                return

    def _iterate_source(self, source: Source) -> Iterator[_Listed]:
        ignored: Counter[str] = Counter()
        schema = pa.schema(list(self.columns.schema())[1:])
        rows: list[dict[str, Any]] = []
        first: list[dict[str, Any]] = []
        shown = size = 0

        def show(items: list[dict[str, Any]]) -> None:
            nonlocal shown
            first.extend(items[: FIRST_ITEMS - shown])
            shown = min(FIRST_ITEMS, shown + len(items))

        def listed(batch: pa.RecordBatch) -> _Listed:
            found = _Listed(source.label, batch, Counter(ignored), list(first))
            ignored.clear()
            first.clear()
            return found

        def gathered() -> pa.RecordBatch:
            nonlocal size
            arrays = [_array(name, [row.get(name) for row in rows], schema) for name in schema.names]
            rows.clear()
            size = 0
            return pa.RecordBatch.from_arrays(arrays, schema=schema)

        for row in iterate_items(source, self.spec, self.kind, self.columns, ignored):
            if isinstance(row, pa.RecordBatch):
                if rows:
                    yield listed(gathered())
                show(row.slice(0, FIRST_ITEMS).to_pylist())
                yield listed(row)
                continue
            rows.append(_storable(row))
            size += len(row.get("content") or "")
            show([row])
            if len(rows) == BATCH_ROWS or size > BATCH_CHARACTERS:
                yield listed(gathered())
        if not shown:
            what = "images" if source.is_image_archive else "rows"
            seen = f" ({sum(ignored.values())} other files)" if source.is_image_archive and ignored else ""
            raise CorpusError(f"{source.path} has no {what}{seen}", "Check the path, or remove it from the sources")
        yield listed(gathered())


@dataclass(frozen=True)
class _Listed:
    """Some rows of a source, what was passed over between them, and its first items as they were listed."""

    label: str
    rows: pa.RecordBatch
    ignored: Counter[str]
    first: list[dict[str, Any]]


def open_corpus(
    spec: CorpusSpec,
    frozen: tuple[CarriedColumn, ...] | None = None,
    modality: str | None = None,
    sources: tuple[Source, ...] | None = None,
) -> Corpus:
    """Understand the sources of a corpus; only their beginnings are read.

    Args:
        spec: what was asked for.
        frozen: the carried columns of an existing store, which `spec.columns` must agree with.
        modality: what the encoder embeds; decides where a table holds both images and texts.
        sources: of this very spec, where they have been opened already.

    Raises:
        CorpusError: a source is missing, empty or of an unknown type, or a column is missing.
        UsageError: the flags do not fit the sources.
    """
    sources = sources or open_sources(spec)
    kind = _corpus_kind(spec, sources, modality)
    tables = [source for source in sources if source.table is not None]
    for source in tables:
        if kind == "text":
            text_column(source, spec)
        else:
            image_column(source, spec.image_column)
        if spec.id_column:
            require_column(source, spec.id_column, "--id-column")
    columns = carried_columns(spec, kind, sources, frozen)
    positional = tuple(
        source.label
        for source in tables
        if id_column(source, spec.id_column) is None and not (kind == "image" and source.is_url_list)
    )
    return Corpus(spec, kind, sources, columns, positional)


def _corpus_kind(spec: CorpusSpec, sources: tuple[Source, ...], modality: str | None) -> str:
    has_archives = any(source.is_image_archive for source in sources)
    wanted = spec.kind or ("text" if spec.text_column else "image" if has_archives else modality)
    kinds = {_source_kind(source, spec, wanted): source.path for source in sources}
    if len(kinds) > 1:
        raise UsageError(
            f"{kinds['image']} is a folder of images and {kinds['text']} a table of texts",
            "Extract them to two stores, or pass --image-column for a table of image paths",
        )
    (kind,) = kinds
    if spec.kind and spec.kind != kind:
        hint = "Pass --image-column for a table of images" if kind == "text" else "A folder or tar is read as images"
        raise UsageError(f"{next(iter(kinds.values()))} holds {kind}s, not {spec.kind}s", hint)
    if kind == "image" and spec.text_column:
        raise UsageError(f"--text-column {spec.text_column} does not apply to images", "Leave it out")
    return kind


def _source_kind(source: Source, spec: CorpusSpec, wanted: str | None) -> str:
    if source.is_image_archive or spec.image_column:
        return "image"
    return "image" if wanted == "image" and image_candidates(source) else "text"


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without strings that no file can hold: an item of which one is not Unicode is a failed item."""
    for name, value in row.items():
        if isinstance(value, str) and not value.isascii() and name not in _CHECKED_BEFORE:
            what = {"item_id": "the id", "locator": "the path"}.get(name) or f"column {name.removeprefix('c_')!r}"
            if problem := unicode_problem(what, value):
                mended = {key: printable(old) if isinstance(old, str) else old for key, old in row.items()}
                return {**mended, "identity": broken_identity(problem + row["identity"]), "problem": problem}
    return row


_CHECKED_BEFORE = ("source", "content", "identity", "problem")


def _array(name: str, values: list[Any], schema: pa.Schema) -> pa.Array:
    try:
        return pa.array(values, schema.field(name).type)
    except (pa.ArrowException, OverflowError) as error:
        raise CorpusError(
            f"a value of column {name.removeprefix('c_')!r} is not a {schema.field(name).type} ({error})",
            "Mend the value, or do not carry the column",
        ) from error
