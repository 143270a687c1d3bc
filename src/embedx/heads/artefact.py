"""`head.skops`: an estimator as plain arrays and JSON. Nothing is ever unpickled."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

from embedx.core.errors import StoreError

ALLOWED = frozenset(
    {
        ("builtins", "dict", "DictNode"),
        ("builtins", "list", "ListNode"),
        ("builtins", "tuple", "TupleNode"),
        ("builtins", "str", "JsonNode"),
        ("builtins", "str", "TypeNode"),
        ("numpy", "ndarray", "NdArrayNode"),
        ("sklearn.linear_model._logistic", "LogisticRegression", "ObjectNode"),
        ("sklearn.pipeline", "Pipeline", "ObjectNode"),
        ("sklearn.preprocessing._data", "Normalizer", "ObjectNode"),
    }
)
"""The (module, class, loader) of everything a head may hold. Ours, not the file's: a list that is read from the
file trusts whoever wrote it (mlflow GHSA-w582-9x45-8mpx). And far shorter than skops' own, which admits every
public scikit-learn class: a crafted decision tree can crash the process."""


def estimator_bytes(estimator: Any) -> bytes:
    """Serialise an estimator that consists of allowed types.

    Raises:
        ValueError: it holds another type, so that nobody could open it.
    """
    import skops.io

    data: bytes = skops.io.dumps(estimator)
    if foreign := foreign_types(data):
        raise ValueError(f"{', '.join(foreign)} may not be part of a head")
    return data


def load_estimator(data: bytes, where: str) -> Any:
    """Rebuild an estimator, if it holds allowed types only.

    Args:
        data: the content of `head.skops`.
        where: the file, for messages.

    Raises:
        StoreError: it is damaged, or holds a type that is no part of a head.
    """
    import skops.io

    try:
        foreign = foreign_types(data)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{where} is no skops file ({error})", "Fit the head again with embedx fit-head") from error
    if foreign:
        raise StoreError(
            f"{where} holds {foreign[0]}, which is no part of an embedx head; it was not loaded",
            "Do not use a head from a source you do not trust; fit it again",
        )
    try:
        return skops.io.loads(data, trusted=[])
    except Exception as error:
        raise StoreError(f"{where} cannot be loaded ({error})", "Fit the head again with embedx fit-head") from error


def foreign_types(data: bytes) -> list[str]:
    """Return the types in a skops file that are not allowed, without building any of them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        schema = json.loads(archive.read("schema.json"))
    found = {node for node in _nodes(schema) if node not in ALLOWED}
    return sorted(f"{module}.{name}" for module, name, _ in found)


def _nodes(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if "__loader__" in item or "__class__" in item:
                yield str(item.get("__module__")), str(item.get("__class__")), str(item.get("__loader__"))
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
