"""Two encoders over the same photographs: one run that reads each once, against two runs.

    python benchmarks/several.py PHOTOS --encoder A.toml --encoder B.toml [--rounds 3] [--items N]

PHOTOS is any folder of JPEGs (sub-folders too). Each contestant is a whole process (or two, one after the other), files to
published stores; the encoders are converted before, and bf16 is measured once. Beside the time: what each way read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Contestant, race, table, write_results
from images import enlarge, link

TWO_RUNS = """
import subprocess, sys
for number, encoder in enumerate(sys.argv[3:]):
    command = [sys.executable, "-m", "embedx", "extract", sys.argv[1], "--encoder", encoder]
    subprocess.run([*command, "--out", f"{sys.argv[2]}/{number}", "--json"], check=True)
"""


def main() -> None:
    """Race one run with two, on photographs as they are and enlarged to 12 megapixels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--encoder", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument(
        "--large", type=int, default=60, help="photographs enlarged to 12 megapixels; 0 leaves them out"
    )
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.rglob("*.jpg"))[: arguments.items]
    if not photos:
        sys.exit(f"{arguments.photos} holds no .jpg files: name a folder of photographs")
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        corpora = {"as they are": (home / "photos", link(photos, home / "photos"))}
        if arguments.large:
            corpora["of 12 megapixels"] = home / "large", enlarge(photos, home / "large", arguments.large)
        for name, (corpus, count) in corpora.items():
            lines += ["", f"## {count} photographs {name}", ""]
            lines += race_corpus(home, corpus, count, arguments)
    facts = {"encoders": ", ".join(Path(encoder).stem for encoder in arguments.encoder), "rounds": arguments.rounds}
    write_results("several", "Two encoders: one run against two", lines, facts)


def race_corpus(home: Path, corpus: Path, count: int, arguments: argparse.Namespace) -> list[str]:
    """Race on one corpus; returns the table."""
    encoders: list[str] = arguments.encoder
    apart, joint = home / "apart", home / "joint"
    together = [sys.executable, "-m", "embedx", "extract", str(corpus), "--out", str(joint), "--json"]
    together += [part for encoder in encoders for part in ("--encoder", encoder)]
    contestants = [
        Contestant(
            "two runs",
            [sys.executable, "-c", TWO_RUNS, str(corpus), str(apart), *encoders],
            before=lambda: shutil.rmtree(apart, True),
        ),
        Contestant("one run", together, before=lambda: shutil.rmtree(joint, True)),
    ]
    race(contestants, arguments.rounds, warm_up=1)
    shutil.rmtree(joint)
    report = json.loads(subprocess.run(together, capture_output=True, check=True).stdout)
    read = (
        f"one run read {report['items']['read']:,} files, {report['bytes_read'] / 1e6:.0f} MB; two runs twice as many"
    )
    precisions = ", ".join(f"{Path(s['out']).name} {s['encoder']['precision']}" for s in report["stores"])
    return [*table(contestants, count), "", f"{read}. {precisions}. {report['bottleneck']}"]


if __name__ == "__main__":
    main()
