"""The card of an index: what it holds, where that came from, and what was measured on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from embedx.core.errors import StoreError

INDEX_FORMAT = 1
"""Version of an index's folder and card. Raise it on any change that older code would misread."""


@dataclass(frozen=True)
class IndexCard:
    """What one version of an index says of itself; `card.json`.

    Attributes:
        factory: the structure, in FAISS's notation.
        why: why this structure.
        metric: cosine, ip or l2.
        score: what a score means.
        count: vectors.
        dim: values of a vector.
        columns: the carried columns, without `item_id`.
        store: path and version of the store it was built from.
        encoder: ref, fingerprint, modality, precision and spec of the encoder that the vectors come from; its space
            and the specs of the encoders that embed queries into it, which cards of older versions lack; where its
            weights cannot be seen, its canary vectors.
        recall: k, value, target, n_queries, method.
        speed: qps, latency_ms {median, p95}, threads, method.
        bytes: of all files but the card.
        files: name -> bytes, sha256.
        libraries: versions of what wrote it.
        created: UTC time, ISO 8601.
    """

    factory: str
    why: str
    metric: str
    score: str
    count: int
    dim: int
    columns: list[str]
    store: dict[str, Any]
    encoder: dict[str, Any]
    recall: dict[str, Any]
    speed: dict[str, Any]
    bytes: int
    files: dict[str, dict[str, Any]]
    libraries: dict[str, str]
    created: str

    def to_dict(self) -> dict[str, Any]:
        """Return the file's JSON."""
        return {"format": INDEX_FORMAT, **asdict(self)}


def read_card(path: Path) -> IndexCard:
    """Read a card.

    Raises:
        StoreError: it is absent, damaged, of another format or names no encoder.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error})", "Build the index again with embedx index") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != INDEX_FORMAT:
        raise StoreError(
            f"{path} has format {found!r}, this embedx reads format {INDEX_FORMAT}",
            "Use the embedx version that wrote it, or build the index again",
        )
    names = [field.name for field in fields(IndexCard)]
    missing = [name for name in names if name not in data]
    missing += [
        f"encoder.{name}" for name in ("ref", "fingerprint", "spec") if not (data.get("encoder") or {}).get(name)
    ]
    if missing:
        raise StoreError(f"{path} lacks {', '.join(missing)}", "Build the index again with embedx index")
    return IndexCard(**{name: data[name] for name in names})
