"""The trial of an encoder on a worker, before the first shard: does it load, and which precision is faithful?"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from embedx.core.errors import EncoderError
from embedx.core.long_texts import TRUNCATED
from embedx.core.meter import metered
from embedx.core.paths import cached_json, remember_json
from embedx.core.specs import EncoderSpec
from embedx.core.threads import cpu_quota
from embedx.encoders.registry import open_encoder
from embedx.inference.gates import Fidelity, measure_fidelity, passes_gate
from embedx.inference.pipeline import Clock
from embedx.inference.runtimes import machine_has_bf16
from embedx.steps.encoding import Session, close_session, shared_session
from embedx.steps.extract_shard import ShardJob, embed_rows
from embedx.store.listing import read_group
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
    """

    precision: str
    why: str
    canaries: list[list[float]]
    runtime: str
    note: str


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
    record = job.layout.folder
    # No folder is made for the trial: a run that ends before its first shard leaves none.
    data = next(folder for folder in (job.layout.data, *job.layout.data.parents) if folder.is_dir())
    probe = record / f".probe-{secrets.token_hex(6)}"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except FileNotFoundError:
        return Survey(library_versions(), f"{record} is not there")
    except OSError as error:
        return Survey(library_versions(), f"{record} cannot be written ({error.strerror or error})")
    if not os.access(data, os.W_OK | os.X_OK):
        return Survey(library_versions(), f"{data} cannot be written")
    return Survey(library_versions(), "")


def preflight(job: ShardJob, asked: str, use_sample: bool = True) -> Preflight:
    """Load the encoder, embed its canaries and, for a new store, decide its precision.

    Args:
        job: with the run's plan written; its precision is only used when `asked` is empty.
        asked: auto, fp32 or bf16 for a new store; empty for an existing one.
        use_sample: measure on the first items of the corpus, else on the encoder's own canaries: an item may be
            one that kills.
    """
    if not asked:
        session = job.session()
        return _flown(job, session, job.precision, "as the store was created")
    threads = job.threads or cpu_quota()

    def open_at(precision: str) -> Session:
        return shared_session(job.encoder, job.fingerprint, precision, job.runtime, job.device, threads)

    if asked == "fp32":
        return _flown(job, open_at("fp32"), "fp32", "as asked")
    if open_encoder(EncoderSpec.from_dict(job.encoder)).card.direct:
        return _flown(job, open_at("fp32"), "fp32", "it computes in float32 by itself")
    if not machine_has_bf16(job.device):
        if asked == "bf16":
            return _flown(job, open_at("fp32"), "bf16", "as asked; computed in fp32, this machine has no bf16")
        return _flown(job, open_at("fp32"), "fp32", "this machine has no bf16")
    fast = open_at("bf16")
    measured = _measure_bf16(job, fast, open_at, SAMPLE_ITEMS if use_sample else 0)
    if asked == "auto" and not passes_gate(measured.fidelity, "bf16"):
        close_session(fast)
        return _flown(job, open_at("fp32"), "fp32", f"bf16 misses its gate {measured.describe()}")
    why = f"bf16 passes its gate {measured.describe()}" if asked == "auto" else f"as asked; {measured.describe()}"
    return _flown(job, fast, "bf16", why)


@dataclass(frozen=True)
class _Measured:
    """What bf16 costs an encoder on a sample of the corpus."""

    fidelity: Fidelity
    items: int

    def describe(self) -> str:
        return f"on {self.items} items, {self.fidelity.describe()}"


def _measure_bf16(job: ShardJob, fast: Session, open_at: Callable[[str], Session], most: int) -> _Measured:
    """Compare bf16 with fp32 on the first items; remembered, for the same items give the same answer here."""
    rows = read_group(job.layout.file("plan.arrow"), 0).slice(0, most)
    sample = rows.column("identity").to_pylist()
    runtime = fast.embedder.runtime
    key = ["bf16", job.fingerprint, runtime.name, version(runtime.name), platform.processor(), cpu_quota(), sample]
    if known := cached_json("gates", key):
        return _Measured(Fidelity(**known["fidelity"]), known["items"])
    exact = open_at("fp32")
    job = replace(job, long=TRUNCATED)  # Two precisions differ on windows as on whole texts, and one may be a book.
    vectors = embed_rows(job, fast, rows, Clock())[0].vectors
    reference = embed_rows(job, exact, rows, Clock())[0].vectors
    if len(reference) == 0 or len(vectors) != len(reference):
        vectors, reference = fast.canary_vectors(), exact.canary_vectors()
    measured = _Measured(measure_fidelity(vectors, reference), len(reference))
    remember_json("gates", key, {"fidelity": asdict(measured.fidelity), "items": measured.items})
    if passes_gate(measured.fidelity, "bf16"):
        close_session(exact)
    return measured


def _flown(job: ShardJob, session: Session, precision: str, why: str) -> Preflight:
    with metered(job.meter):
        vectors = session.canary_vectors()
    if not np.isfinite(vectors).all():
        raise EncoderError(f"{session.card.ref} gives vectors that are not finite", "Use --precision fp32")
    canaries = vectors if job.full_bits else round_mantissa(vectors)
    runtime = session.embedder.runtime
    return Preflight(precision, why, canaries.tolist(), f"{runtime.name} {runtime.precision}", session.note)
