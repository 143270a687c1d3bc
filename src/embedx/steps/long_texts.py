"""Texts longer than their encoder reads: cut into windows, which are embedded like texts, and brought together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embedx.core.contracts import Broken
from embedx.core.long_texts import LongTexts
from embedx.inference.clock import Clock
from embedx.inference.pipeline import NOT_FINITE, Embedded
from embedx.steps.encoding import Session, embed_sessions


def embed_texts(
    sessions: Sequence[Session], items: Sequence[Any], long: LongTexts, clocks: Sequence[Clock]
) -> list[Embedded]:
    """Embed texts, long ones among them as `long` says, with encoders that cut and tokenise alike.

    Args:
        sessions: the encoders.
        items: texts, or a Broken in a text's place.
        long: how long texts are read.
        clocks: one for each session; what they share counts to the first.

    Returns:
        For each session the vectors; where texts have rows of chunks, those of one item one after the other, and
        their `chunks`.
    """
    if not long.chunks:
        return embed_sessions(sessions, len(items), lambda start, stop: items[start:stop], clocks)
    with clocks[0].stage("prepare"):
        windows = cut_windows(sessions[0], items)
    contents = windows.contents
    results = embed_sessions(sessions, len(contents), lambda start, stop: contents[start:stop], clocks)
    counts = {"windows": len(contents), "chunked": int((windows.counts > 1).sum())}
    finished = []
    for session, embedded in zip(sessions, results):
        if long.pool:
            result = pool_windows(embedded, windows, long.pool, session.card.normalized)
        else:
            result = list_chunks(embedded, windows)
        finished.append(replace(result, counts={**result.counts, **counts}))
    return finished


@dataclass(frozen=True)
class Windows:
    """The windows of some texts, one after the other.

    Attributes:
        contents: w texts; a Broken is its item's only window.
        counts: (n,) int64, how many windows each item has; at least 1.
    """

    contents: list[Any]
    counts: np.ndarray

    @property
    def owners(self) -> np.ndarray:
        """(w,) int64, the item of each window; ascending."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def firsts(self) -> np.ndarray:
        """(n,) int64, the first window of each item."""
        return np.cumsum(self.counts) - self.counts


def cut_windows(session: Session, items: Sequence[Any]) -> Windows:
    """Cut texts into windows that the encoder reads whole."""
    texts = [item for item in items if not isinstance(item, Broken)]
    spans = iter(session.embedder.encoder.windows(texts))  # type: ignore[attr-defined]
    contents: list[Any] = []
    counts = np.empty(len(items), dtype=np.int64)
    for position, item in enumerate(items):
        parts = [item] if isinstance(item, Broken) else [item[start:stop] for start, stop in next(spans)]
        contents.extend(parts)
        counts[position] = len(parts)
    return Windows(contents, counts)


def pool_windows(embedded: Embedded, windows: Windows, pool: str, normalized: bool) -> Embedded:
    """Return one vector per item: the mean or the maximum of its windows' vectors, in float32.

    An item fails as a whole where one of its windows does. An item of one window keeps that window's vector.

    Args:
        embedded: of the windows.
        windows: which belong to which item.
        pool: mean or max.
        normalized: whether vectors are of length 1, and shall be again.
    """
    failures = item_failures(embedded, windows)
    whole = np.ones(len(windows.counts), dtype=bool)
    whole[list(failures)] = False
    positions = np.flatnonzero(whole)
    vectors = embedded.vectors[whole[windows.owners[embedded.positions]]]
    counts = windows.counts[positions]
    if not len(positions) or len(vectors) == len(positions):
        return replace(embedded, vectors=vectors, positions=positions, failures=failures)
    reduce = np.maximum if pool == "max" else np.add
    pooled = reduce.reduceat(vectors, np.cumsum(counts) - counts, axis=0)
    if pool == "mean":
        pooled /= counts[:, None]
    if normalized:
        several = counts > 1
        with np.errstate(invalid="ignore", divide="ignore"):
            pooled[several] /= np.linalg.norm(pooled[several], axis=1, keepdims=True)
    finite = np.isfinite(pooled).all(axis=1)
    failures |= dict.fromkeys(positions[~finite].tolist(), NOT_FINITE)
    return Embedded(pooled[finite], positions[finite], failures, embedded.counts)


@dataclass(frozen=True)
class EmbeddedChunks(Embedded):
    """Vectors of which several may belong to one item.

    Attributes:
        numbers: (m,) int64, each row's number among the chunks of its item; -1 where it is the whole item.
        texts: m texts of the rows.
    """

    numbers: np.ndarray
    texts: list[str]


def list_chunks(embedded: Embedded, windows: Windows) -> EmbeddedChunks:
    """Return the windows of the items that succeeded; an item fails as a whole where one of its windows does."""
    failures = item_failures(embedded, windows)
    whole = np.ones(len(windows.counts), dtype=bool)
    whole[list(failures)] = False
    owners = windows.owners
    kept = np.flatnonzero(whole[owners])
    vectors = embedded.vectors[whole[owners[embedded.positions]]]
    numbers = np.where(windows.counts[owners] > 1, np.arange(len(owners)) - windows.firsts[owners], -1)
    texts = [windows.contents[window] for window in kept.tolist()]
    return EmbeddedChunks(vectors, owners[kept], failures, embedded.counts, numbers[kept], texts)


def spread_copies(once: Embedded, of_row: np.ndarray) -> Embedded:
    """Give rows of equal content the vectors that were computed once.

    Args:
        once: of the distinct contents.
        of_row: (n,) int64, the distinct content of each row.
    """
    starts = np.searchsorted(once.positions, of_row, side="left")
    counts = np.searchsorted(once.positions, of_row, side="right") - starts
    ends = np.cumsum(counts)
    source = np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)
    positions = np.repeat(np.arange(len(of_row)), counts)
    failures = {row: once.failures[item] for row, item in enumerate(of_row.tolist()) if item in once.failures}
    spread = replace(once, vectors=once.vectors[source], positions=positions, failures=failures)
    if isinstance(spread, EmbeddedChunks):
        texts = [spread.texts[row] for row in source.tolist()]
        return replace(spread, numbers=spread.numbers[source], texts=texts)
    return spread


def item_failures(embedded: Embedded, windows: Windows) -> dict[int, Broken]:
    """Return item -> why it failed: the first of its windows that did."""
    owners, firsts = windows.owners, windows.firsts
    failures: dict[int, Broken] = {}
    for window, broken in sorted(embedded.failures.items()):
        item = int(owners[window])
        count = int(windows.counts[item])
        if count > 1:
            number = window - int(firsts[item]) + 1
            broken = replace(broken, message=f"window {number} of {count}: {broken.message}")
        failures.setdefault(item, broken)
    return failures
