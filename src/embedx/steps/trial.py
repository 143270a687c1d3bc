"""What the fast ways cost an encoder on a sample of the corpus: bf16, and JPEGs decoded at reduced size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

import numpy as np
import pyarrow as pa

from embedx.core.contracts import EncoderCard
from embedx.core.errors import TooLargeError
from embedx.core.long_texts import TRUNCATED
from embedx.core.paths import cached_json, remember_json
from embedx.core.threads import cpu_quota
from embedx.inference.gates import Fidelity, measure_fidelity, passes_gate
from embedx.inference.pipeline import Embedded
from embedx.steps.encoding import Session, close_session
from embedx.steps.shard_job import ShardJob
from embedx.steps.shard_rows import Reader, embed_rows
from embedx.store.listing import read_group

JPEG_MARGINS = (1.4, 2.8, 5.6)
"""How many times the encoder's own size a reduced JPEG keeps at least; each twice the last, for decoding halves."""

OpenAt = Callable[[str, str], Session]
"""(precision, device) to the encoder, opened so."""

FEWEST_REDUCED = 8
"""Reduced images of the sample without which it says nothing about reducing."""


@dataclass(frozen=True)
class Measured:
    """What the fast ways cost an encoder on a sample of the corpus.

    Attributes:
        fidelity: of bf16 against fp32, both on whole images.
        items: of the sample.
        jpeg_side: the least size that JPEGs can be reduced to so that bf16 keeps its gate; 0 is none.
        reduced: what bf16 on reduced images costs against fp32 on whole ones.
    """

    fidelity: Fidelity
    items: int
    jpeg_side: int = 0
    reduced: Fidelity | None = None

    def describe(self) -> str:
        """Return what was found, for people."""
        said = f"on {self.items} items, {self.fidelity.describe()}"
        if self.reduced is None:
            return said
        return f"{said}; with JPEGs reduced to {self.jpeg_side} pixels or more, {self.reduced.describe()}"


def measure_fast_ways(job: ShardJob, fast: Session, open_at: OpenAt, most: int, keep_exact: bool) -> Measured:
    """Compare the fast ways with fp32 on the first items; remembered, for the same items give the same answer here.

    Args:
        job: with the run's plan written.
        fast: the encoder in bf16; or in fp32, in a bf16 store of a machine without it: then JPEGs alone are reduced.
        open_at: opens it at a precision on a device.
        most: items of the sample; 0 measures on the encoder's own canaries.
        keep_exact: leave it open in fp32 where bf16 misses its gate.
    """
    rows = read_group(job.layout.file("plan.arrow"), 0).slice(0, most)
    sample = rows.column("identity").to_pylist()
    runtime = fast.embedder.runtime
    machine = [runtime.hardware, cpu_quota()]
    key = [runtime.precision, 5, job.fingerprint, runtime.way, version(runtime.name), *machine, sample]
    if known := cached_json("gates", key):
        reduced = Fidelity(**known["reduced"]) if known["reduced"] else None
        return Measured(Fidelity(**known["fidelity"]), known["items"], known["jpeg_side"], reduced)
    exact = _open_reference(job, open_at)
    job = replace(job, long=TRUNCATED)  # Two precisions differ on windows as on whole texts, and one may be a book.
    reference = embed_rows(Reader(job, exact), rows).result
    is_exact = exact.embedder is fast.embedder
    vectors, wanted = _matched(reference if is_exact else embed_rows(Reader(job, fast), rows).result, reference)
    if len(wanted) == 0:
        measured = Measured(measure_fidelity(fast.canary_vectors(), exact.canary_vectors()), 0)
    else:
        measured = Measured(measure_fidelity(vectors, wanted), len(wanted))
        if job.kind == "image" and passes_gate(measured.fidelity, "bf16"):
            # A bf16 machine may go on with the store: what bf16 costs is to fit in, too.
            measured = _try_reducing(job, fast, rows, reference, measured, 0.5 if is_exact else 1.0)
    remember_json("gates", key, asdict(measured))
    if not is_exact and (passes_gate(measured.fidelity, "bf16") or not keep_exact):
        close_session(exact)
    return measured


def _open_reference(job: ShardJob, open_at: OpenAt) -> Session:
    """Open the encoder in fp32; on the CPU if that is too large for the GPU, where bf16 may still fit."""
    try:
        return open_at("fp32", job.device)
    except TooLargeError:
        return open_at("fp32", "cpu")


def _matched(fast: Embedded, exact: Embedded) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of both for the items that have one in fp32.

    What only the faster encoder lost is zeros there, so that no gate passes; what could not be read the second time is
    left out.
    """
    lost = {position for position, broken in fast.failures.items() if broken.stage == "forward"}
    kept = np.isin(exact.positions, [*fast.positions, *lost])
    positions = exact.positions[kept]
    vectors = np.zeros((len(positions), exact.vectors.shape[1]), dtype=np.float32)
    found = np.isin(positions, fast.positions)
    vectors[found] = fast.vectors[np.isin(fast.positions, positions)]
    return vectors, exact.vectors[kept]


def _try_reducing(
    job: ShardJob, fast: Session, rows: pa.RecordBatch, reference: Embedded, measured: Measured, share: float
) -> Measured:
    """Find the least size to which JPEGs can be reduced so that bf16 keeps its gate against fp32 on whole images.

    Of what the gate lets be lost it may take a share.
    """
    for margin in JPEG_MARGINS:
        side = round(margin * _resized_side(fast.card))
        embedded = embed_rows(Reader(replace(job, jpeg_side=side), fast), rows).result
        vectors, wanted = _matched(embedded, reference)
        if embedded.counts["reduced"] < FEWEST_REDUCED or len(wanted) == 0:
            break
        fidelity = measure_fidelity(vectors, wanted)
        if passes_gate(fidelity, "bf16", share):
            return replace(measured, jpeg_side=side, reduced=fidelity)
    return measured


def _resized_side(card: EncoderCard) -> int:
    """Return the size in pixels to which an encoder resizes images; the largest of all where it does not say."""
    resize = card.identity.get("preprocessing", {}).get("resize") or [1 << 20]
    return max(resize)
