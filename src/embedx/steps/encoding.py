"""Encoders ready to embed in this process: what search, preflight and shard tasks share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.contracts import Broken, Encoder, EncoderCard
from embedx.core.errors import EncoderError, FingerprintMismatchError
from embedx.core.specs import EncoderSpec
from embedx.core.threads import cpu_quota, plan_threads
from embedx.encoders.joining import forward_of, join_encoders
from embedx.encoders.registry import open_encoder
from embedx.inference.clock import Clock
from embedx.inference.feed import Fetch
from embedx.inference.pipeline import Embedded, Embedder, embed_together
from embedx.inference.runtimes import Execution, open_runtime


@dataclass(frozen=True)
class Session:
    """An encoder on a runtime. Open it with `open_encoder_session`.

    Attributes:
        embedder: does the work; several encoders may share one forward pass.
        note: why the runtime is not the usual one; empty if it is.
        output: which of the pass's outputs is the encoder's.
    """

    embedder: Embedder
    note: str = ""
    output: int = 0

    @property
    def card(self) -> EncoderCard:
        """What the encoder is."""
        return self.embedder.outputs[self.output].card

    def embed(self, count: int, fetch: Fetch, clock: Clock | None = None) -> Embedded:
        """Embed items 0..count-1."""
        return self.embedder.embed(count, fetch, clock, self.output)

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
    spec: dict[str, Any], fingerprint: str, precision: str, runtime: str = "auto", device: str = "auto"
) -> Session:
    """Open the encoder that an artefact names.

    Args:
        spec: the encoder's spec, as its card keeps it.
        fingerprint: what the artefact was made with; empty accepts any.
        precision: fp32 or bf16.
        runtime: auto, openvino or torch.
        device: auto, cpu, cuda or mps.

    Raises:
        FingerprintMismatchError: today's encoder is another one.
    """
    encoder = _open_encoder(spec, fingerprint)
    return Session(*_open_pass([encoder], Execution(precision, runtime, device, cpu_quota())))


def _open_encoder(spec: dict[str, Any], fingerprint: str) -> Encoder:
    encoder = open_encoder(EncoderSpec.from_dict(spec))
    if fingerprint and encoder.card.fingerprint != fingerprint:
        raise FingerprintMismatchError(
            f"{encoder.card.ref} has fingerprint {encoder.card.fingerprint[:12]} here, "
            f"but {fingerprint[:12]} is what the vectors were made with",
            "Its weights, configuration or preprocessing changed: use the same ones, or extract again",
        )
    return encoder


def _open_pass(encoders: Sequence[Encoder], how: Execution) -> tuple[Embedder, str]:
    """Return the embedder of one forward pass for all of some encoders, and a note on its runtime."""
    encoder = encoders[0] if len(encoders) == 1 else join_encoders(encoders)
    opened = open_runtime(encoder, how)
    cards = [encoder.card for encoder in encoders]
    return Embedder(encoder, opened.runtime, plan_threads(how.threads).prepare, cards), opened.note


@dataclass(frozen=True)
class Wanted:
    """An encoder that a store needs.

    Attributes:
        spec: the encoder's spec, as its card keeps it.
        fingerprint: what it must be.
        precision: to compute in: fp32 or bf16.
    """

    spec: dict[str, Any]
    fingerprint: str
    precision: str


_encoders: dict[str, Encoder] = {}
_passes: dict[tuple, tuple[Embedder, str]] = {}
_apart: set[tuple[str, ...]] = set()
"""Fingerprints of encoders that should share a forward pass and cannot."""
_lock = threading.RLock()


def shared_sessions(wanted: Sequence[Wanted], how: Execution) -> list[Session]:
    """Return this process's sessions of some encoders, opened on first use, in the thread that needs them.

    Encoders that differ in layer or pooling only share one forward pass: in bf16 if all of them may compute so.

    Args:
        wanted: the encoders.
        how: to execute them; each one's precision is its own.
    """
    with _lock:
        sessions: dict[int, Session] = {}
        for members in share_forward(wanted):
            sessions.update(zip(members, _sessions([wanted[member] for member in members], how)))
    return [sessions[position] for position in range(len(wanted))]


def share_forward(wanted: Sequence[Wanted]) -> list[list[int]]:
    """Return the positions of some encoders in groups that can share a forward pass; each stands in one group."""
    groups: dict[Any, list[int]] = {}
    with _lock:
        for position, want in enumerate(wanted):
            if want.fingerprint not in _encoders:
                _encoders[want.fingerprint] = _open_encoder(want.spec, want.fingerprint)
            key = forward_of(_encoders[want.fingerprint]) or position
            groups.setdefault(key, []).append(position)
    return list(groups.values())


def _sessions(group: list[Wanted], how: Execution) -> list[Session]:
    names = tuple(want.fingerprint for want in group)
    if len(group) > 1 and names not in _apart:
        precision = "bf16" if all(want.precision == "bf16" for want in group) else "fp32"
        try:
            embedder, note = _shared_pass(names, replace(how, precision=precision))
            return [Session(embedder, note, output) for output in range(len(group))]
        except EncoderError:
            _apart.add(names)
    return [Session(*_shared_pass((want.fingerprint,), replace(how, precision=want.precision))) for want in group]


def _shared_pass(names: tuple[str, ...], how: Execution) -> tuple[Embedder, str]:
    key = (names, how)
    if key not in _passes:
        _passes[key] = _open_pass([_encoders[name] for name in names], how)
    return _passes[key]


def close_session(session: Session) -> None:
    """Forget a session's forward pass, so that its model can be freed; one that several encoders share is kept."""
    if len(session.embedder.outputs) == 1:
        close_passes([session.card.fingerprint], session.embedder)


def close_passes(fingerprints: Sequence[str], embedder: Embedder | None = None) -> None:
    """Forget the forward passes of just these encoders, in all precisions or of one embedder."""
    with _lock:
        for key, (opened, _) in list(_passes.items()):
            if key[0] == tuple(fingerprints) and embedder in (None, opened):
                del _passes[key]
                opened.close()


def embed_sessions(sessions: Sequence[Session], count: int, fetch: Fetch, clocks: Sequence[Clock]) -> list[Embedded]:
    """Embed items 0..count-1 with several encoders of one modality; each item is fetched once.

    Args:
        sessions: the encoders.
        count: items.
        fetch: gives them.
        clocks: one for each session; what several share counts to the first of them.
    """
    firsts = {id(session.embedder): place for place, session in reversed(list(enumerate(sessions)))}
    passes = sorted(firsts.values())
    embedders = [sessions[place].embedder for place in passes]
    results = embed_together(embedders, count, fetch, [clocks[place] for place in passes])
    return [results[embedders.index(session.embedder)][session.output] for session in sessions]
