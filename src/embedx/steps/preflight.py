"""The trial of an encoder on a worker, before the first shard: does it load, and which precision is faithful?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from embedx.core.errors import EmbedxError, EncoderError
from embedx.core.meter import metered
from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
from embedx.inference.gates import passes_gate
from embedx.inference.runtimes import machine_has_bf16
from embedx.steps.encoding import Session, close_passes, close_session, share_forward, shared_sessions
from embedx.steps.shard_job import ShardJob, was_tried_here
from embedx.steps.trial import OpenAt, measure_fast_ways
from embedx.store.schema import round_mantissa

SAMPLE_ITEMS = 64
"""Items of the corpus on which `--precision auto` measures bf16."""


@dataclass(frozen=True)
class Preflight:
    """What the trial of an encoder on a worker found.

    Attributes:
        precision: fp32 or bf16.
        why: how it was decided.
        canaries: (m, dim) vectors of the canary items, rounded as the store's.
        runtime: what executes the encoder.
        note: why it is not the usual one.
        jpeg_side: to how many pixels of the shorter side JPEGs may be reduced in decoding; 0 is not at all.
    """

    precision: str
    why: str
    canaries: list[list[float]]
    runtime: str
    note: str
    jpeg_side: int = 0


LIBRARIES = (
    "embedx",
    "gensim",
    "numpy",
    "open_clip_torch",
    "openvino",
    "pillow",
    "pyarrow",
    "sentence-transformers",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)
"""Packages whose version can change a vector or the file it stands in."""


@dataclass(frozen=True)
class Survey:
    """What a worker says of itself.

    Attributes:
        versions: package -> version.
        problem: why it cannot work on the store; empty if it can.
    """

    versions: dict[str, str]
    problem: str


def library_versions() -> dict[str, str]:
    """Return package -> version of `LIBRARIES` here, without the local part that names a build (`+cu130`)."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            versions[name] = ""
    return versions


def survey_worker(job: ShardJob) -> Survey:
    """Say which versions this process has, and try to write to the run's record and whether it may to the data."""
    try:
        job.layout.files.try_writing(job.layout.folder, job.layout.data)
    except EmbedxError as error:
        return Survey(library_versions(), error.message)
    except OSError as error:
        return Survey(library_versions(), f"{error.filename}: {error.strerror or error}")
    return Survey(library_versions(), "")


def preflight(jobs: Sequence[ShardJob], place: int, asked: str, use_sample: bool = True) -> Preflight:
    """Load an encoder, embed its canaries and, for a new store, decide its precision.

    Args:
        jobs: of the run's stores, with their plans written.
        place: which of them; the others' encoders are loaded where they share its forward pass.
        asked: auto, fp32 or bf16 for a new store; empty for an existing one.
        use_sample: measure on the first items of the corpus, else on the encoder's own canaries: an item may be
            one that kills.
    """
    job = jobs[place]
    (group,) = (group for group in share_forward([other.wanted_in("") for other in jobs]) if place in group)

    def open_at(precision: str, device: str) -> Session:
        wanted = [replace(jobs[other].wanted_in(""), precision=precision) for other in group]
        how = job.execution
        if device != job.device:  # to compare with, once: not worth a conversion of what is that large
            how = replace(how, device=device, runtime="torch")
        return shared_sessions(wanted, how)[group.index(place)]

    try:
        return _try(job, asked, open_at, SAMPLE_ITEMS if use_sample else 0)
    finally:
        if len(group) > 1 and place == group[-1]:
            # In another precision, or for other stores, the shards may need it again; now it only takes memory.
            close_passes([jobs[other].fingerprint for other in group])


def _try(job: ShardJob, asked: str, open_at: OpenAt, sample: int) -> Preflight:
    if not asked:
        computed = job.wanted_in(job.precision).precision
        return _flown(job, open_at(computed, job.device), job.precision, "as the store was created")
    if asked == "fp32":
        return _flown(job, open_at("fp32", job.device), "fp32", "as asked")
    if open_encoder(EncoderSpec.from_dict(job.encoder)).card.direct:
        return _flown(job, open_at("fp32", job.device), "fp32", "it computes in float32 by itself")
    if not machine_has_bf16(job.device):
        exact = open_at("fp32", job.device)
        if asked == "auto":
            return _flown(job, exact, "fp32", "this machine has no bf16")
        why, side = "as asked; computed in fp32, this machine has no bf16", None
        if job.kind == "image":
            measured = measure_fast_ways(job, exact, open_at, sample, keep_exact=True)
            why, side = f"{why}; {measured.describe()}" if measured.reduced else why, measured.jpeg_side
        return _flown(job, exact, "bf16", why, side)
    fast = open_at("bf16", job.device)
    measured = measure_fast_ways(job, fast, open_at, sample, keep_exact=asked == "auto")
    if asked == "auto" and not passes_gate(measured.fidelity, "bf16"):
        close_session(fast)
        return _flown(job, open_at("fp32", job.device), "fp32", f"bf16 misses its gate {measured.describe()}")
    why = f"bf16 passes its gate {measured.describe()}" if asked == "auto" else f"as asked; {measured.describe()}"
    return _flown(job, fast, "bf16", why, measured.jpeg_side)


def _flown(job: ShardJob, session: Session, precision: str, why: str, jpeg_side: int | None = None) -> Preflight:
    with metered(job.meter):
        vectors = session.canary_vectors()
    if not np.isfinite(vectors).all():
        raise EncoderError(f"{session.card.ref} gives vectors that are not finite", "Use --precision fp32")
    was_tried_here(job)
    canaries = vectors if job.full_bits else round_mantissa(vectors)
    side = job.jpeg_side if jpeg_side is None else jpeg_side
    return Preflight(precision, why, canaries.tolist(), session.embedder.runtime.way, session.note, side)
