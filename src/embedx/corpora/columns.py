"""The rules of columns: which holds the text, which the id, which are carried and as what type."""

from __future__ import annotations

from collections import Counter

from embedx.core.errors import CorpusError, UsageError
from embedx.core.specs import CorpusSpec
from embedx.corpora.sources import Source
from embedx.store.listing import ListingColumns
from embedx.store.schema import RESERVED, CarriedColumn, is_column_name


def text_column(source: Source, spec: CorpusSpec) -> str:
    """Return the name of a table's text column.

    Raises:
        CorpusError: it is missing, or there are several candidates.
    """
    if spec.text_column:
        require_column(source, spec.text_column, "--text-column")
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


def id_column(source: Source, given: str | None) -> str | None:
    """Return the name of a table's id column; None if its ids are row numbers."""
    return given or next((name for name in ("item_id", "id") if name in source.columns), None)


def require_column(source: Source, name: str, flag: str) -> None:
    """Raise a CorpusError unless a table has a column."""
    if name not in source.columns:
        raise CorpusError(
            f"{source.path} has no column {name!r} ({flag})",
            f"Its columns: {', '.join(source.columns) or 'none'}",
        )


def carried_columns(
    spec: CorpusSpec, kind: str, sources: tuple[Source, ...], frozen: tuple[CarriedColumn, ...] | None
) -> ListingColumns:
    """Decide what a store carries beside vectors.

    Args:
        spec: what was asked for.
        kind: image or text.
        sources: all of the corpus.
        frozen: the carried columns of an existing store.

    Raises:
        CorpusError: a source lacks a column.
        UsageError: a name that Delta does not take, or another set than the store's.
    """
    content = text_column(next(s for s in sources if s.table is not None), spec) if kind == "text" else None
    default = _default_names(kind, sources)
    if spec.columns is None and frozen is not None:
        names = [column.name for column in frozen]
    elif spec.columns is None:
        names = default
    else:
        names = list(dict.fromkeys([*(default if spec.columns else []), *spec.columns]))
    if content is not None and content not in names and "text" in names and not _all_have(sources, "text"):
        # The text is carried under the name it has in the source.
        names = [content if name == "text" else name for name in names]
    for source in sources:
        for name in names:
            built_in = name in default if source.table is None else name == "path" and kind == "image"
            if not built_in:
                require_column(source, name, "--columns")
    _check_names(names)
    carried = tuple(CarriedColumn(name, _common_type(name, sources)) for name in names)
    _check_frozen(carried, frozen)
    return ListingColumns(frozen if frozen is not None else carried, content if content in names else None)


def _default_names(kind: str, sources: tuple[Source, ...]) -> list[str]:
    has_folders = any(source.table is None for source in sources)
    return (["label"] if has_folders else []) + (["path"] if kind == "image" else ["text"])


def _all_have(sources: tuple[Source, ...], name: str) -> bool:
    return all(name in source.columns for source in sources)


def _check_names(names: list[str]) -> None:
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
    types = {source.columns.get(name, "string") if source.is_parquet else "string" for source in sources}
    only = types.pop() if len(types) == 1 else "string"
    return "string" if only == "other" else only
