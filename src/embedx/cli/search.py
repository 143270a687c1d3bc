"""`embedx search`: find the nearest items of a text, an image, an item or many queries."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from embedx.cli import output
from embedx.cli.places import StorageOptions, place
from embedx.core.reports import Report

EXAMPLES = """
[bold]Examples[/bold]

embedx search indexes/clinc --text "what's my bank balance" -k 5

embedx search indexes/clothing --image shirt.jpg --where "label <> 'shirt'"

embedx search indexes/photos --text "a dog on a beach"     (photos embedded by open_clip)

embedx search indexes/clinc --id train.jsonl#17 --json

embedx search indexes/clinc --queries questions.txt --out hits.parquet
"""

MAX_ID = 80
"""Longer ids are cut in the human output, never in JSON or Parquet."""

MAX_QUERIES_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Attach the command."""
    app.command("search", epilog=EXAMPLES)(search)


def search(
    index: Annotated[str, typer.Argument(help="The index, made by embedx index.")],
    text: Annotated[str | None, typer.Option(help="Search by a text.", rich_help_panel="Query")] = None,
    image: Annotated[Path | None, typer.Option(help="Search by an image file.", rich_help_panel="Query")] = None,
    item_id: Annotated[
        str | None, typer.Option("--id", help="Search by an item of the index.", rich_help_panel="Query")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Search by many: .txt (one per line); .jsonl, .csv, .tsv, .parquet (column text or query, or image "
            "with paths, perhaps id); .npy (vectors, one a row).",
            rich_help_panel="Query",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Hits per query.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(help="Only items for which this SQL condition over item_id and the columns holds."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the hits to this Parquet file.")] = None,
    storage_option: StorageOptions = None,
    as_json: output.AsJson = False,
) -> None:
    """Find the nearest items. Higher scores are nearer, whatever the metric.

    Texts and images are embedded by the encoder that the index names, or by the one that was trained to embed
    queries for it: the text tower of open_clip for images, a query prompt. Items and vectors need none.
    """
    from embedx.steps.search import SearchSpec, search_index

    spec = SearchSpec(place(index, storage_option), text, image, item_id, queries, k, where, out)
    report = search_index(spec)
    output.show_report(report, as_json, summary(report))


def summary(report: Report) -> Iterator[str]:
    """Yield the lines a person reads."""
    width = shutil.get_terminal_size((110, 24)).columns
    if "hits" in report:
        yield from _hit_lines(report["hits"], width)
    else:
        queries = report["queries"]
        for query in queries[:MAX_QUERIES_SHOWN]:
            yield _one_line(query["query"])[:width]
            yield from (f"  {line}" for line in _hit_lines(query["hits"], width - 2))
        if len(queries) > MAX_QUERIES_SHOWN:
            yield f"... and {len(queries) - MAX_QUERIES_SHOWN:,} more queries: see them with --json or --out"
        for failure in report["failures"]:
            yield f"no answer: {_one_line(failure['query'])[:60]} ({failure['message']})"
    if "out" in report:
        n_hits = sum(len(query["hits"]) for query in report.get("queries", [report]))
        yield f"Wrote {n_hits:,} hits to {report['out']}"


def _hit_lines(hits: list[dict[str, Any]], width: int) -> Iterator[str]:
    """Yield one aligned line per hit: rank, score, id, columns; one that repeats the id (a path) is left out."""
    columns = [name for name in (hits[0] if hits else {}) if name not in ("id", "score")]
    columns = [name for name in columns if not all(str(hit[name]).endswith(hit["id"]) for hit in hits)]
    # Short columns (labels) first and aligned, so that long ones (texts) can use the rest of the line.
    cells = {name: [_one_line(hit[name]) for hit in hits] for name in columns}
    columns.sort(key=lambda name: max(map(len, cells[name])))
    ids = [_shortened(hit["id"], MAX_ID) for hit in hits]
    widest_id = max(map(len, ids), default=0)
    for row, hit in enumerate(hits):
        parts = [f"{row + 1:>{len(str(len(hits)))}}", f"{hit['score']:>8.4f}", f"{ids[row]:<{widest_id}}"]
        for name in columns:
            parts.append(f"{cells[name][row]:<{min(30, max(map(len, cells[name])))}}")
        yield _shortened("  ".join(parts).rstrip(), max(width, 60))


def _one_line(value: object) -> str:
    return "" if value is None else " ".join(str(value).split())


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
