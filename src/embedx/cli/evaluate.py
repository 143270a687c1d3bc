"""`embedx evaluate`: judge a head on a labelled store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from embedx.cli import output
from embedx.cli.fit_head import hardest_lines, metric_lines
from embedx.core.reports import Report

EXAMPLES = """
[bold]Examples[/bold]

embedx evaluate stores/clinc-test --head heads/intent --label intent

embedx evaluate stores/photos --head heads/defect --label defect --labels checked.csv --json

embedx evaluate stores/books --head heads/genre --label genre --by-parent
"""

MAX_UNSEEN_SHOWN = 5


def register(app: typer.Typer) -> None:
    """Attach the command."""
    app.command("evaluate", epilog=EXAMPLES)(evaluate)


def evaluate(
    store: Annotated[Path, typer.Argument(help="The store, of the encoder that the head was fitted on.")],
    head: Annotated[Path, typer.Option(help="The head, made by embedx fit-head.")],
    label: Annotated[str, typer.Option(help="The column of true labels: carried by the store, or in --labels.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="Labels of their own: .csv, .tsv, .jsonl or .parquet with item_id or id, and the label."),
    ] = None,
    by_parent: Annotated[
        bool, typer.Option("--by-parent", help="Judge each text once, not each chunk: by the mean of its chunks.")
    ] = False,
    as_json: output.AsJson = False,
) -> None:
    """Say how well a head does: accuracy, macro F1, log loss, per class.

    Labels that the head was never trained on count as wrong, and are named; log loss leaves them out.
    """
    from embedx.steps.evaluate import EvaluateSpec, evaluate_head

    progress = output.ProgressLine()
    try:
        report = evaluate_head(EvaluateSpec(store, head, label, labels, by_parent), progress)
    finally:
        progress.close()
    output.show_report(report, as_json, summary(report))


def summary(report: Report) -> Iterator[str]:
    """Yield the lines a person reads."""
    left_out = f", {report['n_unlabelled']:,} without a label left out" if report["n_unlabelled"] else ""
    yield f"Evaluated {report['head']} on {report['store']['path']} ({report['encoder']['ref']}{left_out})"
    yield from metric_lines(report, f"{report['n']:,} {'texts' if report['by_parent'] else 'rows'}")
    yield from hardest_lines(report)
    unseen = report["unseen"]
    if unseen:
        names = ", ".join(list(unseen)[:MAX_UNSEEN_SHOWN]) + (", ..." if len(unseen) > MAX_UNSEEN_SHOWN else "")
        yield f"  unseen     {sum(unseen.values()):,} rows have labels that were never trained, so are wrong: {names}"
