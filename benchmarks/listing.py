"""How long does it take to list and plan many sources?

    python benchmarks/listing.py [--tars 1000] [--members 100] [--parquets 100] [--rows 10000]

`embedx extract --dry-run` on WebDataset tars of small images, and on Parquet files of image bytes and of texts, each from
listing to plan. Beside it, in the same run: what Python's tarfile needs to name the same members one tar after the other,
and what pyarrow needs to read the same ids. The driver's memory is its peak of anonymous pages. Then the listing alone with
several threads, the memory that prefixes of S3 take to be listed (a server that invents names), and what a cell of 10^9
bytes costs the process that reads it.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import write_results
from measured import run_measured

IMAGE_BYTES = 4_000


def main() -> None:
    """Write the corpora, measure them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tars", type=int, default=1_000)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--parquets", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--names", type=int, nargs="*", default=[20_000, 200_000], help="objects of a prefix")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    lines = [
        "| sources | items | embedx, seconds | driver peak, MB | peer, seconds | peer |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        home = Path(folder)
        shards = write_tars(home / "tars", arguments.tars, arguments.members)
        images = write_parquets(home / "images", arguments.parquets, arguments.rows, pa.binary())
        texts = write_parquets(home / "texts", arguments.parquets, arguments.rows, pa.string())
        cases: list[tuple[str, Path, str, int, Callable[[], None], str]] = [
            ("tars", shards, "pixels:8", arguments.tars * arguments.members, lambda: name_members(shards), "tarfile"),
            (
                "Parquet files of images",
                images,
                "pixels:8",
                arguments.parquets * arguments.rows,
                lambda: read_column(images, "id"),
                "pyarrow, ids alone",
            ),
            (
                "Parquet files of texts",
                texts,
                "stub:4",
                arguments.parquets * arguments.rows,
                lambda: read_column(texts, "text"),
                "pyarrow, texts alone",
            ),
        ]
        for name, path, encoder, items, peer, peer_name in cases:
            ours = run_measured([str(path), "--encoder", encoder, "--out", str(home / "store"), "--dry-run"])
            assert ours["report"]["items"]["planned"] == items, ours["report"]["items"]
            started = time.perf_counter()
            peer()
            theirs = time.perf_counter() - started
            count = len(list(path.iterdir()))
            lines.append(
                f"| {count:,} {name} | {items:,} | {ours['seconds']:.1f} | {ours['peak_mb']:.0f} | {theirs:.1f} | {peer_name} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
        lines += measure_threads(texts)
        lines += measure_prefixes(arguments.names)
        lines += measure_huge_cell(home / "huge.parquet")
    write_results("listing", "Listing and planning many sources", lines, {"what": "--dry-run, a process of its own"})


def measure_threads(folder: Path) -> list[str]:
    """List the texts in this process with some numbers of threads."""
    from embedx.core.specs import CorpusSpec
    from embedx.corpora import listing

    corpus = listing.open_corpus(CorpusSpec((str(folder),)))
    jobs = [lambda source=source: corpus._iterate_source(source) for source in corpus.sources]
    lines = ["", "| listing alone, threads | items | seconds |", "|---|---|---|"]
    for threads in (1, 2, 4, 8):
        started = time.perf_counter()
        items = sum(listed.rows.num_rows for listed in listing.iterate_ahead(jobs, threads))
        lines.append(f"| {threads} | {items:,} | {time.perf_counter() - started:.2f} |")
    return lines


PREFIX = """
import sys
from embedx.core.places import Access
from embedx.core.specs import CorpusSpec
from embedx.corpora.listing import open_corpus
from measured import anonymous_mb

access = Access((("endpoint_url", sys.argv[1]), ("key", "k"), ("secret", "s")))
corpus = open_corpus(CorpusSpec(("s3://pics/p/",), access=access))
items = peak = 0
for batch in corpus.iterate_batches():
    items += batch.num_rows
    peak = max(peak, anonymous_mb(__import__("os").getpid()))
print(items, round(peak))
"""


class Names(BaseHTTPRequestHandler):
    """Answers to ListObjectsV2 with pages of a thousand names."""

    protocol_version = "HTTP/1.1"
    count = 0

    def do_GET(self) -> None:
        """Give a page."""
        asked = parse_qs(urlsplit(self.path).query)
        start = int(asked.get("continuation-token", ["0"])[0])
        stop = min(self.count, start + 1000)
        more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < self.count else ""
        entry = "<Contents><Key>p/{0:02d}/{1:09d}.jpg</Key><Size>1</Size><ETag>&quot;{1:032d}&quot;</ETag></Contents>"
        entries = "".join(entry.format(number % 10, number) for number in range(start, stop))
        truncated = str(bool(more)).lower()
        body = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{entries}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def measure_prefixes(counts: list[int]) -> list[str]:
    """List prefixes of S3, each in a process of its own."""
    lines = ["", "| names below a prefix of S3 | seconds | peak of the process, MB |", "|---|---|---|"]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Names)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for count in counts:
        Names.count = count
        url = f"http://127.0.0.1:{server.server_address[1]}"
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PREFIX, url], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
        items, peak_mb = done.stdout.split()
        assert int(items) == count, done.stdout
        lines.append(f"| {count:,} | {time.perf_counter() - started:.1f} | {peak_mb} |")
        print(lines[-1], file=sys.stderr, flush=True)
    server.shutdown()
    return lines


HUGE_CELL = """
import sys
from embedx.corpora.content import read_image

item = read_image(f"parquet:1:image:{sys.argv[1]}").item
# Not getrusage, whose maximum begins at what the parent process had.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) // 1024, item.error)
"""


def measure_huge_cell(path: Path) -> list[str]:
    """Read a cell of 10^9 bytes between small ones."""
    image = pa.array([b"x", bytes(10**9), b"x"], pa.large_binary())
    pq.write_table(pa.table({"image": image}), path, compression="zstd", use_dictionary=False)
    done = subprocess.run([sys.executable, "-c", HUGE_CELL, str(path)], capture_output=True, text=True, check=True)
    peak_mb, error = done.stdout.split()
    return ["", f"Reading a cell of 10^9 bytes ends as {error}; peak of the process: {peak_mb} MB."]


def write_tars(folder: Path, count: int, members: int) -> Path:
    """Write tars of images with a caption each."""
    folder.mkdir()
    noise = np.random.default_rng(0).bytes(IMAGE_BYTES)
    for number in range(count):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for place in range(members):
                for suffix, data in ((".jpg", noise), (".txt", b"a caption")):
                    member = tarfile.TarInfo(f"{number:05d}{place:05d}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def write_parquets(folder: Path, count: int, rows: int, kind: pa.DataType) -> Path:
    """Write Parquet files of ids and images (or texts)."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        ids = [f"{number:05d}-{row:08d}" for row in range(rows)]
        if kind == pa.binary():
            content = {"image": pa.array([generator.bytes(IMAGE_BYTES // 8)] * rows, kind)}
        else:
            content = {"text": pa.array([f"document {row} of file {number}" for row in range(rows)])}
        pq.write_table(pa.table({"id": ids, **content}), folder / f"{number:05d}.parquet")
    return folder


def name_members(folder: Path) -> None:
    """List the members of all tars with the standard library."""
    for path in sorted(folder.iterdir()):
        with tarfile.open(path) as tar:
            tar.getnames()


def read_column(folder: Path, name: str) -> None:
    """Read one column of all files to Python."""
    for path in sorted(folder.iterdir()):
        pq.read_table(path, columns=[name]).to_pylist()


if __name__ == "__main__":
    main()
