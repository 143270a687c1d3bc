"""The verify step: whether a store, index or head holds what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedx.core.errors import StoreError
from embedx.core.long_texts import TRUNCATED
from embedx.core.reports import Report
from embedx.core.specs import NO_ACCESS, Access
from embedx.corpora.content import read_image
from embedx.inference.clock import Clock
from embedx.inference.gates import measure_fidelity
from embedx.steps.artefacts import artefact_kind
from embedx.steps.encoding import open_encoder_session
from embedx.steps.long_texts import embed_texts
from embedx.store.reader import Store, open_store
from embedx.store.verification import find_store_problems

DEEP_MIN_COSINE = 0.999
"""Between stored vectors and re-embedded ones, whatever the precision."""


def verify(path: Path, deep: int = 0, access: Access = NO_ACCESS) -> Report:
    """Check a store, index or head.

    Args:
        path: its folder.
        deep: re-embed this many items of a store, spread evenly, and compare.
        access: how their images are reached where these lie on other machines.

    Returns:
        `ok` and `problems`, each with the path and what is wrong.

    Raises:
        StoreError: the folder is none of the three.
    """
    kind = artefact_kind(path)
    if kind == "store":
        problems = [problem.to_dict() for problem in find_store_problems(path)]
        if deep and not problems:
            problems += _deep_problems(open_store(path), deep, access)
    elif kind == "index":
        from embedx.indexes.verification import find_problems as find_index_problems

        problems = [{"path": str(path), "message": message} for message in find_index_problems(path)]
    else:
        from embedx.heads.verification import find_problems as find_head_problems

        problems = [{"path": str(path), "message": message} for message in find_head_problems(path)]
    return {"path": str(path), "kind": kind, "ok": not problems, "problems": problems, "deep": deep}


def _deep_problems(store: Store, count: int, access: Access) -> list[dict[str, str]]:
    """Embed a sample again from what the store carries, and compare."""
    column = store.store_card.content_column if store.card.modality == "text" else "path"
    if column is None or column not in store.columns:
        raise StoreError(
            f"{store.path} carries no {'text' if store.card.modality == 'text' else 'path'} to embed again",
            "Leave out --deep, or extract with the default columns",
        )
    chosen = np.unique(np.linspace(0, store.count - 1, min(count, store.count)).astype(np.int64))
    rows, vectors = _rows(store, column, chosen)
    session = open_encoder_session(store.card.spec, store.card.fingerprint, store.precision)
    contents: list[Any] = rows.column(column).to_pylist()
    if store.card.modality == "image":
        contents = [read_image(path, access, store.store_card.jpeg_side).item for path in contents]
    # Chunks are carried as the texts that they are: nothing is left to cut.
    long = store.store_card.long
    (embedded,) = embed_texts([session], contents, TRUNCATED if long.has_rows else long, [Clock()])
    again, failures = embedded.vectors, embedded.failures
    ids = rows.column("item_id").to_pylist()
    problems = [
        {"path": str(store.path), "message": f"item {ids[position]!r} cannot be embedded again: {broken.message}"}
        for position, broken in sorted(failures.items())
    ]
    kept = [position for position in range(len(ids)) if position not in failures]
    for position, vector in zip(kept, again):
        fidelity = measure_fidelity(vector[None], vectors[position][None])
        if fidelity.raw_min < DEEP_MIN_COSINE:
            message = f"item {ids[position]!r} embeds to another vector today (cosine {fidelity.raw_min:.4f})"
            problems.append({"path": str(store.path), "message": message})
    return problems


def _rows(store: Store, column: str, chosen: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    tables, vectors, start = [], [], 0
    for batch, part in store.iterate_batches([column]):
        wanted = chosen[(chosen >= start) & (chosen < start + len(part))] - start
        tables.append(pa.Table.from_batches([batch.take(pa.array(wanted))]))
        vectors.append(part[wanted])
        start += len(part)
    return pa.concat_tables(tables), np.concatenate(vectors)
