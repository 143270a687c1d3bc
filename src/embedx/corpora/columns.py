"""The rules of columns: which holds the text or image, which the id, which are carried and as what type."""

from __future__ import annotations

from collections import Counter

from embedx.core.errors import CorpusError, UsageError
from embedx.core.specs import CorpusSpec
from embedx.corpora.locators import is_remote
from embedx.corpora.sources import Source
from embedx.store.listing import ListingColumns
from embedx.store.schema import RESERVED, CarriedColumn, is_column_name

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
"""What a column of image bytes is called, where there are several columns of bytes."""

PLACE_NAMES = ("image", "image_path", "path", "file_name", "filename", "image_url", "url")
"""What a column of paths or URLs of images is called."""


def image_column(source: Source, given: str | None) -> str:
    """Return the name of a table's image column: of images, bytes, paths or URLs.

    Raises:
        CorpusError: it is missing, or there are several candidates.
    """
    if given:
        require_column(source, given, "--image-column")
        return given
    found = image_candidates(source)
    if len(found) == 1:
        return found[0]
    what = f"several columns that may hold images ({', '.join(found)})" if found else "no column of images"
    raise CorpusError(
        f"{source.path} has {what}", f"Name it with --image-column; its columns: {', '.join(source.columns)}"
    )


def image_candidates(source: Source) -> list[str]:
    """Return the columns of a table that hold images: Hugging Face's kind, else bytes, else paths or URLs."""
    if source.table is not None and source.table.format == "txt":
        # A text may be a path by chance, a URL hardly.
        piece = next(source.table.iterate_pieces(), None)
        return ["text"] if piece and all(is_remote(str(row["text"]).strip()) for row in piece.rows[:100]) else []
    images = [name for name, kind in source.columns.items() if kind == "image"]
    binary = [name for name, kind in source.columns.items() if kind == "binary"]
    if len(binary) > 1:
        binary = [name for name in binary if name.lower() in IMAGE_NAMES]
    places = [name for name, kind in source.columns.items() if kind == "string" and name.lower() in PLACE_NAMES]
    return images or binary or places


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
    known = source.known_columns()
    if name not in known:
        raise CorpusError(
            f"{source.path} has no column {name!r} ({flag})",
            f"Its columns: {', '.join(known) or 'none'}",
        )
    if flag == "--columns" and known[name] in ("binary", "image"):
        raise CorpusError(
            f"column {name!r} of {source.path} holds bytes, which cannot be carried", "Leave it out of --columns"
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
            built_in = kind == "image" and (name == "path" or (name == "label" and source.is_image_archive))
            if not built_in:
                require_column(source, name, "--columns")
    _check_names(names)
    carried = tuple(CarriedColumn(name, _common_type(name, sources)) for name in names)
    _check_frozen(carried, frozen)
    return ListingColumns(frozen if frozen is not None else carried, content if content in names else None)


def _default_names(kind: str, sources: tuple[Source, ...]) -> list[str]:
    has_labels = any(source.is_image_archive for source in sources)
    return (["label"] if has_labels else []) + (["path"] if kind == "image" else ["text"])


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
    types = {source.columns.get(name, "string") if source.is_typed else "string" for source in sources}
    only = types.pop() if len(types) == 1 else "string"
    return only if only in ("long", "double", "boolean") else "string"
