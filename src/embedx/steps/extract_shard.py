"""What a worker does: embed one shard of a plan."""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.core.contracts import Broken, ItemFailure
from embedx.core.long_texts import TRUNCATED, LongTexts
from embedx.core.meter import Meter, metered
from embedx.core.places import NO_ACCESS, Access, parse_place
from embedx.core.threads import cpu_quota
from embedx.corpora.content import ImageReader
from embedx.inference.pipeline import Clock, Embedded
from embedx.inference.runtimes import machine_has_bf16
from embedx.steps.encoding import Session, shared_session
from embedx.steps.long_texts import embed_texts, spread_copies
from embedx.steps.rows import StoreColumns
from embedx.store.counting import open_counter
from embedx.store.layout import RunLayout
from embedx.store.listing import read_group
from embedx.store.schema import CarriedColumn, round_mantissa
from embedx.store.shards import Receipt, encode_shard, read_receipt, write_failures, write_shard


@dataclass(frozen=True)
class ShardJob:
    """What every shard task of a run has in common; small, it travels with each task.

    Attributes:
        root: the store.
        run: the run.
        encoder: the encoder's spec as a dict.
        fingerprint: what the encoder must be.
        precision: of the store.
        full_bits: keep all mantissa bits.
        kind: image or text.
        columns: carried columns.
        content_column: the one that repeats the text.
        runtime: auto, openvino or torch.
        device: auto, cpu or cuda.
        threads: cores of a worker; 0 is the worker's own quota.
        access: how images outside this machine are reached.
        max_requests: of a remote encoder, in the whole run; None has no limit.
        jpeg_side: to how many pixels of the shorter side JPEGs may be reduced in decoding; 0 is not at all.
        long: how long texts are read.
    """

    root: str
    run: str
    encoder: dict[str, Any]
    fingerprint: str
    precision: str
    full_bits: bool
    kind: str
    columns: tuple[CarriedColumn, ...]
    content_column: str | None
    runtime: str
    device: str
    threads: int
    access: Access = NO_ACCESS
    max_requests: int | None = None
    jpeg_side: int = 0
    long: LongTexts = TRUNCATED

    @property
    def meter(self) -> Meter:
        """The run's counter of requests to remote encoders."""
        return Meter(self.max_requests, open_counter(self.layout))

    @property
    def layout(self) -> RunLayout:
        """The run's paths."""
        return RunLayout(parse_place(self.root, self.access), self.run)

    def session(self) -> Session:
        """Return this process's session of the encoder."""
        threads = self.threads or cpu_quota()
        precision = _compute_precision(self.precision, self.device)
        return shared_session(self.encoder, self.fingerprint, precision, self.runtime, self.device, threads)


def _compute_precision(precision: str, device: str) -> str:
    # A bf16 store accepts fp32 compute; an fp32 store never accepts bf16.
    return "bf16" if precision == "bf16" and machine_has_bf16(device) else "fp32"


def probe_rows(job: ShardJob, shard: int, start: int, stop: int) -> int:
    """Embed some rows of a shard and keep nothing: does it survive? Returns how many rows."""
    rows = read_group(job.layout.file("plan.arrow"), shard).slice(start, stop - start)
    embed_rows(job, job.session(), rows, Clock())
    return rows.num_rows


def extract_shard(job: ShardJob, shard: int, quarantined: tuple[tuple[int, str], ...] = ()) -> Receipt:
    """Embed one shard and commit it; returns the receipt of the file that stands there.

    Args:
        job: the run.
        shard: its number in the plan.
        quarantined: (position, why) of rows that must not be tried: they kill or hang workers.
    """
    file = job.layout.shard(shard)
    if file.exists():
        return read_receipt(file)
    clock, started, begun = Clock(), time.time(), time.perf_counter()
    session = job.session()
    rows = _quarantine(job, read_group(job.layout.file("plan.arrow"), shard), quarantined)
    table, embedded, bytes_read = _embed_table(job, session, rows, clock)
    failures = _item_failures(rows, embedded.failures)
    failures_file = ""
    if failures:
        attempt = job.layout.attempt_failures(shard, secrets.token_hex(4))
        write_failures(attempt, failures)
        failures_file = attempt.name.rpartition("/")[2]
    receipt = Receipt(
        run=job.run,
        shard=shard,
        fingerprint=job.fingerprint,
        precision=job.precision,
        rows=table.num_rows,
        failed=len(failures),
        failures_file=failures_file,
        seconds={
            **{name: round(value, 3) for name, value in clock.seconds.items()},
            "total": round(time.perf_counter() - begun, 3),
        },
        counts={**embedded.counts, "bytes_read": bytes_read},
        runtime=f"{session.embedder.runtime.name} {session.embedder.runtime.precision}",
        host=f"{socket.gethostname()}:{os.getpid()}",
        started=round(started, 3),
        parents=rows.num_rows - len(failures) if job.long.has_rows else None,
        **id_range(table),
    )
    return write_shard(file, table, receipt)


@dataclass(frozen=True)
class Sample:
    """What embedding some rows for an estimate took.

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


def sample_rows(job: ShardJob, shard: int, start: int, stop: int) -> Sample:
    """Do with some rows of a shard what `extract_shard` would, and keep nothing."""
    clock = Clock()
    rows = read_group(job.layout.file("plan.arrow"), shard).slice(start, stop - start)
    table, embedded, _ = _embed_table(job, job.session(), rows, clock)
    receipt = Receipt(job.run, shard, job.fingerprint, job.precision, table.num_rows, len(embedded.failures))
    size = encode_shard(table, receipt).size
    return Sample(rows.num_rows, len(embedded.failures), dict(clock.seconds), size, embedded.counts)


def _embed_table(job: ShardJob, session: Session, rows: pa.RecordBatch, clock: Clock) -> tuple[pa.Table, Embedded, int]:
    """Embed rows; returns the store's rows, what came of each, and the bytes read."""
    embedded, digests, bytes_read = embed_rows(job, session, rows, clock)
    vectors = embedded.vectors if job.full_bits else round_mantissa(embedded.vectors)
    columns = StoreColumns(job.columns, job.content_column)
    table = columns.build_table(rows, replace(embedded, vectors=vectors), digests)
    return table, embedded, bytes_read


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


def embed_rows(job: ShardJob, session: Session, rows: pa.RecordBatch, clock: Clock) -> tuple[Embedded, list[str], int]:
    """Embed a plan's rows; returns the result, the digest of each row, and the bytes read."""
    with metered(job.meter):
        return (_embed_texts if job.kind == "text" else _embed_images)(job, session, rows, clock)


def _embed_images(
    job: ShardJob, session: Session, rows: pa.RecordBatch, clock: Clock
) -> tuple[Embedded, list[str], int]:
    digests = [""] * rows.num_rows
    sizes = [0] * rows.num_rows
    problems = rows.column("problem").to_pylist()
    # What has a problem is not read, and not read ahead either.
    locators = ["" if problem else name for name, problem in zip(rows.column("locator").to_pylist(), problems)]
    reader = ImageReader(locators, rows.column("identity").to_pylist(), job.access, job.jpeg_side)
    reduced = np.zeros(rows.num_rows, dtype=bool)

    def fetch(start: int, stop: int) -> list[Any]:
        items = []
        for position in range(start, stop):
            if problems[position] is not None:
                items.append(Broken("read", "Unreadable", problems[position], True))
                continue
            content = reader.read(position)
            digests[position], sizes[position] = content.digest, content.size_bytes
            reduced[position] = content.is_reduced
            items.append(content.item)
        return items

    with reader:
        embedded = session.embed(rows.num_rows, fetch, clock)
    return replace(embedded, counts={**embedded.counts, "reduced": int(reduced.sum())}), digests, sum(sizes)


def _embed_texts(
    job: ShardJob, session: Session, rows: pa.RecordBatch, clock: Clock
) -> tuple[Embedded, list[str], int]:
    """Embed texts, each distinct one once."""
    digests = rows.column("identity").to_pylist()
    _, first, copies = np.unique(np.array(digests, dtype=object), return_index=True, return_inverse=True)
    distinct = rows.take(pa.array(np.sort(first)))
    # Position among the distinct rows of each row; np.unique sorts by digest, the rows are in plan order.
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    of_row = rank[copies]
    texts = distinct.column("content").to_pylist()
    problems = distinct.column("problem").to_pylist()

    items = [text if problem is None else Broken("read", "BadText", problem) for text, problem in zip(texts, problems)]
    once = embed_texts(session, items, job.long, clock)
    size = int(pc.sum(pc.binary_length(rows.column("content"))).as_py() or 0)
    if len(texts) == rows.num_rows:
        return once, digests, size
    counts = {**once.counts, "copies": rows.num_rows - len(texts)}
    return replace(spread_copies(once, of_row), counts=counts), digests, size


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
