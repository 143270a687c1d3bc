"""The demo (`make demo`): the whole of embedx on a real corpus, with the commands a user would type.

Running it again resumes what was interrupted, or finds nothing left to do.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import docstrings

HOME = Path("demo")
CORPUS, STORE, HELD_OUT, INDEX, HEAD = (HOME / name for name in ("corpus", "store", "heldout-store", "index", "head"))
PREDICTIONS = HOME / "predictions.parquet"

QUERIES = (
    "invert a matrix",
    "draw a progress bar in the terminal",
    "pretrained convolutional network for image classification",
    "read a table from a parquet file",
)

NOTHING_TO_DO = 99


def embedx(*arguments: str) -> int:
    """Show a command and run it; returns its exit status."""
    print("\n$ " + shlex.join(["embedx", *arguments]), flush=True)
    return subprocess.run([sys.executable, "-m", "embedx", *arguments], check=False).returncode


def must(*arguments: str) -> None:
    """Run a command and end the demo if it fails."""
    status = embedx(*arguments)
    if status:
        sys.exit(status)


def extract(name: str, store: Path) -> bool:
    """Extract one of the corpus files; returns whether anything was new."""
    source = str(CORPUS / f"{name}.jsonl")
    arguments = ("extract", source, "--encoder", "minilm", "--columns", "package,name", "--out", str(store))
    status = embedx(*arguments, "--exit-nothing-to-do")
    if status not in (0, NOTHING_TO_DO):
        sys.exit(status)
    return status == 0


def main() -> None:
    """Run the demo."""
    started = time.monotonic()
    print(
        "embedx demo: docstrings of the installed Python packages, encoder all-MiniLM-L6-v2, everything on this machine"
    )
    if not (CORPUS / "heldout.jsonl").exists():
        print("\n1. The corpus: docstrings with the package they come from")
        counts = docstrings.build(CORPUS, per_package=300)
        print(f"   {counts['train']:,} to learn from and {counts['heldout']:,} held out, in {CORPUS}/")
    print("\n2. Vectors: shard tasks on Dask worker processes, published as one version of a Delta table")
    is_new = extract("train", STORE)
    is_new_held_out = extract("heldout", HELD_OUT)
    if is_new or not (INDEX / "CURRENT").exists():
        print("\n3. An index over the vectors, with its recall measured")
        must("index", str(STORE), "--out", str(INDEX))
    print("\n4. Search it in plain words")
    for query in QUERIES:
        must("search", str(INDEX), "--text", query, "-k", "3")
    if is_new or not HEAD.exists():
        print("\n5. A head: which package does a docstring come from?")
        must("fit-head", str(STORE), "--label", "package", "--out", str(HEAD))
    print("\n6. How good is it on docstrings it has never seen?")
    must("evaluate", str(HELD_OUT), "--head", str(HEAD), "--label", "package")
    if is_new or is_new_held_out or not PREDICTIONS.exists():
        print("\n7. Predictions for all of them")
        must("predict", str(HELD_OUT), "--head", str(HEAD), "--out", str(PREDICTIONS))
    again = "" if is_new or is_new_held_out else " (nothing was left to embed: all vectors were there)"
    print(
        f"""
Done in {time.monotonic() - started:.0f} s{again}. What lies where:
  {CORPUS}/               the texts
  {STORE}/  {HELD_OUT}/   vectors, as Delta tables: any Parquet reader opens them
  {INDEX}/                the index, ids and columns included
  {HEAD}/                 the head and its card; nothing in it is a pickle
  {PREDICTIONS}

Try next (after: source .venv/bin/activate)
  embedx search {INDEX} --text "compute eigenvalues" --where "package = 'scipy'"
  embedx inspect {STORE}
  embedx verify {STORE} --deep 50
  embedx extract YOUR.jsonl --encoder minilm --out your-store
  embedx --help"""
    )


if __name__ == "__main__":
    main()
