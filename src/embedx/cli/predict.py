"""`embedx predict`: name the class of every vector of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from embedx.cli import output
from embedx.core.reports import Report

EXAMPLES = """
[bold]Examples[/bold]

embedx predict stores/tickets --head heads/intent --out predictions.parquet

embedx predict stores/tickets --head heads/intent --out predictions.parquet --json

embedx predict stores/books --head heads/genre --by-parent --out predictions.parquet
"""

MAX_SHOWN = 5


def register(app: typer.Typer) -> None:
    """Attach the command."""
    app.command("predict", epilog=EXAMPLES)(predict)


def predict(
    store: Annotated[Path, typer.Argument(help="The store, of the encoder that the head was fitted on.")],
    head: Annotated[Path, typer.Option(help="The head, made by embedx fit-head.")],
    out: Annotated[Path, typer.Option("--out", help="The Parquet file to write; an older one is replaced.")],
    by_parent: Annotated[
        bool, typer.Option("--by-parent", help="One prediction a text, not one a chunk: the mean of its chunks.")
    ] = False,
    as_json: output.AsJson = False,
) -> None:
    """Predict every item of a store: item_id, prediction and its probability, in Parquet.

    In a store of --long chunk each chunk gets a prediction; with --by-parent each text does, by the mean of the
    probabilities of its chunks.
    """
    from embedx.steps.predict import PredictSpec, predict_store

    progress = output.ProgressLine()
    try:
        report = predict_store(PredictSpec(store, head, out, by_parent), progress)
    finally:
        progress.close()
    output.show_report(report, as_json, summary(report))


def summary(report: Report) -> Iterator[str]:
    """Yield the lines a person reads."""
    took = output.format_seconds(report["seconds"])
    yield f"Predicted {report['n']:,} items of {report['store']['path']} with {report['head']} in {took}"
    common = sorted(report["counts"].items(), key=lambda pair: -pair[1])[:MAX_SHOWN]
    shown = ", ".join(f"{label} {n:,}" for label, n in common if n)
    if shown:
        yield f"  classes    {shown}{', ...' if len(report['counts']) > MAX_SHOWN else ''}"
    yield f"  written    {report['out']} ({output.format_bytes(report['bytes'])})"
