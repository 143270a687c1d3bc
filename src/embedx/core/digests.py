"""Fingerprints and digests: what identifies an encoder, an item's content and a published file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def canonical_json(value: Any) -> str:
    """Serialise to JSON in which equal values give equal text: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(identity: Any) -> str:
    """Return the sha256 (hex) of a JSON-able identity."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return the sha256 (hex) over names, dtypes, shapes and bytes of tensors, independent of their order.

    A renamed file keeps its digest; one changed weight changes it.
    """
    digest = hashlib.sha256()
    for name, array in sorted(tensors, key=lambda pair: pair[0]):
        array = np.ascontiguousarray(array)
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stat_token(path: Path) -> str:
    """Return a cheap token that changes when a file is likely to have changed: size and mtime in ns."""
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"
