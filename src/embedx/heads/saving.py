"""Writing a head: estimator, page and card, in one atomic step."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from embedx.core.places import Place, Url
from embedx.core.threads import plan_threads
from embedx.heads.artefact import estimator_bytes
from embedx.heads.card import HeadCard
from embedx.heads.fit import RECIPE, FittedHead
from embedx.heads.folder import new_head
from embedx.heads.objects import write_head
from embedx.heads.page import render_page

KIND = "logistic"


def save_head(
    place: Place, fitted: FittedHead, encoder: dict[str, Any], training: dict[str, Any], seed: int
) -> HeadCard:
    """Write a head, in place of an older one if there is one.

    Args:
        place: where to.
        fitted: what was fitted.
        encoder: the card's key: which encoder the vectors come from.
        training: the card's key: which rows were used.
        seed: of the splits.

    Raises:
        StoreError: the folder is something else or cannot be written; what was there stays.
    """
    classifier = fitted.estimator.named_steps["classify"]
    card = HeadCard(
        kind=KIND,
        classes=list(fitted.classes),
        dim=int(classifier.n_features_in_),
        encoder=encoder,
        recipe=RECIPE,
        C=fitted.c,
        C_curve=[point.to_dict() for point in fitted.curve],
        metrics=fitted.evaluation.scores.to_dict(),
        evaluation={**fitted.evaluation.to_dict(), **fitted.evaluation.scores.details()},
        training=training,
        converged=fitted.converged,
        seed=seed,
        threads={"fits": fitted.n_threads, "blas": plan_threads(fitted.n_threads).blas},
        files={},
        libraries=_library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    contents = {"head.skops": estimator_bytes(fitted.estimator), "report.html": render_page(card).encode()}
    card = replace(card, files={name: _describe(data) for name, data in contents.items()})
    contents["card.json"] = (json.dumps(card.to_dict(), indent=2, ensure_ascii=False) + "\n").encode()
    if isinstance(place, Url):
        write_head(place, contents)
        return card
    with new_head(place) as files:
        for name, data in contents.items():
            (files.folder / name).write_bytes(data)
    return card


def _describe(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _library_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("embedx", "numpy", "scikit-learn", "skops"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # e.g. run from a checkout
            continue
    return found
