"""`embedx delete` and `vacuum`: change or tidy a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedx.cli import output
from embedx.cli.places import StorageOptions, place

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="A store made by embedx extract: path or URL.")]


def register(app: typer.Typer) -> None:
    """Attach the commands."""
    app.command("delete", epilog="Example\n\nembedx delete store/ --ids withdrawn.txt")(delete)
    app.command("vacuum", epilog="Examples\n\nembedx vacuum store/ --dry-run\n\nembedx vacuum store/")(vacuum)


def delete(
    path: StorePath,
    ids: Annotated[Path, typer.Option("--ids", help="A .txt with one id per line, or a table with a column id.")],
    storage_option: StorageOptions = None,
    as_json: output.AsJson = False,
) -> None:
    """Remove items from a store as one new version; older versions keep them until vacuum."""
    from embedx.steps.maintenance import delete as step
    from embedx.steps.maintenance import read_ids

    report = step(place(path, storage_option), read_ids(ids))
    lines = [f"{path} is at version {report['version']}: {report['removed']:,} removed"]
    if report["missing"]:
        lines.append(f"{len(report['missing']):,} ids are not in the store, e.g. {report['missing'][0]!r}")
    output.show_report(report, as_json, lines)


def vacuum(
    path: StorePath,
    retention_hours: Annotated[
        float, typer.Option("--retention-hours", help="Keep what a version of this age may still read.")
    ] = 168.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    storage_option: StorageOptions = None,
    as_json: output.AsJson = False,
) -> None:
    """Delete files that no version needs any more: replaced ones, and leftovers of broken runs."""
    from embedx.steps.maintenance import vacuum as step

    report = step(place(path, storage_option), retention_hours, dry_run)
    verb = "would go" if dry_run else "deleted"
    orphans, replaced = report["orphans"], report["replaced"]
    size = output.format_bytes(report["orphan_bytes"])
    lines = [*orphans, *replaced, f"{len(replaced)} replaced files and {len(orphans)} leftovers ({size}) {verb}"]
    output.show_report(report, as_json, lines)
