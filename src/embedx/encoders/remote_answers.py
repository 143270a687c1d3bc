"""What remote services answer, checked to the last number: OpenAI's `/v1/embeddings` and TEI's `/embed`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class BadAnswerError(Exception):
    """A service answered, but not with one good vector for each text in an order that can be known."""


@dataclass(frozen=True)
class Answer:
    """Vectors in the order of the texts.

    Attributes:
        vectors: (n, dim) float32, finite.
        tokens: that the service says it has read; 0 where it does not say.
    """

    vectors: np.ndarray
    tokens: int = 0


def openai_body(model: str, texts: Sequence[str], dimensions: int | None, truncate: bool) -> dict[str, Any]:
    """Return the body of a request to `/v1/embeddings`, which knows no truncation."""
    body: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "float"}
    return body if dimensions is None else {**body, "dimensions": dimensions}


def tei_body(model: str, texts: Sequence[str], dimensions: int | None, truncate: bool) -> dict[str, Any]:
    """Return the body of a request to text-embeddings-inference's own route, which serves one model."""
    body: dict[str, Any] = {"inputs": list(texts), "truncate": truncate}
    return body if dimensions is None else {**body, "dimensions": dimensions}


def read_openai(data: bytes, count: int, dim: int | None) -> Answer:
    """Read `{"data": [{"index": 0, "embedding": [...]}, ...], "usage": {...}}`; items may come in any order.

    Raises:
        BadAnswerError: it is not that, for `count` texts and vectors of `dim` values.
    """
    answer = _json(data)
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadAnswerError("the answer holds no list 'data'")
    places = [item.get("index") for item in items]
    if sorted(place for place in places if type(place) is int) != list(range(count)) or len(places) != count:
        raise BadAnswerError(f"the answer's indices are not those of the {count} texts")
    ordered: list[Any] = [None] * count
    for place, item in zip(places, items):
        ordered[place] = item.get("embedding")
    return Answer(_vectors(ordered, count, dim), _tokens(answer))


def read_tei(data: bytes, count: int, dim: int | None) -> Answer:
    """Read `[[...], ...]`, in the order of the texts.

    Raises:
        BadAnswerError: it is not that, for `count` texts and vectors of `dim` values.
    """
    return Answer(_vectors(_json(data), count, dim))


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise BadAnswerError(f"the answer is not whole JSON ({error})") from None


def _vectors(rows: Any, count: int, dim: int | None) -> np.ndarray:
    if not isinstance(rows, list) or len(rows) != count:
        raise BadAnswerError(f"the answer does not hold {count} vectors")
    sizes = {len(row) if isinstance(row, list) else 0 for row in rows}
    wanted = dim or max(sizes)
    if sizes != {wanted} or not wanted:
        found = ", ".join(map(str, sorted(sizes)))
        raise BadAnswerError(f"the answer's vectors have {found} values instead of {wanted or 'some'}")
    try:
        with np.errstate(over="ignore"):
            vectors = np.array(rows, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise BadAnswerError("the answer's vectors hold something else than numbers") from None
    if vectors.shape != (count, wanted) or not np.isfinite(vectors).all():
        raise BadAnswerError("the answer's vectors hold NaN or infinite values")
    return vectors


def _tokens(answer: dict[str, Any]) -> int:
    usage = answer.get("usage")
    tokens = usage.get("total_tokens", usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and tokens > 0 else 0
