"""An encoder ready to embed in this process: what search, preflight and shard tasks share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.contracts import Broken, EncoderCard
from embedx.core.errors import EncoderError, FingerprintMismatchError
from embedx.core.specs import EncoderSpec
from embedx.core.threads import cpu_quota, plan_threads
from embedx.encoders.registry import open_encoder
from embedx.inference.pipeline import Clock, Embedded, Embedder, Fetch
from embedx.inference.runtimes import Execution, open_runtime


@dataclass(frozen=True)
class Session:
    """An encoder on a runtime. Open it with `open_encoder_session`.

    Attributes:
        embedder: does the work.
        note: why the runtime is not the usual one; empty if it is.
    """

    embedder: Embedder
    note: str = ""

    @property
    def card(self) -> EncoderCard:
        """What the encoder is."""
        return self.embedder.encoder.card

    def embed(self, count: int, fetch: Fetch, clock: Clock | None = None) -> Embedded:
        """Embed items 0..count-1."""
        return self.embedder.embed(count, fetch, clock)

    def embed_items(self, items: Sequence[Any]) -> tuple[np.ndarray, dict[int, Broken]]:
        """Embed texts or decoded images; returns (m, dim) float32 of the good ones, and the failures."""
        result = self.embed(len(items), lambda start, stop: items[start:stop])
        return result.vectors, result.failures

    def embed_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, dict[int, Broken]]:
        """Embed texts.

        Raises:
            EncoderError: the encoder takes images.
        """
        self._require("text")
        return self.embed_items(list(texts))

    def embed_image_files(self, paths: Sequence[Path]) -> tuple[np.ndarray, dict[int, Broken]]:
        """Embed image files.

        Raises:
            EncoderError: the encoder takes texts.
        """
        from embedx.corpora.content import read_image

        self._require("image")
        result = self.embed(len(paths), lambda start, stop: [read_image(str(path)).item for path in paths[start:stop]])
        return result.vectors, result.failures

    def _require(self, modality: str) -> None:
        own = self.card.modality
        if own != modality:
            raise EncoderError(f"{self.card.ref} embeds {own}s, not {modality}s", f"Give it {own}s")

    def canary_vectors(self) -> np.ndarray:
        """Return (m, dim) float32: today's vectors of the encoder's canary items.

        Raises:
            EncoderError: the encoder fails on its own canaries.
        """
        vectors, failures = self.embed_items(self.embedder.encoder.canaries())
        if failures:
            first = next(iter(failures.values()))
            raise EncoderError(f"{self.card.ref} cannot embed its canary items ({first.message})", "Check its weights")
        return vectors


def open_encoder_session(
    spec: dict[str, Any],
    fingerprint: str,
    precision: str,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Session:
    """Open the encoder that an artefact names.

    Args:
        spec: the encoder's spec, as its card keeps it.
        fingerprint: what the artefact was made with; empty accepts any.
        precision: fp32 or bf16.
        runtime: auto, openvino or torch.
        device: auto, cpu or cuda.
        threads: cores to use; None is this process's quota.

    Raises:
        FingerprintMismatchError: today's encoder is another one.
    """
    encoder = open_encoder(EncoderSpec.from_dict(spec))
    if fingerprint and encoder.card.fingerprint != fingerprint:
        raise FingerprintMismatchError(
            f"{encoder.card.ref} has fingerprint {encoder.card.fingerprint[:12]} here, "
            f"but {fingerprint[:12]} is what the vectors were made with",
            "Its weights, configuration or preprocessing changed: use the same ones, or extract again",
        )
    threads = threads or cpu_quota()
    opened = open_runtime(encoder, Execution(precision, runtime, device, threads))
    embedder = Embedder(encoder, opened.runtime, plan_threads(threads).prepare)
    return Session(embedder, opened.note)


_sessions: dict[tuple, Session] = {}
_sessions_lock = threading.Lock()


def shared_session(
    spec: dict[str, Any], fingerprint: str, precision: str, runtime: str, device: str, threads: int
) -> Session:
    """Return this process's session of an encoder, opening it on first use, in the thread that needs it."""
    key = (fingerprint, precision, runtime, device, threads)
    with _sessions_lock:
        if key not in _sessions:
            _sessions[key] = open_encoder_session(spec, fingerprint, precision, runtime, device, threads)
        return _sessions[key]


def close_session(session: Session) -> None:
    """Forget a shared session, so that its model can be freed."""
    with _sessions_lock:
        for key in [key for key, known in _sessions.items() if known is session]:
            del _sessions[key]
    session.embedder.close()
