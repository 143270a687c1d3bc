"""How near is the pipeline to its own ceiling: encoding alone plus preparing alone?

    python benchmarks/pipeline.py [--photos FOLDER] [--rounds 5]

On a CPU decoding and encoding share the cores, so the ceiling is the sum of both done alone, each on all cores. Each
round measures preparing alone, encoding alone and both together in one process, then `embedx extract` (its phase
"embed", from the first shard task to the last receipt). Texts are also compared with the machine's bf16 peak, measured
as one large matrix product in the same runtime. The image encoders have random weights: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import read_texts, write_results
from images import CASES, MAKE_WEIGHTS

from embedx.core.batches import TOKENS_STEP, plan_batches
from embedx.core.specs import EncoderSpec
from embedx.corpora.content import ImageReader
from embedx.encoders.registry import parse_ref
from embedx.inference.feed import TEXT_CHUNK
from embedx.inference.pipeline import MAX_BATCH_ITEMS
from embedx.steps.encoding import Session, open_encoder_session

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))
import docstrings


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs; without it only texts are measured")
    parser.add_argument("--items", type=int, default=2_000, help="texts; a quarter as many photographs")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lines = ["| case | items/s together | of the ceiling | of the ceiling, embedx extract |", "|---|---|---|---|"]
    facts: dict[str, object] = {"rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        peak = gemm_peak()
        facts["bf16 peak, TFLOP/s"] = f"{peak / 1e12:.2f}"
        texts = Texts(home, arguments.items)
        case, rate = measure("MiniLM bf16, docstrings", texts, arguments.rounds)
        lines.append(case)
        share = rate * texts.tokens_each * texts.session.card.flops / peak
        facts["MiniLM encoding alone, of the bf16 peak"] = f"{share:.0%}"
        for name in ("resnet50", "clip") if arguments.photos else ():
            for precision in ("fp32", "bf16"):
                photos = Photos(home, name, precision, arguments.photos, arguments.items // 4)
                lines.append(measure(f"{CASES[name][1]} {precision}", photos, arguments.rounds)[0])
    write_results("pipeline", "The pipeline beside its own ceiling", lines, facts)


class Texts:
    """MiniLM over docstrings."""

    def __init__(self, home: Path, items: int) -> None:
        docstrings.build(home, per_package=5_000)
        texts = [text for name in ("train", "heldout") for text in read_texts(home / f"{name}.jsonl")]
        self.items = [texts[position * len(texts) // items] for position in range(items)]
        self.corpus = home / "texts.jsonl"
        rows = (json.dumps({"id": str(n), "text": text}) for n, text in enumerate(self.items))
        self.corpus.write_text("\n".join(rows) + "\n")
        self.flags = ["--encoder", "minilm"]
        self.precision = "bf16"
        self.session = open_session(parse_ref("minilm"), self.precision)
        self.chunk = TEXT_CHUNK
        prepared = self.session.embedder.encoder.prepare(self.items)
        self.tokens_each = float(self.session.embedder.encoder.cost(prepared).mean())

    def fetch(self, start: int, stop: int) -> list[Any]:
        """Return texts."""
        return self.items[start:stop]


class Photos:
    """An image encoder over photographs."""

    def __init__(self, home: Path, case: str, precision: str, photos: Path, items: int) -> None:
        weights = home / f"{case}.pt"
        if not weights.exists():
            save = "torch.save(make().state_dict(), sys.argv[1])"
            make = f"import sys, torch\ntorch.manual_seed(0)\n{MAKE_WEIGHTS[case]}\n{save}"
            subprocess.run([sys.executable, "-c", make, str(weights)], check=True)
        found = sorted(photos.rglob("*.jpg"))
        self.corpus = home / f"{case}-photos"
        self.corpus.mkdir(exist_ok=True)
        for number in range(items):
            link = self.corpus / f"{number:05}.jpg"
            if not link.exists():
                link.symlink_to(found[number * len(found) // items].resolve())
        self.items = [str(path) for path in sorted(self.corpus.iterdir())]
        self.flags = ["--encoder", CASES[case][1], "--weights", str(weights)]
        self.precision = precision
        self.session = open_session(parse_ref(CASES[case][1], str(weights)), precision)
        self.chunk = 1

    def fetch(self, start: int, stop: int) -> list[Any]:
        """Return decoded images."""
        with ImageReader(self.items[start:stop]) as reader:
            return [reader.read(position).item for position in range(stop - start)]


def open_session(spec: EncoderSpec, precision: str) -> Session:
    """Open an encoder on all cores."""
    return open_encoder_session(spec.to_dict(), "", precision)


def measure(name: str, case: Texts | Photos, rounds: int) -> tuple[str, float]:
    """Return a row of the table, and items/s of encoding alone."""
    shares, whole, rates, alone = [], [], [], []
    for number in range(rounds):
        prepare_s, prepared = timed(lambda: prepare_alone(case))
        encode_s, _ = timed(lambda prepared=prepared: encode_alone(case, prepared))
        del prepared
        together_s, _ = timed(lambda: case.session.embed(len(case.items), case.fetch))
        extract_s = extract(case)
        shares.append((prepare_s + encode_s) / together_s)
        whole.append((prepare_s + encode_s) / extract_s)
        rates.append(len(case.items) / together_s)
        alone.append(len(case.items) / encode_s)
        said = f"prepare {prepare_s:.2f} s, encode {encode_s:.2f} s, together {together_s:.2f} s, extract {extract_s:.2f} s"
        print(f"{name}, round {number}: {said}", file=sys.stderr, flush=True)
    median = statistics.median
    row = f"| {name} | {median(rates):,.0f} | {median(shares):.0%} | {median(whole):.0%} |"
    return row, median(alone)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def prepare_alone(case: Texts | Photos) -> list[Any]:
    """Read, decode and transform, or tokenise, everything on all cores."""
    encoder = case.session.embedder.encoder
    with ThreadPoolExecutor(cores()) as pool:
        edges = range(0, len(case.items), case.chunk)
        parts = pool.map(
            lambda start: encoder.prepare(case.fetch(start, min(start + case.chunk, len(case.items)))), edges
        )
        return [entry for part in parts for entry in part.items]


def encode_alone(case: Texts | Photos, prepared: list[Any]) -> None:
    """Run the forward passes of prepared entries in the pipeline's own batches."""
    encoder, runtime = case.session.embedder.encoder, case.session.embedder.runtime
    modality = encoder.card.modality
    costs = np.array([len(entry) for entry in prepared]) if modality == "text" else np.ones(len(prepared), dtype=int)
    batches = plan_batches(
        costs, runtime.batch_budget(modality), MAX_BATCH_ITEMS, TOKENS_STEP if modality == "text" else 1
    )
    with ThreadPoolExecutor(runtime.parallel_requests) as pool:
        list(pool.map(lambda batch: runtime.forward(encoder.collate([prepared[n] for n in batch])), batches))


def extract(case: Texts | Photos) -> float:
    """Run the command line; returns the seconds of its phase "embed"."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "embedx", "extract", str(case.corpus), *case.flags]
        command += ["--precision", case.precision, "--out", f"{folder}/store", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["phase_seconds"]["embed"])


def gemm_peak(size: int = 2_048, turns: int = 20) -> float:
    """Return bf16 FLOP/s of one (size x size) matrix product a core, the best of a few turns."""
    import openvino
    from openvino import opset13 as ops

    left = ops.parameter([size, size], np.float32)
    product = ops.matmul(
        left, ops.constant(np.random.default_rng(0).random((size, size), dtype=np.float32)), False, False
    )
    model = openvino.Model([product], [left])
    hints = {"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": cores(), "INFERENCE_NUM_THREADS": cores()}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    requests = [compiled.create_infer_request() for _ in range(cores())]
    values = np.random.default_rng(1).random((size, size), dtype=np.float32)
    best = 0.0
    for _ in range(turns):
        started = time.perf_counter()
        for request in requests:
            request.start_async({0: values}, share_inputs=True)
        for request in requests:
            request.wait()
        best = max(best, len(requests) * 2 * size**3 / (time.perf_counter() - started))
    return best


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
