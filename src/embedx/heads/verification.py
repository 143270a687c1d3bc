"""Whether a head holds what its card promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedx.core.digests import file_sha256
from embedx.core.errors import StoreError
from embedx.heads.folder import HeadFiles
from embedx.heads.head import open_head


def find_problems(path: Path) -> list[str]:
    """Return what is wrong with a head, one sentence each; empty when it can be trusted to be what it says.

    Checks digests and sizes of all files, card, types, classes, dim, and that every weight is finite.
    """
    try:
        head = open_head(path)
    except StoreError as error:
        return [str(error)]
    problems = []
    folder = HeadFiles(path).folder
    for name, described in head.card.files.items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != described["bytes"]:
            problems.append(f"{name} has {file.stat().st_size:,} bytes, the card says {described['bytes']:,}")
        elif file_sha256(file) != described["sha256"]:
            problems.append(f"{name} is not the file that the card describes (sha256 differs)")
    classifier = head.estimator.named_steps["classify"]
    if not (np.isfinite(classifier.coef_).all() and np.isfinite(classifier.intercept_).all()):
        problems.append("head.skops has weights that are not finite")
    return problems
