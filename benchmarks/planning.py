"""How do planning, a no-op run and a resume grow with the number of items and of shards?

    python benchmarks/planning.py [--items 1000000 10000000] [--shards 10000]

Real runs of `embedx extract` with an encoder that costs nothing (`stub/`), so that what is measured is listing, diff,
plan and publish. The driver's memory is its peak of anonymous pages (pages of mapped files are the system's to drop).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import write_results
from measured import run_measured


def main() -> None:
    """Measure every size, then the resume."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    lines = ["| items | step | seconds | driver peak, MB |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for items in arguments.items:
            lines += measure_growth(Path(folder) / str(items), items)
            shutil.rmtree(Path(folder) / str(items))
        if arguments.shards:
            lines += measure_resume(Path(folder) / "shards", arguments.shards)
    write_results("planning", "Planning, no-op runs and resume", lines, {"encoder": "stub:4, costs nothing"})


def measure_growth(home: Path, items: int) -> list[str]:
    """Plan, extract, run again, and run with 1 % new, changed and relabelled each and 1 % gone."""
    home.mkdir()
    steps = []
    write_corpus(home / "corpus", items)
    steps.append(("plan of a new store (--dry-run)", embedx(home, "--dry-run")))
    steps.append(("whole extraction", embedx(home)))
    steps.append(("second run, nothing to do", embedx(home)))
    write_corpus(home / "corpus", items, generation=1)
    steps.append(("plan with 1 % new, changed, relabelled, gone", embedx(home, "--dry-run", "--mirror")))
    steps.append(("that run", embedx(home, "--mirror")))
    for name, result in steps:
        print(items, name, result, file=sys.stderr, flush=True)
    return [f"| {items:,} | {name} | {result['seconds']:.1f} | {result['peak_mb']:.0f} |" for name, result in steps]


def measure_resume(home: Path, shards: int) -> list[str]:
    """Finish every shard of a run but do not publish it (a failure limit of 0); then raise the limit."""
    home.mkdir()
    items = shards * 20
    write_corpus(home / "corpus", items, broken=1)
    many = {"EMBEDX_SHARD_ITEMS": "20"}
    whole = embedx(home, "--max-failures", "0", env=many, exit_status=3)
    resumed = embedx(home, "--max-failures", "1", env=many)
    assert resumed["report"]["shards"]["reused"] >= shards - 1, resumed["report"]["shards"]
    again = embedx(home, env=many)
    steps = [("whole extraction", whole), ("resume of the finished run", resumed), ("run with nothing to do", again)]
    return [
        f"| {items:,} in {shards:,} shards | {name} | {result['seconds']:.1f} | {result['peak_mb']:.0f} |"
        for name, result in steps
    ]


def write_corpus(folder: Path, items: int, generation: int = 0, broken: int = 0) -> None:
    """Write ten Parquet files of ids (36 characters), a label and a text; generation 1 differs in 4 % of the rows."""
    folder.mkdir(exist_ok=True)
    for part, rows in enumerate(np.array_split(np.arange(items), 10)):
        kept = rows if not generation else np.where(rows % 100 == 0, rows + 10 * items, rows)  # 1 % gone, 1 % new
        changed = (rows % 100 == 1) & bool(generation)
        relabelled = (rows % 100 == 2) & bool(generation)
        ids = [f"item-{row * 2654435761 % 2**64:020d}-{row:010d}" for row in kept.tolist()]
        texts = [
            "" if row < broken else f"document {row} of the corpus, version {int(new)}, words enough for a sentence"
            for row, new in zip(kept.tolist(), changed.tolist())
        ]
        labels = [f"label-{row % 50}{'-new' * int(new)}" for row, new in zip(kept.tolist(), relabelled.tolist())]
        table = pa.table({"id": ids, "text": texts, "label": labels})
        pq.write_table(table, folder / f"{part}.parquet")


def embedx(home: Path, *flags: str, env: dict[str, str] | None = None, exit_status: int = 0) -> dict:
    """Run `embedx extract` in a process of its own; returns its report, seconds and peak memory."""
    sources = [f"p{path.stem}={path}" for path in sorted((home / "corpus").glob("*.parquet"))]
    arguments = [*sources, "--encoder", "stub:4", "--columns", "label", "--out", str(home / "store"), *flags]
    return run_measured(arguments, env, exit_status)


if __name__ == "__main__":
    main()
