"""What an extraction reports: counts, shards, seconds, and what its time went to."""

from __future__ import annotations

from embedx.core.reports import Report
from embedx.corpora.listing import Corpus
from embedx.steps.bottleneck import describe_bottleneck, encoder_busy_share, sum_stages
from embedx.steps.flight import Extraction, Run
from embedx.steps.plan import Plan
from embedx.steps.publishing import Publication
from embedx.store import delta


def report_store(extraction: Extraction, run: Run) -> Report:
    """Return the report on one store: that of `extract`, with `error` where the store got no new version."""
    publication, corpus, card, preflight = run.publication, run.corpus, run.card, run.preflight
    plan, known = publication.plan, publication.card
    own_items = sum(receipt.embedded for receipt in publication.embedded)
    embedded = own_items + plan.kinds.get("adopted", 0)
    failed = sum(receipt.failed for receipt in publication.receipts) + plan.adopted_failed
    seconds = extraction.phases.elapsed_s
    stages, counts = sum_stages(publication.receipts)
    report: Report = {
        "out": str(publication.store.root),
        "run": None if plan.is_empty else plan.layout.run,
        "version": run.version,
        "items": item_counts(plan, corpus, embedded, failed),
        "rows": delta.open_snapshot(publication.store.root).rows,
        "ignored_by_type": dict(corpus.ignored),
        "shards": {
            "planned": len(plan.shard_rows) + len(plan.adopted),
            "reused": len(plan.adopted),
            "computed": len(plan.shard_rows),
        },
        "rewritten_bytes": sum(receipt.size_bytes for receipt in publication.rewritten),
        "seconds": round(seconds, 3),
        "items_per_s": round(own_items / seconds, 1) if seconds else 0.0,
        **_where_time_went(extraction),
        "stage_seconds": {name: round(value, 2) for name, value in sorted(stages.items())},
        "encoder": {
            "ref": card.ref,
            "fingerprint": card.fingerprint,
            "precision": known.precision if known else None,
            "why_precision": known.why_precision if known else "",
            "dim": card.dim,
            "runtime": next((receipt.runtime for receipt in reversed(publication.embedded)), None),
            "note": preflight.note if preflight else "",
        },
        "positional_ids": list(corpus.positional),
    }
    if counts.get("padded_cost"):
        report["padding_share"] = round(1 - counts["cost"] / counts["padded_cost"], 4)
    if counts.get("reduced"):
        report["reduced_jpegs"] = counts["reduced"]
    if counts.get("resized_by_torch"):
        report["resized_by_torch"] = counts["resized_by_torch"]
    if corpus.kind == "text":
        report |= _text_counts(publication)
        if not card.direct:
            tokens = sum_stages(publication.embedded)[1]["cost"]
            report["tokens_per_s"] = round(tokens / seconds, 1) if seconds else 0.0
    if len(extraction.runs) == 1 and extraction.usage:
        report["usage"] = extraction.usage
    if words := counts.get("words"):
        shares = {name: counts[f"{name}_words"] / words for name in ("unknown", "composed")}
        report["words"] = {"read": words, **{f"{name}_share": round(share, 4) for name, share in shares.items()}}
    if run.error is not None:
        report["error"] = run.error.to_dict()
    return report


def report_several(extraction: Extraction, stores: list[Report]) -> Report:
    """Return the report of an extraction to several stores.

    What was read and decoded is counted once; `items` are sums over the stores, but for `listed`.

    Args:
        extraction: at its end.
        stores: the reports on its stores.
    """
    stages, counts = sum_stages(extraction.receipts)
    seconds = extraction.phases.elapsed_s
    items = {name: sum(store["items"][name] for store in stores) for name in SUMMED}
    report: Report = {
        "out": str(extraction.root),
        "stores": stores,
        "items": {"listed": stores[0]["items"]["listed"], "read": counts["items_read"], **items},
        "bytes_read": counts["bytes_read"],
        "read_seconds": round(stages["read"], 2),
        "seconds": round(seconds, 3),
        "items_per_s": round(counts["items_read"] / seconds, 1) if seconds else 0.0,
        **_where_time_went(extraction),
        "stage_seconds": {name: round(value, 2) for name, value in sorted(stages.items())},
    }
    if extraction.usage:
        report["usage"] = extraction.usage
    if failed := [run for run in extraction.runs if run.error is not None]:
        error = failed[0].error.to_dict()  # type: ignore[union-attr]
        count = f"{len(failed)} of {len(stores)} stores got no new version; " if len(stores) > 1 else ""
        report["error"] = {**error, "message": f"{count}{failed[0].publication.store.root}: {error['message']}"}
    return report


SUMMED = ("planned", "embedded", "failed", "unchanged", "updated", "removed", "failed_before")
"""Counts of items that a report on several stores adds up."""


def _where_time_went(extraction: Extraction) -> Report:
    """Return what all stores of a run share: its tasks read for all of them."""
    stages, _ = sum_stages(extraction.receipts)
    cards = [run.publication.card for run in extraction.runs]
    precisions = sorted(card.precision for card in cards if card)
    return {
        "bottleneck": describe_bottleneck(stages, extraction.runs[0].corpus.kind, (precisions or [""])[-1]),
        "encoder_busy_share": encoder_busy_share(stages),
        "phase_seconds": {name: round(value, 3) for name, value in extraction.phases.seconds().items()},
    }


def _text_counts(publication: Publication) -> Report:
    """Return how many of the run's distinct texts were longer than the encoder reads, and what became of them."""
    receipts = [*publication.embedded, *(receipt for _, receipt in publication.plan.adopted)]
    _, counts = sum_stages(receipts)
    read = sum(receipt.items for receipt in receipts) - counts["copies"]
    report: Report = {
        "truncated": counts["truncated"],
        "truncated_share": round(counts["truncated"] / read, 4) if read else 0.0,
    }
    if publication.card and publication.card.long.chunks:
        how = {"mode": publication.card.long.mode, "pool": publication.card.long.pool}
        report["long"] = {**how, "chunked": counts["chunked"], "windows": counts["windows"]}
    return report


def report_plans(extraction: Extraction) -> Report:
    """Return the report of `extract --dry-run`; of several stores, that on each is among `stores`."""
    corpus = extraction.runs[0].corpus
    shared: Report = {
        "dry_run": True,
        "kind": corpus.kind,
        "ignored_by_type": dict(corpus.ignored),
        "sources": corpus.describe_sources(),
        "positional_ids": list(corpus.positional),
        "columns": [column.name for column in corpus.columns.carried],
    }
    stores = [_report_plan(run) for run in extraction.runs]
    if len(stores) == 1:
        return shared | stores[0]
    items = {name: sum(store["items"][name] for store in stores) for name in SUMMED}
    read = sum(shard.rows for shard in extraction.shards)
    return shared | {
        "out": str(extraction.root),
        "stores": stores,
        "items": {"listed": stores[0]["items"]["listed"], "read": read, **items},
        "vector_bytes": sum(store["vector_bytes"] for store in stores),
    }


def _report_plan(run: Run) -> Report:
    plan, card = run.publication.plan, run.card
    return {
        "out": str(run.spec.out),
        "items": item_counts(plan, run.corpus, embedded=plan.kinds.get("adopted", 0), failed=plan.adopted_failed),
        "shards": {
            "planned": len(plan.shard_rows) + len(plan.adopted),
            "reused": len(plan.adopted),
            "computed": 0,
        },
        "rewritten_files": len(plan.new_rewrites),
        "vector_bytes": plan.new_rows * card.dim * 4,
        "encoder": {"ref": card.ref, "fingerprint": card.fingerprint, "dim": card.dim},
    }


def item_counts(plan: Plan, corpus: Corpus, embedded: int, failed: int) -> dict[str, int]:
    """Return the counts that every report of an extraction has; adopted items count as embedded or failed."""
    return {
        "listed": plan.listed,
        "planned": plan.planned,
        "new": plan.kinds.get("new", 0),
        "changed": plan.kinds.get("changed", 0),
        "embedded": embedded,
        "failed": failed,
        "unchanged": plan.kinds.get("unchanged", 0),
        "updated": plan.kinds.get("updated", 0),
        "removed": plan.removed,
        "failed_before": plan.kinds.get("failed_before", 0),
        "duplicates": plan.duplicates,
        "ignored": sum(corpus.ignored.values()),
    }
