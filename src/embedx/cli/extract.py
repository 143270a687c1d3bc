"""`embedx extract`: a corpus and an encoder to a store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from embedx.cli import output
from embedx.cli.extract_summary import forecast_lines, summary_lines
from embedx.core.errors import UsageError
from embedx.core.long_texts import parse_long
from embedx.core.memory import ARROW_POOL
from embedx.core.places import Access, parse_place, parse_storage_option
from embedx.core.reports import Report
from embedx.core.specs import CorpusSpec, EncoderSpec, ExtractSpec, FailureLimit, Resources, parse_share, spread

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

embedx extract photos/ --encoder small.toml --encoder large.toml --out stores

The last one reads every item once and fills stores/small and stores/large; see docs/several-encoders.md.

The same command again embeds only what is new or changed, and resumes what was interrupted."""


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
    encoder: Annotated[
        list[str],
        option(
            "--encoder",
            help="family:name, minilm, or an encoder .toml file; repeat it, as [NAME=]REF, for a store of each.",
            panel="What",
        ),
    ],
    out: Annotated[
        str,
        option("--out", help="The store: a folder or s3://...; of several encoders, their folder.", panel="What"),
    ],
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
    layer: Annotated[
        list[str] | None,
        option("--layer", help="Node whose output is the vector; repeatable: a store of each.", panel="Encoder"),
    ] = None,
    pooling: Annotated[
        list[str] | None,
        option("--pooling", help="avg, max, ...; default: the family's; repeatable: a store of each.", panel="Encoder"),
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
        int | None,
        option(
            "--workers",
            help="Local worker processes: else one per GPU, or per 8 cores.",
            panel="How",
            envvar="EMBEDX_WORKERS",
        ),
    ] = None,
    device: Annotated[
        str, option("--device", help="auto, cpu, cuda or mps.", panel="How", envvar="EMBEDX_DEVICE")
    ] = "auto",
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
    os.environ.setdefault(*ARROW_POOL)
    access = Access(tuple(map(parse_storage_option, storage_option or ())), allow_private_networks)
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
        access=access,
    )
    if store_precision not in ("10", "full"):
        raise UsageError(f"--store-precision {store_precision!r} is neither 10 nor full", "Pass 10 or full")
    encoders = _encoders(encoder, weights, layer or [], pooling or [])
    spec = ExtractSpec(
        corpus=corpus,
        encoder=next(iter(encoders.values())),
        out=parse_place(out, access),
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
    is_forecast = dry_run or estimate
    report = _run(_Command(spec, encoders, resources), dry_run, estimate)
    output.show_report(report, as_json, forecast_lines(report) if is_forecast else summary_lines(report))
    if failed := report.get("error"):
        return output.note_error(failed, as_json)
    did_nothing = not is_forecast and all(store["run"] is None for store in report.get("stores", [report]))
    return 99 if did_nothing and exit_nothing_to_do else 0


@dataclass(frozen=True)
class _Command:
    """What was asked for: one store, or one of each encoder."""

    spec: ExtractSpec
    encoders: dict[str, EncoderSpec]
    resources: Resources

    @property
    def specs(self) -> tuple[ExtractSpec, ...]:
        return (self.spec,) if len(self.encoders) == 1 else spread(self.spec, self.encoders)


def _run(command: _Command, dry_run: bool, estimate: bool) -> Report:
    from embedx.steps import extract as step
    from embedx.steps import forecast

    progress = output.ProgressLine()
    specs, out, resources = command.specs, command.spec.out, command.resources
    try:
        if estimate:
            return forecast.estimate_extract(specs, out, resources, progress)
        if dry_run:
            return forecast.plan_extract(specs, out, progress)
        if len(specs) > 1:
            return step.extract_several(specs, resources, progress)
        return step.extract(specs[0], resources, progress)
    finally:
        progress.close()


def _encoders(refs: list[str], weights: str | None, layers: list[str], poolings: list[str]) -> dict[str, EncoderSpec]:
    from embedx.encoders.naming import name_encoders, split_name

    named = name_encoders(refs, weights, layers, poolings)
    if len(named) == 1 and split_name(refs[0])[0]:
        raise UsageError(f"--encoder {refs[0]} names the store of one encoder, which is --out", "Leave the name out")
    return named


def parse_columns(text: str | None) -> tuple[str, ...] | None:
    """Read `a,b` or `none`."""
    if text is None:
        return None
    return () if text == "none" else tuple(name.strip() for name in text.split(",") if name.strip())
