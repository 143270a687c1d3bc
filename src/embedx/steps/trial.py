"""What the fast ways cost an encoder on a sample of the corpus: bf16, and JPEGs decoded at reduced size."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

import numpy as np
import pyarrow as pa

from embedx.core.contracts import EncoderCard
from embedx.core.long_texts import TRUNCATED
from embedx.core.paths import cached_json, remember_json
from embedx.core.threads import cpu_quota
from embedx.inference.gates import Fidelity, measure_fidelity, passes_gate
from embedx.steps.encoding import Session, close_session
from embedx.steps.shard_job import ShardJob
from embedx.steps.shard_rows import Reader, embed_rows
from embedx.store.listing import read_group

JPEG_MARGINS = (1.4, 2.8, 5.6)
"""How many times the encoder's own size a reduced JPEG keeps at least; each twice the last, for decoding halves."""

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


def measure_fast_ways(job: ShardJob, fast: Session, open_at: Callable[[str], Session], most: int) -> Measured:
    """Compare the fast ways with fp32 on the first items; remembered, for the same items give the same answer here.

    Args:
        job: with the run's plan written.
        fast: the encoder in bf16; or in fp32, in a bf16 store of a machine without it: then JPEGs alone are reduced.
        open_at: opens it at a precision.
        most: items of the sample; 0 measures on the encoder's own canaries.
    """
    rows = read_group(job.layout.file("plan.arrow"), 0).slice(0, most)
    sample = rows.column("identity").to_pylist()
    runtime = fast.embedder.runtime
    machine = [platform.processor(), cpu_quota()]
    key = [runtime.precision, 4, job.fingerprint, runtime.name, version(runtime.name), *machine, sample]
    if known := cached_json("gates", key):
        reduced = Fidelity(**known["reduced"]) if known["reduced"] else None
        return Measured(Fidelity(**known["fidelity"]), known["items"], known["jpeg_side"], reduced)
    exact = open_at("fp32")
    job = replace(job, long=TRUNCATED)  # Two precisions differ on windows as on whole texts, and one may be a book.
    reference = embed_rows(Reader(job, exact), rows).result.vectors
    is_exact = exact.embedder is fast.embedder
    vectors = reference if is_exact else embed_rows(Reader(job, fast), rows).result.vectors
    if len(reference) == 0 or len(vectors) != len(reference):
        measured = Measured(measure_fidelity(fast.canary_vectors(), exact.canary_vectors()), len(reference))
    else:
        measured = Measured(measure_fidelity(vectors, reference), len(reference))
        if job.kind == "image" and passes_gate(measured.fidelity, "bf16"):
            # A bf16 machine may go on with the store: what bf16 costs is to fit in, too.
            measured = _try_reducing(job, fast, rows, reference, measured, 0.5 if is_exact else 1.0)
    remember_json("gates", key, asdict(measured))
    if passes_gate(measured.fidelity, "bf16") and not is_exact:
        close_session(exact)
    return measured


def _try_reducing(
    job: ShardJob, fast: Session, rows: pa.RecordBatch, reference: np.ndarray, measured: Measured, share: float
) -> Measured:
    """Find the least size to which JPEGs can be reduced so that bf16 keeps its gate against fp32 on whole images.

    Of what the gate lets be lost it may take a share.
    """
    for margin in JPEG_MARGINS:
        side = round(margin * _resized_side(fast.card))
        embedded = embed_rows(Reader(replace(job, jpeg_side=side), fast), rows).result
        if embedded.counts["reduced"] < FEWEST_REDUCED or len(embedded.vectors) != len(reference):
            break
        fidelity = measure_fidelity(embedded.vectors, reference)
        if passes_gate(fidelity, "bf16", share):
            return replace(measured, jpeg_side=side, reduced=fidelity)
    return measured


def _resized_side(card: EncoderCard) -> int:
    """Return the size in pixels to which an encoder resizes images; the largest of all where it does not say."""
    resize = card.identity.get("preprocessing", {}).get("resize") or [1 << 20]
    return max(resize)
