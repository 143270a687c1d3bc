"""What shard tasks are told: the run of a store, and which shard of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from embedx.core.long_texts import TRUNCATED, LongTexts
from embedx.core.meter import Meter
from embedx.core.places import NO_ACCESS, Access, parse_place
from embedx.core.threads import cpu_quota
from embedx.inference.runtimes import Execution, machine_has_bf16
from embedx.steps.canaries import compare_canaries
from embedx.steps.encoding import Session, Wanted, shared_sessions
from embedx.store.counting import open_counter
from embedx.store.files import File, as_file
from embedx.store.layout import RunLayout, StoreLayout
from embedx.store.listing import read_group
from embedx.store.schema import CarriedColumn


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
        device: auto, cpu, cuda or mps.
        threads: cores of a worker; 0 is the worker's own quota.
        access: how images outside this machine are reached.
        max_requests: of remote encoders, in the whole run; None has no limit.
        requests: the file in which all stores of the run count them.
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
    requests: str = ""
    jpeg_side: int = 0
    long: LongTexts = TRUNCATED

    @property
    def meter(self) -> Meter:
        """The run's counter of requests to remote encoders."""
        shared = open_counter(as_file(parse_place(self.requests, self.access))) if self.requests else None
        return Meter(self.max_requests, shared)

    @property
    def layout(self) -> RunLayout:
        """The run's paths."""
        return RunLayout(parse_place(self.root, self.access), self.run)

    def wanted_in(self, precision: str) -> Wanted:
        """Return the encoder as a store of a precision may have it computed on this machine."""
        # A bf16 store accepts fp32 compute; an fp32 store never accepts bf16.
        is_fast = precision == "bf16" and machine_has_bf16(self.device)
        return Wanted(self.encoder, self.fingerprint, "bf16" if is_fast else "fp32")

    @property
    def execution(self) -> Execution:
        """How encoders are executed here; the precision is for each to say."""
        return Execution("", self.runtime, self.device, self.threads or cpu_quota())


_compared: set[tuple[str, str]] = set()
"""(store, run) whose encoder this process has compared with the store's."""


def open_sessions(jobs: Sequence[ShardJob]) -> list[Session]:
    """Return this process's sessions of the encoders of some jobs of one run.

    A process's first task of a run compares the canaries with the store's: its machine may have another GPU, CPU or
    driver than the one where the encoder was tried.

    Raises:
        FingerprintMismatchError: this process computes other vectors than the store holds.
    """
    sessions = shared_sessions([job.wanted_in(job.precision) for job in jobs], jobs[0].execution)
    for job, session in zip(jobs, sessions):
        if (job.root, job.run) not in _compared:
            _compare(job, session)
            _compared.add((job.root, job.run))
    return sessions


def was_tried_here(job: ShardJob) -> None:
    """Note that this process has tried a run's encoder: what is in the store, or will be, is its own."""
    _compared.add((job.root, job.run))


def _compare(job: ShardJob, session: Session) -> None:
    if session.card.direct:
        return  # A remote encoder is the same for all workers, and asking costs.
    try:
        # Without the store's reader, for it brings Delta's library. The driver has read it before.
        card = json.loads(StoreLayout(job.layout.root).encoder.read())
    except FileNotFoundError:
        return  # An estimate of a new store leaves none.
    compare_canaries(
        session.canary_vectors(),
        card["canaries"],
        f"worker {socket.gethostname()} computes other vectors of {session.card.ref} than {job.root} holds",
        "Its GPU, CPU, driver or a library differs: mend it or take it away; the same command resumes",
    )


@dataclass(frozen=True)
class Part:
    """One store's share of a shard task.

    Attributes:
        job: the store's run.
        shard: the number of the shard in the store's plan.
        store: the store's position among those of the run.
    """

    job: ShardJob
    shard: int
    store: int = 0

    @property
    def name(self) -> str:
        """What to call it; another store's run has another name."""
        return f"{self.job.run}-{self.shard:05d}"

    @property
    def file(self) -> File:
        """Its file, which exists exactly when the shard is done."""
        return self.job.layout.shard(self.shard)

    def read_rows(self) -> pa.RecordBatch:
        """Return the plan's rows."""
        return read_group(self.job.layout.file("plan.arrow"), self.shard)
