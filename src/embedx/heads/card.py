"""The card of a head: what it is, where its data came from, and what was measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from embedx.core.errors import StoreError
from embedx.store.files import File

HEAD_FORMAT = 1
"""Version of a head's folder and card. Raise it on any change that older code would misread."""


@dataclass(frozen=True)
class HeadCard:
    """What a head says of itself; `card.json`.

    Attributes:
        kind: logistic.
        classes: in the order of the probabilities' columns.
        dim: values of a vector.
        encoder: ref, fingerprint, modality, precision and spec of the encoder that vectors must come from.
        recipe: how vectors become features, the solver, what C refers to.
        C: the chosen inverse strength of regularisation.
        C_curve: what was cross-validated.
        metrics: accuracy, macro_f1, log_loss, n, majority, on rows the judged model had not seen.
        evaluation: how they were measured, per class, the most frequent confusions.
        training: the store's path, version and count; label column; rows used and the digest of their ids
            and labels.
        converged: whether the solver reached its tolerance.
        seed: of the splits.
        threads: fits at a time and BLAS threads of each.
        files: name -> bytes, sha256.
        libraries: versions of what wrote it.
        created: UTC time, ISO 8601.
    """

    kind: str
    classes: list[str]
    dim: int
    encoder: dict[str, Any]
    recipe: dict[str, Any]
    C: float
    C_curve: list[dict[str, Any]]
    metrics: dict[str, Any]
    evaluation: dict[str, Any]
    training: dict[str, Any]
    converged: bool
    seed: int
    threads: dict[str, int]
    files: dict[str, dict[str, Any]]
    libraries: dict[str, str]
    created: str

    def to_dict(self) -> dict[str, Any]:
        """Return the file's JSON."""
        return {"format": HEAD_FORMAT, **asdict(self)}


def read_card(file: File) -> HeadCard:
    """Read a card.

    Raises:
        StoreError: it is absent, damaged, of another format or names no encoder.
    """
    try:
        data = json.loads(file.read())
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} cannot be read ({error})", "Fit the head again with embedx fit-head") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != HEAD_FORMAT:
        raise StoreError(
            f"{file} has format {found!r}, this embedx reads format {HEAD_FORMAT}",
            "Use the embedx version that wrote it, or fit the head again",
        )
    names = [field.name for field in fields(HeadCard)]
    missing = [name for name in names if name not in data]
    missing += [f"encoder.{name}" for name in ("ref", "fingerprint") if not (data.get("encoder") or {}).get(name)]
    if "head.skops" not in (data.get("files") or {}):
        missing.append("files.head.skops")
    if missing:
        raise StoreError(f"{file} lacks {', '.join(missing)}", "Fit the head again with embedx fit-head")
    return HeadCard(**{name: data[name] for name in names})
