"""`embedx inspect`, `verify`, `failures` and `history`: look, change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from embedx.cli import output
from embedx.core.reports import Report

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A folder made by embedx extract.")]
AnyPath = Annotated[Path, typer.Argument(metavar="PATH", help="A store, index or head.")]


def register(app: typer.Typer) -> None:
    """Attach the commands."""
    app.command("inspect", epilog="Examples\n\nembedx inspect store/\n\nembedx inspect store/ --files")(inspect)
    app.command("verify", epilog="Examples\n\nembedx verify store/\n\nembedx verify store/ --deep 100")(verify)
    app.command("failures", epilog="Example\n\nembedx failures store/ --json | jq .failures")(failures)
    app.command("history", epilog="Example\n\nembedx history store/")(history)


def inspect(
    path: AnyPath,
    files: Annotated[bool, typer.Option("--files", help="Only the data files, one per line.")] = False,
    as_json: output.AsJson = False,
) -> None:
    """Say what a store, index or head is."""
    from embedx.core.errors import UsageError
    from embedx.steps.artefacts import inspect as step

    report = step(path)
    if files and report["kind"] != "store":
        raise UsageError(f"--files lists the files of a store, {path} is an {report['kind']}", "Leave out --files")
    output.show_report(report, as_json, report["files"] if files else _describe(report))


def _describe(report: Report) -> Iterator[str]:
    if report["kind"] != "store":
        yield f"{report['path']}: {report['kind']}"
        yield from _flat(report["card"])
        return
    encoder = report["encoder"]
    yield f"{report['path']}: store, version {report['version']}"
    yield f"  rows      {report['count']:,} in {len(report['files'])} files, {output.format_bytes(report['bytes'])}"
    yield f"  vectors   {report['dim']}-d of {encoder['ref']}, {encoder['precision']} ({encoder['fingerprint'][:12]})"
    yield f"  columns   {', '.join(report['columns']) or 'none'}"
    yield f"  failures  {report['failures']:,}"
    if report["interrupted_runs"]:
        yield f"  open      {', '.join(report['interrupted_runs'])}: run its extract command again to finish it"


def _flat(card: dict[str, Any]) -> Iterator[str]:
    for key, value in card.items():
        text = str(value)
        yield f"  {key:<14} {text if len(text) <= 100 else text[:97] + '...'}"


def verify(
    path: AnyPath,
    deep: Annotated[int, typer.Option("--deep", metavar="N", help="Re-embed N items of a store and compare.")] = 0,
    storage_option: Annotated[
        list[str] | None,
        typer.Option("--storage-option", help="NAME=VALUE, as for extract; to read items again from s3://, ..."),
    ] = None,
    allow_private_networks: Annotated[
        bool, typer.Option("--allow-private-networks", help="Fetch URLs from private addresses, too.")
    ] = False,
    as_json: output.AsJson = False,
) -> int:
    """Check that a store, index or head holds what it promises; exit 1 if not."""
    from embedx.core.specs import Access, parse_storage_option
    from embedx.steps.verify import verify as step

    access = Access(tuple(map(parse_storage_option, storage_option or ())), allow_private_networks)
    report = step(path, deep, access)
    output.show_report(report, as_json, _verdict(report))
    return 0 if report["ok"] else 1


def _verdict(report: Report) -> Iterator[str]:
    if report["ok"]:
        yield f"{report['path']} is a sound {report['kind']}"
        return
    yield f"{report['path']}: {len(report['problems'])} problems"
    for problem in report["problems"]:
        yield f"  {problem['path']}: {problem['message']}"


def failures(path: StorePath, as_json: output.AsJson = False) -> None:
    """List the items that have no vector, and why."""
    from embedx.steps.artefacts import list_failures

    found = list_failures(path)
    lines = [f"{entry['id']}\t{entry['stage']}\t{entry['error']}\t{entry['message']}" for entry in found]
    counts = Counter(entry["error"] for entry in found)
    summary = ", ".join(f"{count} {error}" for error, count in counts.most_common()) or "none"
    output.show_report({"path": str(path), "failures": found}, as_json, [*lines, f"{len(found)} failed: {summary}"])


def history(path: StorePath, as_json: output.AsJson = False) -> None:
    """List the versions of a store, newest first."""
    from embedx.steps.artefacts import list_history

    versions = list_history(path)
    lines = [f"{entry['version']}\t{entry['operation']}\t{entry['run'] or ''}" for entry in versions]
    output.show_report({"path": str(path), "versions": versions}, as_json, lines)
