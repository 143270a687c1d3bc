"""`embedx conformance`: check an encoder against the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from embedx.cli import output
from embedx.core.reports import Report

EPILOG = """Examples

embedx conformance minilm

embedx conformance myfamily:small --json

docs/plugins.md says how to write an encoder of your own."""


def register(app: typer.Typer) -> None:
    """Attach the command."""
    app.command("conformance", epilog=EPILOG)(conformance)


def conformance(
    ref: Annotated[str, typer.Argument(metavar="REF", help="family:name, or an encoder file.")],
    weights: Annotated[str | None, typer.Option("--weights", help="Local weights of the encoder.")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="This layer's output as vector.")] = None,
    pooling: Annotated[str | None, typer.Option("--pooling", help="This pooling.")] = None,
    as_json: output.AsJson = False,
) -> int:
    """Check that an encoder keeps the contract: for authors of plug-ins. Exit status 1 if it does not."""
    from embedx.encoders.registry import parse_ref
    from embedx.steps.conformance import check_conformance

    progress = output.ProgressLine()
    try:
        report = check_conformance(parse_ref(ref, weights, layer, pooling), progress=progress)
    finally:
        progress.close()
    output.show_report(report, as_json, _lines(report))
    return 0 if report["ok"] else 1


def _lines(report: Report) -> Iterator[str]:
    for check in report["checks"]:
        yield f"{check['status']:<8} {check['name']:<11} {check['detail']}"
    failed = [check["name"] for check in report["checks"] if check["status"] == "failed"]
    verdict = f"breaks the contract: {', '.join(failed)}" if failed else "keeps the contract"
    yield f"{report['encoder']} {verdict} ({output.format_seconds(report['seconds'])})"
