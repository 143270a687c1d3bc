"""Make the table of encoders from what the conformance suite measured.

    python jobs/encoder_table.py MEASUREMENTS.jsonl docs/encoders.md

`make conformance` runs the suite and this; a test holds the table to the suite's cases.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

TOP = """\
# Encoders, measured

Every row is a case of `tests/conformance`: vectors of embedx, on the runtime that `--runtime auto` chooses, against the
library's own recipe in fp32 on awkward inputs (odd sizes, grey, CMYK, 16 bits, EXIF rotation; long and multilingual
texts). *fp32* and *bf16* are the least cosine over the items; *centred* is the same minus the mean of the items, which
is what tells items apart. fp32 must reach 0.99999 and 0.9999 centred. Whether bf16 may be used is judged with real
weights, and again on a sample of every corpus; on random weights its noise says nothing. Vectors must also not depend
on the other items of the batch, and planted preprocessing errors must fail.

Made by `make conformance` on {date}; {cpu}. Items per second are of a dozen awkward items in fp32 on one
core: an order of magnitude, not a benchmark.

| encoder | dim | runtime | fp32 | fp32 centred | bf16 | items/s | weights |
|---|---|---|---|---|---|---|---|
"""


def row(measured: dict[str, Any]) -> str:
    """Return one case as a line of the table."""
    fp32 = measured["fp32"]
    cells = (
        f"`{measured['encoder']}`",
        measured["dim"],
        measured["runtime"],
        round_down(fp32["raw_min"]),
        round_down(fp32["centred_min"]),
        bf16(measured["bf16"]),
        f"{measured['items_per_s']:.3g}",
        measured["weights"],
    )
    return "| " + " | ".join(map(str, cells)) + " |\n"


def bf16(measured: dict[str, Any] | None) -> str:
    """Return what bf16 costs, and the gate's verdict where there is one."""
    if measured is None:
        return "not measured"
    verdict = {True: " passes", False: " misses", None: ""}[measured["passes"]]
    return round_down(measured["raw_min"]) + verdict


def round_down(cosine: float) -> str:
    """Return a cosine with six digits, never rounded up to 1."""
    return f"{int(cosine * 1e6) / 1e6:.6f}"


def cpu_name() -> str:
    """Return this machine's processor, as the benchmarks name it."""
    sys.path.append(str(ROOT / "benchmarks"))
    from harness import cpu_name

    return cpu_name()


def main() -> None:
    """Read the measurements, the last one of each case, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", type=Path, help="what EMBEDX_CONFORMANCE_OUT named")
    parser.add_argument("table", type=Path, help="the Markdown file to write")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.measurements.read_text().splitlines()]
    cases = {measured["encoder"]: measured for measured in lines}
    if not cases:
        sys.exit(f"{arguments.measurements} holds no measurements")
    arguments.table.parent.mkdir(parents=True, exist_ok=True)
    top = TOP.format(date=datetime.date.today().isoformat(), cpu=cpu_name())
    arguments.table.write_text(top + "".join(row(cases[name]) for name in sorted(cases)))
    print(f"{arguments.table}: {len(cases)} encoders")


if __name__ == "__main__":
    main()
