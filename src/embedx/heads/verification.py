"""Whether a head holds what its card promises."""

from __future__ import annotations

import hashlib

import numpy as np

from embedx.core.errors import StoreError
from embedx.core.places import Place
from embedx.heads.head import open_head
from embedx.store.files import open_files


def find_problems(path: Place) -> list[str]:
    """Return what is wrong with a head, one sentence each; empty when it can be trusted to be what it says.

    Checks digests and sizes of all files, card, types, classes, dim, and that every weight is finite.
    """
    try:
        head = open_head(path)
    except StoreError as error:
        return [str(error)]
    problems = []
    files = open_files(path)
    for name, described in head.card.files.items():
        if name == "head.skops":  # Opening has compared it.
            continue
        try:
            data = files.read(name)
        except OSError:
            problems.append(f"{name} is missing")
            continue
        if len(data) != described["bytes"]:
            problems.append(f"{name} has {len(data):,} bytes, the card says {described['bytes']:,}")
        elif hashlib.sha256(data).hexdigest() != described["sha256"]:
            problems.append(f"{name} is not the file that the card describes (sha256 differs)")
    classifier = head.estimator.named_steps["classify"]
    if not (np.isfinite(classifier.coef_).all() and np.isfinite(classifier.intercept_).all()):
        problems.append("head.skops has weights that are not finite")
    return problems
