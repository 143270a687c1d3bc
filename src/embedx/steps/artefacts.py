"""What a folder is, and what there is to know of it: stores, indexes and heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embedx.core.errors import StoreError
from embedx.core.places import Place
from embedx.core.reports import Report
from embedx.store import delta, runs
from embedx.store.files import open_files
from embedx.store.layout import StoreLayout
from embedx.store.reader import open_store
from embedx.store.shards import read_arrow


def artefact_kind(path: Place) -> str:
    """Return store, index or head.

    Raises:
        StoreError: the folder is none of them.
    """
    folders, files = open_files(path).folders()
    if not folders and not files and not (isinstance(path, Path) and path.exists()):
        raise StoreError(f"{path} does not exist", "Check the path")
    if "_embedx" in folders:
        return "store"
    if "CURRENT" in files and "versions" in folders:
        return "index"
    if "card.json" in files:
        return "head"
    raise StoreError(f"{path} is no store, index or head", "Pass a folder that embedx has made")


def inspect(path: Place) -> Report:
    """Say what a store, index or head is: counts, sizes, encoder, versions."""
    kind = artefact_kind(path)
    if kind == "store":
        return _inspect_store(path)
    files = open_files(path)
    name = "card.json"
    try:
        if kind == "index":
            name = f"versions/{files.read('CURRENT').decode().strip()}/card.json"
        card: dict[str, Any] = json.loads(files.read(name))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path / name} cannot be read ({error})", f"Run embedx verify {path}") from error
    return {"path": str(path), "kind": kind, "card": card}


def _inspect_store(path: Place) -> Report:
    store = open_store(path)
    layout = StoreLayout(path)
    history = runs.read_history(layout)
    card = store.card
    return {
        "path": str(path),
        "kind": "store",
        "version": store.version,
        "count": store.count,
        "dim": store.dim,
        "columns": store.columns,
        "encoder": {
            "ref": card.ref,
            "fingerprint": card.fingerprint,
            "precision": store.precision,
            "modality": card.modality,
            "normalized": card.normalized,
        },
        "files": [str(file) for file in store.files],
        "bytes": sum(file.size_bytes for file in store.snapshot.files),
        "failures": len(list_failures(path)),
        "runs": list(history.published),
        "interrupted_runs": list(history.interrupted),
    }


def list_failures(path: Place) -> list[dict[str, Any]]:
    """Return the items of a store that have no vector: id, source, stage, error, message, retryable."""
    layout = StoreLayout(path)
    if artefact_kind(path) != "store":
        raise StoreError(f"{path} is no store", "Pass the folder given as --out to embedx extract")
    history = runs.read_history(layout)
    tables = []
    if latest := runs.latest_failures(layout, history):
        tables.append(read_arrow(latest))
    for name in history.interrupted:
        # A run that stopped at --max-failures has published nothing, but its failures are what one asks for.
        run = layout.run(name)
        tables += [runs.read_attempt_failures(run, receipt) for _, receipt in runs.find_finished(layout, name)]
    names = {"item_id": "id"}
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        for row in table.drop_columns(["identity"]).to_pylist():
            found[row["item_id"]] = {names.get(key, key): value for key, value in row.items()}
    return list(found.values())


def list_history(path: Place) -> list[dict[str, Any]]:
    """Return the versions of a store, newest first."""
    if artefact_kind(path) != "store":
        raise StoreError(f"{path} is no store", "Pass the folder given as --out to embedx extract")
    return delta.history(path)
