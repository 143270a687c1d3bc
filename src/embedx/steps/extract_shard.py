"""What a worker does: embed the rows of a shard for every store that needs them, and commit each store's file."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedx.core.contracts import Broken, ItemFailure
from embedx.steps.rows import StoreColumns
from embedx.steps.shard_job import Part, ShardJob, open_sessions
from embedx.steps.shard_rows import EmbeddedRows, Reader, embed_rows, embed_rows_together
from embedx.store.schema import round_mantissa
from embedx.store.shards import Receipt, encode_shard, read_receipt, write_failures, write_shard


def probe_rows(part: Part, start: int, stop: int) -> int:
    """Embed some rows of a shard and keep nothing: does it survive? Returns how many rows."""
    rows = part.read_rows().slice(start, stop - start)
    (session,) = open_sessions([part.job])
    embed_rows(Reader(part.job, session), rows)
    return rows.num_rows


@dataclass(frozen=True)
class _Began:
    """When a task began: since the epoch, and by the clock that never jumps."""

    epoch: float = field(default_factory=time.time)
    counter: float = field(default_factory=time.perf_counter)


def extract_shards(parts: Sequence[Part], quarantined: tuple[tuple[int, str], ...] = ()) -> list[Receipt]:
    """Embed the same rows for some stores and commit each one's shard; returns the receipts of the files that stand.

    Args:
        parts: one for each store; their shards have the same rows.
        quarantined: (position, why) of rows that must not be tried: they kill or hang workers.
    """
    began = _Began()
    receipts = {place: read_receipt(part.file) for place, part in enumerate(parts) if part.file.exists()}
    left = [place for place in range(len(parts)) if place not in receipts]
    if left:
        readers = _readers([parts[place] for place in left])
        rows = _quarantine(readers[0].job, parts[left[0]].read_rows(), quarantined)
        for number, embedded in embed_rows_together(readers, rows):
            receipts[left[number]] = _commit(parts[left[number]], readers[number], rows, embedded, began)
    return [receipts[place] for place in range(len(parts))]


def _readers(parts: Sequence[Part]) -> list[Reader]:
    sessions = open_sessions([part.job for part in parts])
    return [Reader(part.job, session) for part, session in zip(parts, sessions)]


def _commit(part: Part, reader: Reader, rows: pa.RecordBatch, embedded: EmbeddedRows, began: _Began) -> Receipt:
    """Write one store's shard file; its failures before it."""
    job, runtime = part.job, reader.session.embedder.runtime
    table = _build_table(job, rows, embedded)
    failures = _item_failures(rows, embedded.result.failures)
    failures_file = ""
    if failures:
        attempt = job.layout.attempt_failures(part.shard, secrets.token_hex(4))
        write_failures(attempt, failures)
        failures_file = attempt.name.rpartition("/")[2]
    receipt = Receipt(
        run=job.run,
        shard=part.shard,
        fingerprint=job.fingerprint,
        precision=job.precision,
        rows=table.num_rows,
        failed=len(failures),
        failures_file=failures_file,
        seconds={
            **{name: round(value, 3) for name, value in reader.clock.seconds.items()},
            "total": round(time.perf_counter() - began.counter, 3),
        },
        counts={**embedded.result.counts, **embedded.read},
        runtime=runtime.way,
        host=f"{socket.gethostname()}:{os.getpid()}",
        started=round(began.epoch, 3),
        parents=rows.num_rows - len(failures) if job.long.has_rows else None,
        **id_range(table),
    )
    return write_shard(part.file, table, receipt)


@dataclass(frozen=True)
class Sample:
    """What embedding some rows for an estimate took, for one store.

    Attributes:
        items: tried.
        failed: of these.
        seconds: busy seconds per stage.
        file_bytes: of a shard file of these rows.
        counts: sums, as in a receipt.
    """

    items: int
    failed: int
    seconds: dict[str, float]
    file_bytes: int
    counts: dict[str, int]


def sample_rows(parts: Sequence[Part], start: int, stop: int) -> list[Sample]:
    """Do with some rows of a shard what `extract_shards` would, and keep nothing; returns a sample for each part."""
    readers = _readers(parts)
    rows = parts[0].read_rows().slice(start, stop - start)
    samples: dict[int, Sample] = {}
    for place, embedded in embed_rows_together(readers, rows):
        job, table = readers[place].job, _build_table(readers[place].job, rows, embedded)
        failed = len(embedded.result.failures)
        receipt = Receipt(job.run, parts[place].shard, job.fingerprint, job.precision, table.num_rows, failed)
        size, seconds = encode_shard(table, receipt).size, dict(readers[place].clock.seconds)
        samples[place] = Sample(rows.num_rows, failed, seconds, size, embedded.result.counts)
    return [samples[place] for place in range(len(parts))]


def _build_table(job: ShardJob, rows: pa.RecordBatch, embedded: EmbeddedRows) -> pa.Table:
    """Return the store's rows."""
    result = embedded.result
    vectors = result.vectors if job.full_bits else round_mantissa(result.vectors)
    columns = StoreColumns(job.columns, job.content_column)
    return columns.build_table(rows, replace(result, vectors=vectors), embedded.digests)


def _quarantine(job: ShardJob, rows: pa.RecordBatch, quarantined: tuple[tuple[int, str], ...]) -> pa.RecordBatch:
    if not quarantined:
        return rows
    problems = rows.column("problem").to_pylist()
    identities = rows.column("identity").to_pylist()
    for position, why in quarantined:
        problems[position] = why
        if job.kind == "text":
            # Equal texts are embedded once: the others like it must not bring the item back.
            for row, identity in enumerate(identities):
                if identity == identities[position]:
                    problems[row] = why
    place = rows.schema.get_field_index("problem")
    return rows.set_column(place, rows.schema.field(place), pa.array(problems, pa.string()))


def id_range(table: pa.Table) -> dict[str, Any]:
    """Return first_id and last_id of a receipt."""
    span = pc.min_max(table.column("item_id")).as_py()
    return {"first_id": span["min"], "last_id": span["max"]}


def _item_failures(rows: pa.RecordBatch, failures: dict[int, Broken]) -> list[tuple[ItemFailure, str]]:
    ids, sources = rows.column("item_id").to_pylist(), rows.column("source").to_pylist()
    identities = rows.column("identity").to_pylist()
    return [
        (
            ItemFailure(ids[position], sources[position], broken.stage, broken.error, broken.message, broken.retryable),
            identities[position],
        )
        for position, broken in sorted(failures.items())
    ]
