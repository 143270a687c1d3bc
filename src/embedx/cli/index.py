"""`embedx index`: make a store searchable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from embedx.cli import output
from embedx.cli.places import StorageOptions, place
from embedx.core.reports import Report

EXAMPLES = """
[bold]Examples[/bold]

embedx index stores/clinc --out indexes/clinc

embedx index stores/clinc --out indexes/clinc --metric l2 --memory 4GiB --json
"""


def register(app: typer.Typer) -> None:
    """Attach the command."""
    app.command("index", epilog=EXAMPLES)(index)


def index(
    store: Annotated[str, typer.Argument(help="The store to index, made by embedx extract.")],
    out: Annotated[str, typer.Option("--out", help="The index's folder; a rebuild becomes its next version.")],
    metric: Annotated[str, typer.Option(help="cosine, ip (inner product) or l2 (Euclidean distance).")] = "cosine",
    recall: Annotated[float, typer.Option(help="The recall@10 to be measured before publishing.")] = 0.95,
    memory: Annotated[
        str | None,
        typer.Option(help="The most memory the opened index may need, e.g. 4GiB. Default: what there is."),
    ] = None,
    factory: Annotated[
        str | None,
        typer.Option(help="The structure in FAISS's notation. Default: chosen by size; today Flat (exact)."),
    ] = None,
    storage_option: StorageOptions = None,
    as_json: output.AsJson = False,
) -> None:
    """Build an index over a store's vectors, and measure its recall and speed.

    The index holds a copy of the vectors, the ids and the carried columns; it can be moved on its own.
    """
    from embedx.indexes.spec import IndexSpec, parse_memory_size
    from embedx.steps.index import index_store

    spec = IndexSpec(
        store=place(store, storage_option),
        out=place(out, storage_option),
        metric=metric,
        recall=recall,
        memory_bytes=None if memory is None else parse_memory_size(memory),
        factory=factory,
    )
    progress = output.ProgressLine()
    try:
        report = index_store(spec, progress)
    finally:
        progress.close()
    output.show_report(report, as_json, summary(report))


def summary(report: Report) -> Iterator[str]:
    """Yield the lines a person reads."""
    recall, latency = report["recall"], report["latency_ms"]
    yield (
        f"Indexed {report['count']:,} vectors of {report['dim']} values from {report['store']['path']} "
        f"(version {report['store']['version']}, {report['encoder']['ref']})"
    )
    yield f"  structure  {report['factory']}, {report['metric']} ({report['why']})"
    yield (
        f"  recall@{recall['k']}  {recall['value']:.4f} on {recall['n_queries']:,} held-out queries "
        f"(target {recall['target']:g})"
    )
    yield f"  speed      {report['qps']:,.0f} queries/s in batches, {latency['median']:.2f} ms for one"
    size, took = output.format_bytes(report["bytes"]), output.format_seconds(report["seconds"])
    yield f"  size       {size}, built in {took}"
    yield f"  index      {report['index']} (version {report['version']})"
