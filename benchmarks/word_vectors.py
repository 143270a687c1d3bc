"""Word vectors at the size of published ones: first opening, later openings, memory of a second process, speed.

    python benchmarks/word_vectors.py [--words 1000000] [--dim 300]

The file is random: what is measured does not depend on the values. Speed is against gensim's `get_mean_vector` over the
same words, in one process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from harness import write_results

MEMORY = """
import sys, time
def own_memory():  # without the pages of files, which processes share
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
"""

CHILD = """
started = time.perf_counter()
from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
encoder = open_encoder(EncoderSpec("word2vec", sys.argv[1]))
opened = time.perf_counter() - started
from embedx.inference.pipeline import Embedder
from embedx.inference.runtimes import Execution, open_runtime
texts = open(sys.argv[2]).read().splitlines()
embedder = Embedder(encoder, open_runtime(encoder, Execution("fp32")).runtime, 1)
started = time.perf_counter()
result = embedder.embed(len(texts), lambda start, stop: texts[start:stop])
print(opened, len(texts) / (time.perf_counter() - started), own_memory())
"""

GENSIM = """
started = time.perf_counter()
from gensim.models import KeyedVectors
vectors = KeyedVectors.load_word2vec_format(sys.argv[1], binary=True)
opened = time.perf_counter() - started
texts = [text.split() for text in open(sys.argv[2]).read().splitlines()]
started = time.perf_counter()
for words in texts:
    vectors.get_mean_vector(words, pre_normalize=False)
print(opened, len(texts) / (time.perf_counter() - started), own_memory())
"""


def write_vectors(path: Path, words: int, dim: int) -> None:
    """Write word2vec's binary format: w0, w1, ..."""
    random = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(f"{words} {dim}\n".encode())
        for start in range(0, words, 10_000):
            block = random.standard_normal((min(10_000, words - start), dim), dtype=np.float32)
            for row, values in enumerate(block, start):
                file.write(f"w{row} ".encode() + values.tobytes() + b"\n")


def write_texts(path: Path, words: int, count: int = 20_000, length: int = 20) -> None:
    """Write texts of words whose frequency falls with their rank."""
    ranks = np.random.default_rng(2).zipf(1.2, size=(count, length)) % words
    path.write_text("\n".join(" ".join(f"w{rank}" for rank in row) for row in ranks))


def run(code: str, folder: Path) -> tuple[float, float, float]:
    """Run a child process; returns seconds to open, texts per second, memory of its own in MB."""
    command = [sys.executable, "-c", MEMORY + code, str(folder / "w.bin"), str(folder / "texts.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    opened, speed, memory = map(float, done.stdout.split())
    return opened, speed, memory / 1e6


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="embedx-words-") as name:
        folder = Path(name)
        os.environ["EMBEDX_CACHE"] = str(folder / "cache")
        write_vectors(folder / "w.bin", arguments.words, arguments.dim)
        write_texts(folder / "texts.txt", arguments.words)
        size = (folder / "w.bin").stat().st_size
        started = time.perf_counter()
        rows = [("embedx, first time", *run(CHILD, folder)), ("embedx, later", *run(CHILD, folder))]
        rows.append(("gensim", *run(GENSIM, folder)))
        lines = [
            f"A word2vec .bin of {arguments.words:,} words, {arguments.dim}-d, {size / 1e9:.2f} GB; 20,000 texts of 20 words.",
            "",
            "| | seconds to open | texts/s | memory of its own, MB |",
            "|---|---|---|---|",
            *(f"| {name} | {opened:.1f} | {speed:,.0f} | {memory:,.0f} |" for name, opened, speed, memory in rows),
            "",
        ]
        print("\n".join(lines), f"{time.perf_counter() - started:.0f} s")
        write_results("word_vectors", "Word vectors", lines, {"gensim": version("gensim")})


if __name__ == "__main__":
    main()
