"""`embedx fit-head`: learn a label from a store's vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from embedx.cli import output
from embedx.core.reports import Report

EXAMPLES = """
[bold]Examples[/bold]

embedx fit-head stores/clinc --label intent --out heads/intent

embedx fit-head stores/photos --label defect --labels labels.csv --out heads/defect

embedx fit-head stores/scans --label finding --group patient --out heads/finding --json
"""

MAX_SHOWN = 3


def register(app: typer.Typer) -> None:
    """Attach the command."""
    app.command("fit-head", epilog=EXAMPLES)(fit_head)


def fit_head(
    store: Annotated[Path, typer.Argument(help="The store, made by embedx extract.")],
    label: Annotated[str, typer.Option(help="The column to learn: carried by the store, or in --labels.")],
    out: Annotated[Path, typer.Option("--out", help="The head's folder; an older head in it is replaced.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="Labels of their own: .csv, .tsv, .jsonl or .parquet with item_id or id, and the label."),
    ] = None,
    kind: Annotated[str, typer.Option(help="auto or logistic; auto is logistic today.")] = "auto",
    test_size: Annotated[
        float,
        typer.Option(help="Share of the labelled rows held out to measure; 0 measures by cross-validation alone."),
    ] = 0.2,
    group: Annotated[
        str | None,
        typer.Option(help="Rows of equal value in this column (a patient, a video) are never split."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random splits.")] = 0,
    as_json: output.AsJson = False,
) -> None:
    """Fit a logistic regression on a store's vectors; its strength of regularisation is cross-validated.

    The metrics are of rows that were held out before anything was chosen; the head is then refitted on all rows.
    Rows without a label are left out and counted.
    """
    from embedx.heads.spec import HeadSpec
    from embedx.steps.fit_head import fit_head as step

    spec = HeadSpec(store, label, out, labels, kind, test_size, group, seed)
    progress = output.ProgressLine()
    try:
        report = step(spec, progress)
    finally:
        progress.close()
    output.show_report(report, as_json, summary(report))


def summary(report: Report) -> Iterator[str]:
    """Yield the lines a person reads."""
    evaluation, curve = report["evaluation"], report["C_curve"]
    left_out = f", {report['n_unlabelled']:,} without a label left out" if report["n_unlabelled"] else ""
    yield (
        f"Fitted {report['label']!r}: {len(report['classes']):,} classes from {report['n']:,} rows of "
        f"{report['store']['path']} ({report['encoder']['ref']}{left_out})"
    )
    yield from metric_lines(report, f"{evaluation['method']}, {evaluation['n_test']:,} rows")
    if evaluation["by_parent"]:
        yield from metric_lines({"metrics": evaluation["by_parent"]}, f"{evaluation['by_parent']['n']:,} whole texts")
    yield f"  C          {report['C']:g}, of {len(curve)} from {curve[0]['C']:g} to {curve[-1]['C']:g}"
    yield from hardest_lines(evaluation)
    for warning in report["warnings"]:
        yield f"  warning    {warning}"
    yield f"  head       {report['head']} (fitted on all rows, in {output.format_seconds(report['seconds'])})"
    yield f"  report     {Path(report['head']) / 'report.html'}"


def metric_lines(report: Report, where: str) -> Iterator[str]:
    """Yield the line of metrics."""
    metrics = report["metrics"]
    loss = "" if metrics["log_loss"] is None else f", log loss {metrics['log_loss']:.4f}"
    yield f"  accuracy   {metrics['accuracy']:.4f}, macro F1 {metrics['macro_f1']:.4f}{loss} ({where})"


def hardest_lines(details: Report) -> Iterator[str]:
    """Yield the most frequent confusions."""
    confusions = details["confusions"][:MAX_SHOWN]
    if confusions:
        pairs = "; ".join(f"{c['label']} taken for {c['predicted']} ({c['n']:,})" for c in confusions)
        yield f"  confused   {pairs}"
