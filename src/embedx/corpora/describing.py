"""What was understood of a source, in words: shown by a dry run, so that a wrong guess is seen before it costs."""

from __future__ import annotations

from typing import Any

from embedx.core.redaction import redact
from embedx.core.specs import CorpusSpec
from embedx.corpora.columns import id_column, image_column, text_column
from embedx.corpora.sources import Source

CONTENT_CHARACTERS = 100


def describe_source(
    source: Source, spec: CorpusSpec, kind: str, first: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return the JSON shape of a source.

    Args:
        source: to describe.
        spec: what was asked for.
        kind: image or text.
        first: source -> its first rows as they were listed.

    Returns:
        label, path, kind, columns (name -> type), content (how), ids (rule), labels (rule), and the first items,
        each with id, content and perhaps a label or problem.
    """
    return {
        "label": source.label,
        "path": redact(source.path),
        "kind": _kind(source, spec, kind),
        "columns": dict(source.columns),
        "ids": _ids(source, spec, kind),
        "labels": _labels(source),
        "first": [_item(row, kind) for row in first.get(source.label, [])],
    }


def _kind(source: Source, spec: CorpusSpec, kind: str) -> str:
    if source.table is None:
        return "tar of images" if source.kind == "tar" else "folder of images"
    if kind == "text":
        return f"{source.table.format} table, text in {text_column(source, spec)!r}"
    name = image_column(source, spec.image_column)
    held = {"image": "images", "binary": "image bytes"}.get(source.columns.get(name, ""), "paths or URLs of images")
    return f"{source.table.format} table, {held} in {name!r}"


def _ids(source: Source, spec: CorpusSpec, kind: str) -> str:
    prefix = f"{source.label}/ + " if spec.id_prefix else ""
    if source.table is None:
        return prefix + ("name of the member" if source.kind == "tar" else "path in the folder")
    if name := id_column(source, spec.id_column):
        return f"{prefix}column {name!r}"
    return prefix + ("the URL" if kind == "image" and source.is_url_list else "row numbers")


def _labels(source: Source) -> str:
    if source.kind == "tar":
        return "the .cls beside the image, else the first folder of its name"
    return "first folder of the path" if source.table is None else "carried columns only"


def _item(row: dict[str, Any], kind: str) -> dict[str, Any]:
    content = str(row.get("content")) if kind == "text" else redact(str(row.get("locator")))
    item = {"id": row["item_id"], "content": content[:CONTENT_CHARACTERS]}
    if row.get("c_label") is not None:
        item["label"] = row["c_label"]
    if row.get("problem"):
        item["problem"] = row["problem"]
    return item
