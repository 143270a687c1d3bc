"""Verifying a store: everything that is promised of its files, checked against what they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from embedx.core.digests import fingerprint
from embedx.core.errors import StoreError
from embedx.core.places import Place
from embedx.store import runs
from embedx.store.database import Database, open_database
from embedx.store.delta import DataFile
from embedx.store.files import File, as_file, open_files
from embedx.store.layout import StoreLayout
from embedx.store.reader import Store, open_store
from embedx.store.schema import vectors_from_array
from embedx.store.shards import is_whole_arrow, read_arrow, read_receipt

NORM_TOLERANCE = 2e-3
"""A unit vector's length after rounding to 10 mantissa bits."""


_IDS = pa.schema([pa.field("item_id", pa.string()), pa.field("parent_id", pa.string())])


@dataclass(frozen=True)
class Problem:
    """Something that is not as promised: the file, and what is wrong with it."""

    path: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """Return the JSON shape of reports."""
        return {"path": self.path, "message": self.message}


def find_store_problems(path: Place) -> list[Problem]:
    """Check a store whole: card, log, files, receipts, digests, ids, vectors; every problem names its file.

    Raises:
        StoreError: there is no store.
    """
    layout = StoreLayout(path)
    try:
        store = open_store(path)
    except StoreError as error:
        if not layout.exists():
            raise
        return [Problem(str(path), error.message)]
    problems = list(_card_problems(store))
    history = runs.read_history(layout)
    digests, damaged = _promised_digests(layout, history)
    problems += damaged
    readable = []
    for file in store.snapshot.files:
        with TemporaryDirectory(prefix="embedx-verify-") as folder:
            found = list(_file_problems(store, file, digests, Path(folder)))
        problems += found
        if not found:
            readable.append(file.path)
    with TemporaryDirectory(prefix="embedx-verify-") as folder, open_database(Path(folder)) as database:
        problems += _duplicate_problems(store, database, readable)
        problems += _failure_problems(store, database, runs.latest_failures(layout, history), readable)
    return problems


def _card_problems(store: Store) -> Iterator[Problem]:
    where = "_embedx/encoder.json"
    card = store.card
    if fingerprint(card.identity) != card.fingerprint:
        yield Problem(where, "its fingerprint does not belong to its identity: the card was changed")
    canaries = np.array(store.store_card.canaries, dtype=np.float32)
    if canaries.ndim != 2 or canaries.shape[1] != card.dim or not np.isfinite(canaries).all():
        yield Problem(where, f"its canary vectors are not finite and {card.dim} long")


def _promised_digests(layout: StoreLayout, history: runs.RunHistory) -> tuple[dict[str, dict], list[Problem]]:
    promised: dict[str, dict] = {}
    problems = []
    for identities in runs.identity_files(layout, history):
        if not is_whole_arrow(identities):
            problems.append(Problem(identities.name, "is damaged: the next run cannot compare"))
    for name in history.published:
        file = layout.run(name).file("files.json")
        try:
            promised.update({entry["path"]: entry for entry in json.loads(file.read())})
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(Problem(file.name, f"cannot be read ({error})"))
    return promised, problems


def _file_problems(store: Store, file: DataFile, digests: dict[str, dict], scratch: Path) -> Iterator[Problem]:
    try:
        path = open_files(store.path).fetch(file.path, scratch)
    except FileNotFoundError:
        path = scratch / "missing"
    if not path.is_file():
        yield Problem(file.path, "is missing")
        return
    size = path.stat().st_size
    if size != file.size_bytes:
        yield Problem(file.path, f"has {size} bytes, the log says {file.size_bytes}")
        return
    promised = digests.get(file.path)
    if promised is None:
        yield Problem(file.path, "is in the log, but no run lists it")
    else:
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != promised["sha256"]:
                yield Problem(file.path, "its sha256 is not what was published: bytes were changed")
                return
    yield from _receipt_problems(store, file, path)
    try:
        yield from _content_problems(store, file, path)
    except (OSError, ValueError, pa.ArrowException) as error:
        yield Problem(file.path, f"cannot be read ({' '.join(str(error).split())[:200]})")


def _receipt_problems(store: Store, file: DataFile, path: Path) -> Iterator[Problem]:
    try:
        receipt = read_receipt(as_file(path))
    except StoreError as error:
        yield Problem(file.path, error.message)
        return
    if receipt.rows != file.rows:
        yield Problem(file.path, f"its receipt says {receipt.rows} rows, the log {file.rows}")
    if receipt.fingerprint != store.card.fingerprint:
        yield Problem(
            file.path,
            f"was made with encoder {receipt.fingerprint[:12]}, the store's card says {store.card.fingerprint[:12]}",
        )
    if receipt.precision != store.precision:
        yield Problem(file.path, f"was made in {receipt.precision}, the store's card says {store.precision}")


def _content_problems(store: Store, file: DataFile, path: Path) -> Iterator[Problem]:
    content = store.store_card.content_column
    names = ["item_id", "parent_id", "digest", "vector", *([content] if content else [])]
    rows = 0
    opened = pq.ParquetFile(path, page_checksum_verification=True)
    for batch in opened.iter_batches(8192, columns=names):
        ids = batch.column("item_id")
        vectors = vectors_from_array(batch.column("vector"), store.dim)
        rows += len(vectors)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            yield Problem(file.path, f"item {ids[int(np.argmin(finite))].as_py()!r} has a vector that is not finite")
        if store.card.normalized:
            off = np.abs(np.linalg.norm(vectors, axis=1) - 1) > NORM_TOLERANCE
            if off.any():
                yield Problem(file.path, f"item {ids[int(np.argmax(off))].as_py()!r} has a vector of length not 1")
        if content:
            yield from _digest_problems(file, batch, content)
    if rows != file.rows:
        yield Problem(file.path, f"has {rows} rows, the log says {file.rows}")


def _digest_problems(file: DataFile, batch: pa.RecordBatch, content: str) -> Iterator[Problem]:
    # A chunk has the digest of the text that it is a part of.
    batch = batch.filter(pc.is_null(batch.column("parent_id")))
    for item_id, digest, text in zip(*(batch.column(name).to_pylist() for name in ("item_id", "digest", content))):
        if xxhash.xxh3_128_hexdigest((text or "").encode()) != digest:
            yield Problem(file.path, f"item {item_id!r} has another {content} than its digest says")
            return


def _duplicate_problems(store: Store, database: Database, files: list[str]) -> list[Problem]:
    if not files:
        return []
    scan, parameters = database.scan(open_files(store.path), files, _IDS)
    rows = database.do(
        f"""SELECT item_id, list(__embedx_file) FROM {scan}
            GROUP BY item_id HAVING count(*) > 1 ORDER BY item_id LIMIT 5""",
        parameters,
    )
    return [Problem(found[0], f"item {item_id!r} stands {len(found)} times in the store") for item_id, found in rows]


def _failure_problems(store: Store, database: Database, failures: File | None, files: list[str]) -> list[Problem]:
    if failures is None or not files:
        return []
    try:
        failed = read_arrow(failures).column("item_id").to_pylist()
    except StoreError as error:
        return [Problem(failures.name, error.message)]
    if not failed:
        return []
    scan, parameters = database.scan(open_files(store.path), files, _IDS)
    rows = database.do(
        f"""SELECT DISTINCT coalesce(parent_id, item_id) AS owner FROM {scan}
            WHERE owner IN (SELECT unnest(?)) LIMIT 5""",
        [*parameters, failed],
    )
    return [Problem(failures.name, f"item {item_id!r} is listed as failed but has a vector") for (item_id,) in rows]
