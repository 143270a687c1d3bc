"""What the time of an extraction went to, one line of advice, and the whole of it as a trace to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedx.core.errors import UsageError
from embedx.core.paths import write_atomic
from embedx.core.phases import Phases
from embedx.store.shards import Receipt

WAITING_SHARE = 40
"""Percent of the time that the encoder waits, from which on preparation is called the bottleneck."""

_ADVICE = {
    ("reading", "image"): "put the files on a faster disk, or nearer",
    ("reading", "text"): "put the files on a faster disk, or nearer",
    ("preparing", "image"): "more cores to decode, or smaller images",
    ("preparing", "text"): "more cores to tokenise",
}


def sum_stages(receipts: Iterable[Receipt]) -> tuple[Counter[str], Counter[str]]:
    """Return busy and waiting seconds per stage, and the further counts, of all shards."""
    stages: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for receipt in receipts:
        stages.update(receipt.seconds)  # type: ignore[arg-type]
        counts.update(receipt.counts)
    return stages, counts


def describe_bottleneck(stages: Counter[str], kind: str, precision: str = "") -> str:
    """Return one line on what the workers' time went to, and what would help.

    Args:
        stages: busy and waiting seconds per stage.
        kind: image or text.
        precision: of the store, if it is known.
    """
    waited, forwarding = stages["wait_prepare"], stages["wait_forward"]
    total = waited + forwarding
    if not total:
        return "none: nothing was embedded"
    share = round(100 * waited / total)
    if share >= WAITING_SHARE:
        heavier = "reading" if stages["read"] > stages["prepare"] else "preparing"
        return f"{heavier}: the encoder waited {share} % of the time; {_ADVICE[heavier, kind]} would help"
    faster = "bf16, more cores or a GPU" if precision == "fp32" else "more cores or a GPU"
    return f"encoder: it waited {share} % of the time; {faster} would help"


def encoder_busy_share(stages: Counter[str]) -> float | None:
    """Return the share of the embedding time in which the encoder was at work; None if nothing was embedded."""
    total = stages["wait_prepare"] + stages["wait_forward"]
    return round(stages["wait_forward"] / total, 3) if total else None


def write_trace(path: Path, phases: Phases, receipts: Iterable[Receipt]) -> None:
    """Write the run as trace events, the JSON that chrome://tracing and ui.perfetto.dev show.

    The driver's phases are one row; each worker process has rows of its shards with their stages, bytes and tokens.
    The format is that of the "Trace Event Format" document: complete events, times in microseconds.

    Raises:
        UsageError: the file cannot be written.
    """
    events: list[dict[str, Any]] = [
        _event("driver", "phases", span.name, span.started, span.seconds, {}) for span in phases.spans
    ]
    rows: dict[str, list[float]] = {}
    for receipt in sorted(receipts, key=lambda receipt: receipt.started):
        seconds = receipt.seconds.get("total", sum(receipt.seconds.values()))
        # Two shards at a time overlap in a worker: each goes to the first row that is free.
        ends = rows.setdefault(receipt.host, [])
        row = next((row for row, end in enumerate(ends) if end <= receipt.started), len(ends))
        ends[row : row + 1] = [receipt.started + seconds]
        details = {"items": receipt.items, "bytes": receipt.size_bytes, **receipt.seconds, **receipt.counts}
        name = f"shard {receipt.shard}"
        events.append(_event(f"worker {receipt.host}", f"slot {row}", name, receipt.started, seconds, details))
    try:
        write_atomic(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())
    except OSError as error:
        raise UsageError(
            f"--profile {path} cannot be written ({error.strerror or error})", "Name another file"
        ) from error


def _event(
    process: str, thread: str, name: str, started: float, seconds: float, args: dict[str, Any]
) -> dict[str, Any]:
    times = {"ts": round(started * 1e6), "dur": round(seconds * 1e6)}
    return {"name": name, "ph": "X", "pid": process, "tid": thread, **times, "args": args}
