"""`embedx extract`: a corpus and an encoder to a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from embedx.cli import output
from embedx.core.errors import UsageError
from embedx.core.long_texts import parse_long
from embedx.core.reports import Report
from embedx.core.specs import (
    Access,
    CorpusSpec,
    EncoderSpec,
    ExtractSpec,
    FailureLimit,
    Resources,
    parse_share,
    parse_storage_option,
)

EPILOG = """Examples, one for each kind of source; more in docs/sources.md

embedx extract reviews.jsonl --encoder minilm --columns stars --out store

embedx extract photos/ --encoder encoder.toml --out store

embedx extract "shards/{00000..00001}.tar" --encoder encoder.toml --id-prefix source --out store

embedx extract photos.parquet --encoder encoder.toml --columns label --out store

embedx extract dataset/ --encoder encoder.toml --columns label --out store

embedx extract shop.csv --image-column picture --id-column sku --encoder encoder.toml --out store

embedx extract urls.jsonl --encoder encoder.toml --out store

embedx extract s3://bucket/photos/ --encoder encoder.toml --out store

embedx extract --sql "select id, text from 'reviews.parquet' where stars > 3" --encoder minilm --out store

embedx extract @sources.txt --encoder minilm --out store

The same command again embeds only what is new or changed, and resumes what was interrupted."""

SOURCES_SHOWN = 5
"""Of a dry run; all of them stand in its --json."""


def option(*names: str, help: str, panel: str, **more: Any) -> Any:
    """Return a typer option that stands under a heading of the help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def register(app: typer.Typer) -> None:
    """Attach the command."""
    app.command("extract", epilog=EPILOG)(extract)


def extract(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders of images, .tar, tables (.jsonl .csv .tsv .txt .parquet), HF datasets, URLs; "
            "patterns {00..99}; alias=PATH; @FILE lists sources.",
            show_default=False,
        ),
    ] = None,
    *,
    encoder: Annotated[str, option("--encoder", help="family:name, minilm, or an encoder .toml file.", panel="What")],
    out: Annotated[Path, option("--out", help="The store: a new or existing folder.", panel="What")],
    kind: Annotated[
        str | None, option("--kind", help="image or text; default: as the source is.", panel="What")
    ] = None,
    text_column: Annotated[str | None, option("--text-column", help="Column of the text.", panel="What")] = None,
    image_column: Annotated[
        str | None, option("--image-column", help="Column of images: bytes, paths or URLs.", panel="What")
    ] = None,
    id_column: Annotated[
        str | None,
        option("--id-column", help="Column of ids; default item_id, id, else row numbers.", panel="What"),
    ] = None,
    id_prefix: Annotated[
        str | None,
        option("--id-prefix", help="'source' puts the source's name before ids, where they collide.", panel="What"),
    ] = None,
    sql: Annotated[
        str | None,
        option("--sql", help="The corpus is the rows of a DuckDB query; SOURCE... are its databases.", panel="What"),
    ] = None,
    sources_file: Annotated[
        str | None, option("--sources-file", help="A list of sources, one per line; as @FILE.", panel="What")
    ] = None,
    storage_option: Annotated[
        list[str] | None,
        option("--storage-option", help="NAME=VALUE for s3://, gs://, ...; repeatable; never logged.", panel="What"),
    ] = None,
    allow_private_networks: Annotated[
        bool,
        option("--allow-private-networks", help="Fetch the corpus's URLs from private addresses, too.", panel="What"),
    ] = False,
    columns: Annotated[
        str | None,
        option("--columns", help="Columns to carry besides label, path or text; 'none'.", panel="What"),
    ] = None,
    on_duplicate: Annotated[
        str, option("--on-duplicate", help="Two items of one id: error, first or last.", panel="What")
    ] = "error",
    limit: Annotated[int | None, option("--limit", help="Only the first items.", panel="What")] = None,
    weights: Annotated[str | None, option("--weights", help="Local state dict or folder.", panel="Encoder")] = None,
    layer: Annotated[str | None, option("--layer", help="Node whose output is the vector.", panel="Encoder")] = None,
    pooling: Annotated[
        str | None, option("--pooling", help="avg, max, ...; default: the family's.", panel="Encoder")
    ] = None,
    precision: Annotated[
        str,
        option("--precision", help="auto, fp32 or bf16; fixed when the store is created.", panel="Encoder"),
    ] = "auto",
    store_precision: Annotated[
        str, option("--store-precision", help="Mantissa bits kept: 10 or full.", panel="Encoder")
    ] = "10",
    long: Annotated[
        str | None,
        option("--long", help="Texts longer than the encoder reads: truncate, or chunk to read all.", panel="Encoder"),
    ] = None,
    chunk_pool: Annotated[
        str | None,
        option("--chunk-pool", help="mean or max of the chunks: one row per text, not per chunk.", panel="Encoder"),
    ] = None,
    max_failures: Annotated[
        str, option("--max-failures", help="Failed items tolerated: N or P%; beyond it exit 3.", panel="Run")
    ] = "1%",
    retry_failed: Annotated[
        bool, option("--retry-failed", help="Try items again that failed before.", panel="Run")
    ] = False,
    mirror: Annotated[
        bool, option("--mirror", help="Also remove what is gone from these sources.", panel="Run")
    ] = False,
    max_removed: Annotated[
        str, option("--max-removed", help="The most that --mirror may remove.", panel="Run")
    ] = "20%",
    dry_run: Annotated[bool, option("--dry-run", help="Say what would be done; write nothing.", panel="Run")] = False,
    estimate: Annotated[
        bool, option("--estimate", help="Embed a sample for 30 s; say time, size, bottleneck.", panel="Run")
    ] = False,
    exit_nothing_to_do: Annotated[
        bool, option("--exit-nothing-to-do", help="Exit 99 if nothing is new or changed.", panel="Run")
    ] = False,
    cluster: Annotated[
        str,
        option("--cluster", help="local, or a scheduler: tcp://HOST:PORT.", panel="How", envvar="EMBEDX_CLUSTER"),
    ] = "local",
    workers: Annotated[
        int | None, option("--workers", help="Local worker processes.", panel="How", envvar="EMBEDX_WORKERS")
    ] = None,
    device: Annotated[str, option("--device", help="auto, cpu or cuda.", panel="How", envvar="EMBEDX_DEVICE")] = "auto",
    runtime: Annotated[
        str, option("--runtime", help="auto, openvino or torch.", panel="How", envvar="EMBEDX_RUNTIME")
    ] = "auto",
    max_requests: Annotated[
        int | None,
        option(
            "--max-requests",
            help="The most requests to a remote encoder.",
            panel="How",
            envvar="EMBEDX_MAX_REQUESTS",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        option("--profile", help="Write where the time went, for ui.perfetto.dev: FILE.json.", panel="How"),
    ] = None,
    as_json: output.AsJson = False,
) -> int:
    """Embed a corpus with a frozen encoder; only what is new or changed, resumable at any moment."""
    corpus = CorpusSpec(
        sources=(*(sources or ()), *((f"@{sources_file}",) if sources_file else ())),
        kind=kind,  # type: ignore[arg-type]
        text_column=text_column,
        image_column=image_column,
        id_column=id_column,
        columns=parse_columns(columns),
        on_duplicate=on_duplicate,
        limit=limit,
        sql=sql,
        id_prefix=id_prefix,
        access=Access(tuple(map(parse_storage_option, storage_option or ())), allow_private_networks),
    )
    if store_precision not in ("10", "full"):
        raise UsageError(f"--store-precision {store_precision!r} is neither 10 nor full", "Pass 10 or full")
    spec = ExtractSpec(
        corpus=corpus,
        encoder=_encoder_spec(encoder, weights, layer, pooling),
        out=out,
        precision=precision,  # type: ignore[arg-type]
        full_bits=store_precision == "full",
        max_failures=FailureLimit.parse(max_failures),
        retry_failed=retry_failed,
        mirror=mirror,
        max_removed=parse_share("--max-removed", max_removed),
        long=parse_long(long, chunk_pool),
    )
    resources = Resources(cluster, workers, device, runtime, max_requests=max_requests, profile=profile)
    if profile is not None and (dry_run or estimate):
        raise UsageError("--profile is of a run, and --dry-run and --estimate run nothing", "Leave one of them out")
    report = _run(spec, resources, dry_run, estimate)
    is_forecast = dry_run or estimate
    output.show_report(report, as_json, forecast_lines(report) if is_forecast else summary_lines(report))
    did_nothing = not is_forecast and report["run"] is None
    return 99 if did_nothing and exit_nothing_to_do else 0


def _run(spec: ExtractSpec, resources: Resources, dry_run: bool, estimate: bool) -> Report:
    from embedx.steps import extract as step
    from embedx.steps import forecast

    progress = output.ProgressLine()
    try:
        if estimate:
            return forecast.estimate_extract([spec], resources, progress)
        return forecast.plan_extract([spec], progress) if dry_run else step.extract(spec, resources, progress)
    finally:
        progress.close()


def _encoder_spec(ref: str, weights: str | None, layer: str | None, pooling: str | None) -> EncoderSpec:
    from embedx.encoders.registry import parse_ref

    return parse_ref(ref, weights, layer, pooling)


def parse_columns(text: str | None) -> tuple[str, ...] | None:
    """Read `a,b` or `none`."""
    if text is None:
        return None
    return () if text == "none" else tuple(name.strip() for name in text.split(",") if name.strip())


def summary_lines(report: Report) -> Iterator[str]:
    """Say what an extraction did."""
    items, encoder = report["items"], report["encoder"]
    if report["run"] is None:
        state = f"{items['unchanged']:,} items of {report['out']} are up to date (version {report['version']})"
        yield f"nothing to do: {state}"
    else:
        done = f"{items['embedded']:,} embedded"
        more = [f"{items[name]:,} {name}" for name in ("failed", "updated", "removed", "unchanged") if items[name]]
        shards = report["shards"]
        reused = f" ({shards['reused']} of {shards['planned']} shards reused)" if shards["reused"] else ""
        yield f"{report['out']} is at version {report['version']}: {', '.join([done, *more])}{reused}"
        yield (
            f"{output.format_seconds(report['seconds'])}, {report['items_per_s']:,.0f} items/s, {encoder['ref']} "
            f"{encoder['dim']}-d {encoder['precision']} ({encoder['why_precision']})"
        )
        if encoder["runtime"]:
            yield f"ran on {encoder['runtime']}; bottleneck: {report['bottleneck']}"
    if usage := report.get("usage"):
        yield ", ".join(f"{count:,} {name}" for name, count in usage.items() if count)
    if words := report.get("words"):
        composed = f", {words['composed_share']:.1%} put together from parts" if words["composed_share"] else ""
        yield f"{words['read']:,} words read, {words['unknown_share']:.1%} unknown to the encoder{composed}"
    yield from _long_lines(report)
    if encoder["note"]:
        yield encoder["note"]
    if items["failed"] or items["failed_before"]:
        yield f"failed items are listed by: embedx failures {report['out']}"
    yield from _ignored_lines(report)


def _long_lines(report: Report) -> Iterator[str]:
    if share := report.get("truncated_share"):
        yield f"{share:.1%} of the texts are longer than the encoder reads: --long chunk reads all of them"
    if (long := report.get("long")) and long["chunked"]:
        yield f"{long['chunked']:,} long texts were read in chunks, {long['windows']:,} chunks of all texts"


def forecast_lines(report: Report) -> Iterator[str]:
    """Say what an extraction would do."""
    items = report["items"]
    counted = f"{items['planned']:,} to embed, {items['unchanged']:,} unchanged"
    yield f"{items['listed']:,} {report['kind']}s listed: {counted}"
    yield from _source_lines(report["sources"])
    size, columns = output.format_bytes(report["vector_bytes"]), ", ".join(report["columns"]) or "none"
    shards = report["shards"]
    yield f"{shards['planned']} shards ({shards['reused']} finished already), {size} of raw vectors, columns: {columns}"
    if estimate := report.get("estimate"):
        took = f"{estimate['sampled']:,} items sampled at {estimate['items_per_s']:,.0f} items/s"
        failed = f" ({estimate['failed']:,} of them failed)" if estimate["failed"] else ""
        about = f"about {output.format_seconds(estimate['seconds'])} and {output.format_bytes(estimate['bytes'])}"
        yield f"{took}{failed}: {about} for all, on {estimate['runtime']}"
        yield f"bottleneck: {estimate['bottleneck']}"
        yield from _long_lines(estimate)
    yield from _ignored_lines(report)


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
