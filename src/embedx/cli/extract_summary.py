"""What `embedx extract` tells people: of one store, or of each of several and what they share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embedx.cli import output
from embedx.core.reports import Report

SOURCES_SHOWN = 5
"""Of a dry run; all of them stand in its --json."""


def summary_lines(report: Report) -> Iterator[str]:
    """Say what an extraction did."""
    for store in report.get("stores", [report]):
        yield from _store_lines(store)
    if "stores" in report:
        read, size = report["items"]["read"], output.format_bytes(report["bytes_read"])
        yield f"{read:,} items ({size}) read once for the {len(report['stores'])} stores of {report['out']}"
    first = report.get("stores", [report])[0]
    if report["encoder_busy_share"] is not None:
        tokens = f", {report['tokens_per_s']:,.0f} tokens/s" if "tokens_per_s" in report else ""
        yield f"{output.format_seconds(report['seconds'])}, {report['items_per_s']:,.0f} items/s{tokens}"
        yield f"bottleneck: {report['bottleneck']}"
    if usage := report.get("usage"):
        yield ", ".join(f"{count:,} {name}" for name, count in usage.items() if count)
    yield from _ignored_lines(first)


def _store_lines(report: Report) -> Iterator[str]:
    items, encoder = report["items"], report["encoder"]
    if "error" in report:
        yield f"{report['out']} got no new version"
        return
    if report["run"] is None:
        state = f"{items['unchanged']:,} items of {report['out']} are up to date (version {report['version']})"
        yield f"nothing to do: {state}"
    else:
        done = f"{items['embedded']:,} embedded"
        more = [f"{items[name]:,} {name}" for name in ("failed", "updated", "removed", "unchanged") if items[name]]
        shards = report["shards"]
        reused = f" ({shards['reused']} of {shards['planned']} shards reused)" if shards["reused"] else ""
        yield f"{report['out']} is at version {report['version']}: {', '.join([done, *more])}{reused}"
        ran = f", ran on {encoder['runtime']}" if encoder["runtime"] else ""
        yield f"{encoder['ref']} {encoder['dim']}-d {encoder['precision']} ({encoder['why_precision']}){ran}"
    if words := report.get("words"):
        composed = f", {words['composed_share']:.1%} put together from parts" if words["composed_share"] else ""
        yield f"{words['read']:,} words read, {words['unknown_share']:.1%} unknown to the encoder{composed}"
    yield from _long_lines(report)
    if encoder["note"]:
        yield encoder["note"]
    if items["failed"] or items["failed_before"]:
        yield f"failed items are listed by: embedx failures {report['out']}"


def _long_lines(report: Report) -> Iterator[str]:
    if share := report.get("truncated_share"):
        yield f"{share:.1%} of the texts are longer than the encoder reads: --long chunk reads all of them"
    if (long := report.get("long")) and long["chunked"]:
        yield f"{long['chunked']:,} long texts were read in chunks, {long['windows']:,} chunks of all texts"


def forecast_lines(report: Report) -> Iterator[str]:
    """Say what an extraction would do."""
    items, size = report["items"], output.format_bytes(report["vector_bytes"])
    counted = f"{items['planned']:,} to embed, {items['unchanged']:,} unchanged"
    if "stores" in report:
        counted = f"{items['read']:,} to read for {len(report['stores'])} stores, {size} of raw vectors"
    yield f"{items['listed']:,} {report['kind']}s listed: {counted}"
    yield from _source_lines(report["sources"])
    columns = ", ".join(report["columns"]) or "none"
    for store in report.get("stores", []):
        yield f"{store['out']}: {_planned(store)}, {store['encoder']['ref']} {store['encoder']['dim']}-d"
    if "stores" not in report:
        yield f"{_shards(report)}, {size} of raw vectors, columns: {columns}"
    else:
        yield f"columns: {columns}"
    if estimate := report.get("estimate"):
        on = f", on {estimate['runtime']}" if "runtime" in estimate else ""
        took = f"{estimate['sampled']:,} items sampled at {estimate['items_per_s']:,.0f} items/s"
        failed = f" ({estimate['failed']:,} of them failed)" if estimate["failed"] else ""
        about = f"about {output.format_seconds(estimate['seconds'])} and {output.format_bytes(estimate['bytes'])}"
        yield f"{took}{failed}: {about} for all{on}"
        yield f"bottleneck: {estimate['bottleneck']}"
        yield from _long_lines(estimate)
    yield from _ignored_lines(report)


def _planned(store: Report) -> str:
    items = store["items"]
    return f"{items['planned']:,} to embed, {items['unchanged']:,} unchanged, {_shards(store)}"


def _shards(store: Report) -> str:
    shards = store["shards"]
    return f"{shards['planned']} shards ({shards['reused']} finished already)"


def _source_lines(sources: list[dict[str, Any]]) -> Iterator[str]:
    for source in sources[:SOURCES_SHOWN]:
        yield f"{source['label']}: {source['kind']}; ids: {source['ids']}; labels: {source['labels']}"
        if source["columns"]:
            yield f"    columns: {', '.join(f'{name} ({kind})' for name, kind in source['columns'].items())}"
        for item in source["first"]:
            yield f"    {item['id']}: {item['content']}"
    if len(sources) > SOURCES_SHOWN:
        yield f"... and {len(sources) - SOURCES_SHOWN:,} more sources"


def _ignored_lines(report: Report) -> Iterator[str]:
    if report["ignored_by_type"]:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(report["ignored_by_type"].items()))
        yield f"ignored: {kinds}"
    if report["positional_ids"]:
        sources = ", ".join(report["positional_ids"])
        yield f"warning: ids of {sources} are row numbers, which inserted rows shift; name an --id-column if you can"
