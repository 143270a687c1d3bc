"""Do time and memory grow as they should: ten times the items, and thousands of shards?

    python benchmarks/scaling.py [--items 2000] [--shards 2000]

Ten times the items: MiniLM over docstrings, in shards of 500 so that both sizes have several; time and the peak of
anonymous memory of the driver and its workers together. Shards: an encoder that costs nothing, 200 and 2,000 shards of
20 texts; what remains is the cost of a shard. The scheduler runs in the driver, so its CPU seconds are in the driver's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from harness import read_texts, write_results
from measured import run_measured
from planning import embedx, write_corpus

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))
import docstrings


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--shards", type=int, default=2_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            *measure_items(Path(folder) / "items", arguments.items),
            "",
            *measure_shards(Path(folder) / "shards", arguments.shards),
        ]
    write_results("scaling", "Ten times the items, thousands of shards", lines, {})


def measure_items(home: Path, items: int) -> list[str]:
    """Extract some docstrings, and ten times as many."""
    home.mkdir()
    docstrings.build(home, per_package=5_000)
    texts = [text for name in ("train", "heldout") for text in read_texts(home / f"{name}.jsonl")]
    rows = []
    for count in (items, 10 * items):
        chosen = [texts[position * len(texts) // count] for position in range(count)]
        corpus = home / f"{count}.jsonl"
        corpus.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(chosen)))
        arguments = [str(corpus), "--encoder", "minilm", "--out", str(home / f"store{count}")]
        if not rows:  # converts the model
            run_measured([str(corpus), "--encoder", "minilm", "--limit", "50", "--out", str(home / "first")])
        rows.append((count, run_measured(arguments, {"EMBEDX_SHARD_ITEMS": "500"})))
    (_, small), (_, large) = rows
    peaks = ("tree_peak_mb", "peak_mb", "workers_peak_mb")
    lines = ["| items | seconds | peak MB | of the driver | of the workers |", "|---|---|---|---|---|"]
    for count, run in rows:
        lines.append(f"| {count:,} | {run['seconds']:.1f} | " + " | ".join(f"{run[peak]:.0f}" for peak in peaks) + " |")
    ratios = [large[name] / small[name] for name in ("seconds", *peaks)]
    return [*lines, "| ratio | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"]


def measure_shards(home: Path, shards: int) -> list[str]:
    """Extract with an encoder that costs nothing, in a tenth of the shards and in all."""
    runs = []
    for count in (shards // 10, shards):
        folder = home / str(count)
        folder.mkdir(parents=True)
        write_corpus(folder / "corpus", count * 20)
        runs.append((count, embedx(folder, env={"EMBEDX_SHARD_ITEMS": "20"})))
    lines = ["| shards | seconds | driver and scheduler, CPU s | their peak MB |", "|---|---|---|---|"]
    lines += [f"| {n:,} | {run['seconds']:.1f} | {run['cpu_s']:.1f} | {run['peak_mb']:.0f} |" for n, run in runs]
    (few, small), (many, large) = runs
    each = 1000 * (large["cpu_s"] - small["cpu_s"]) / (many - few)
    wall = 1000 * (large["seconds"] - small["seconds"]) / (many - few)
    return [*lines, "", f"Each further shard: {each:.1f} ms of CPU in driver and scheduler, {wall:.1f} ms in all."]


if __name__ == "__main__":
    main()
