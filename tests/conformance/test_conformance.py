"""Every encoder equals its own library: raw and centred, in every batch, on awkward items; planted errors do not.

A family adds `<family>_cases.py` with `CASES`. `make test` runs a few of them. With `EMBEDX_CONFORMANCE_OUT=FILE`, as `make
conformance` sets it, all run, and the file gets the measurements, a JSON line a case, of which `jobs/encoder_table.py`
makes `docs/encoders.md`.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedx.core.contracts import Encoder
from embedx.corpora.decode import decode_image
from embedx.encoders.registry import open_encoder
from embedx.encoders.vision import ImageEncoder, ImageTransform
from embedx.inference.gates import Fidelity, measure_fidelity, passes_gate
from embedx.inference.pipeline import Embedder
from embedx.inference.runtimes import Execution, machine_has_bf16, open_runtime
from embedx.steps.conformance_checks import CHECKS as CHECKS_OF_CONTRACT
from embedx.steps.conformance_subject import Subject
from tests.conformance.support import Case, items_of


def discover() -> dict[str, Case]:
    """Return the cases of every `*_cases.py` beside this file, by name."""
    cases: dict[str, Case] = {}
    for path in sorted(Path(__file__).parent.glob("*_cases.py")):
        for case in importlib.import_module(f"{__package__}.{path.stem}").CASES:
            assert case.name not in cases, f"{case.name} is there twice"
            cases[case.name] = case
    return cases


CASES = discover()

SHORT = (
    "minilm",
    "open_clip:ViT-B-32#text",
    "sentence_transformers:minishlab/potion-base-4M",
    "timm:mobilenetv2_100",
    "timm:resnet18 --layer layer3.1 --pooling gem",
    "torchvision:squeezenet1_0",
    "transformers:bert",
    "transformers:dinov2",
    "transformers:gpt2",
    "word2vec:fastText",
)
"""Cases that `make test` runs; `make conformance` runs them all."""

CHOSEN = tuple(CASES) if os.environ.get("EMBEDX_CONFORMANCE_OUT") else SHORT


@contextmanager
def private_folder() -> Iterator[Path]:
    """An empty folder with embedx's cache inside, gone afterwards: weights and conversions are hundreds of MB."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="embedx-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDX_CACHE", str(Path(folder) / "cache"))
        yield Path(folder)
    torch.set_num_threads(threads)


@contextmanager
def opened(encoder: Encoder, precision: str = "fp32", runtime: str = "auto") -> Iterator[Embedder]:
    """The encoder as a shard task runs it, on one core: cases run side by side, and speeds compare."""
    execution = Execution(precision, runtime, device="cpu", threads=1)
    embedder = Embedder(encoder, open_runtime(encoder, execution).runtime, prepare_threads=2)
    yield embedder
    embedder.close()


def embed(embedder: Embedder, items: list[Any], plant: Callable[[Any], Any] = lambda item: item) -> np.ndarray:
    """Embed items in one go, each decoded and then spoilt by `plant`; none may fail."""

    def fetch(start: int, stop: int) -> list[Any]:
        return [plant(decode_image(item, "item") if isinstance(item, bytes) else item) for item in items[start:stop]]

    result = embedder.embed(len(items), fetch)
    assert not result.failures
    return result.vectors


@pytest.mark.parametrize("name", CHOSEN)
def test_equals_its_library(name):
    case = CASES[name]
    items = items_of(case)
    with private_folder() as folder:
        made = case.make(folder)
        encoder = open_encoder(made.spec)
        assert encoder.card.modality == case.modality
        check_contract(encoder)
        reference = made.recipe(items)
        assert reference.dtype == np.float32 and reference.shape == (len(items), encoder.card.dim)
        with opened(encoder) as exact:
            fp32 = judge(embed(exact, items), reference, "its own library")
            items_per_s = check_neighbours(exact, items, reference)
            check_planted_errors(exact, items, reference)
            if case.real and isinstance(encoder, ImageEncoder):
                check_planted_transforms(encoder, items, reference)
            runtime = exact.runtime.name
        record = {
            "encoder": name,
            "modality": case.modality,
            "dim": encoder.card.dim,
            "runtime": runtime,
            "fp32": {"raw_min": fp32.raw_min, "centred_min": fp32.centred_min},
            "bf16": measure_bf16(case, encoder, items, reference),
            "items_per_s": items_per_s,
            "weights": "real" if case.real else "random",
        }
    keep(record)


def check_contract(encoder: Encoder) -> None:
    """The checks of `embedx conformance` that need no vectors; those of vectors are made below, on more items."""
    with Subject(encoder, threads=1) as subject:
        for name in ("card", "spec", "prepare", "cost", "collate", "threads"):
            CHECKS_OF_CONTRACT[name](subject)


def judge(vectors: np.ndarray, reference: np.ndarray, what: str) -> Fidelity:
    """Measure vectors against a reference; the fp32 gate must pass."""
    fidelity = measure_fidelity(vectors, reference)
    assert passes_gate(fidelity, "fp32"), f"differs from {what}, {fidelity.describe()}"
    return fidelity


def check_neighbours(embedder: Embedder, items: list[Any], reference: np.ndarray) -> float:
    """Vectors do not depend on order, batch size, padding and neighbours; returns items per second."""
    started = time.perf_counter()
    backwards = embed(embedder, items[::-1])
    items_per_s = len(items) / (time.perf_counter() - started)
    judge(backwards[::-1], reference, "itself in another order")
    alone = np.concatenate([embed(embedder, [item]) for item in items])
    judge(alone, reference, "itself alone in the batch")
    return items_per_s


def swap_channels(image: Image.Image) -> Image.Image:
    """BGR for RGB."""
    red, green, blue = image.split()
    return Image.merge("RGB", (blue, green, red))


PLANTED: dict[str, Callable[[Any], Any]] = {"image": swap_channels, "text": lambda text: "and " + text}
"""What a wrong preprocessing would do to an item: the gate must notice."""


def check_planted_errors(embedder: Embedder, items: list[Any], reference: np.ndarray) -> None:
    """The gate is worth something: spoilt items fail it."""
    plant = PLANTED[embedder.encoder.card.modality]
    fidelity = measure_fidelity(embed(embedder, items, plant), reference)
    assert not passes_gate(fidelity, "fp32"), f"the gate passes spoilt items, {fidelity.describe()}"


class OffByTwo(ImageTransform):
    """A centre crop two pixels to the right."""

    def crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        left, top, right, bottom = super().crop_box(width, height)
        return left + 2, top, right + 2, bottom


def check_planted_transforms(encoder: ImageEncoder, items: list[Any], reference: np.ndarray) -> None:
    """With real weights the gate also notices each mistake that preprocessing is known for."""
    own = encoder.transform
    planted = {
        "no margin": replace(own, resize=own.crop),
        "crop off by two": OffByTwo.from_dict(own.to_dict()),
        "interpolation": replace(own, interpolation="bicubic" if own.interpolation == "bilinear" else "bilinear"),
        "no normalisation": replace(own, mean=(0.0,) * 3, std=(1.0,) * 3),
    }
    for error, transform in planted.items():
        spoilt = ImageEncoder(encoder.card, encoder._load)
        spoilt.transform = transform
        with opened(spoilt, runtime="torch") as wrong:
            fidelity = measure_fidelity(embed(wrong, items), reference)
        assert not passes_gate(fidelity, "fp32"), f"the gate passes {error}, {fidelity.describe()}"


def measure_bf16(case: Case, encoder: Encoder, items: list[Any], reference: np.ndarray) -> dict[str, Any] | None:
    """Measure what bf16 costs; judged with real weights only: random ones say nothing (DESIGN, fidelity gates)."""
    if encoder.card.direct or not machine_has_bf16("cpu"):
        return None
    with opened(encoder, "bf16") as fast:
        fidelity = measure_fidelity(embed(fast, items), reference)
    passed = passes_gate(fidelity, "bf16") if case.real else None
    return {"raw_min": fidelity.raw_min, "centred_min": fidelity.centred_min, "passes": passed}


def keep(record: dict[str, Any]) -> None:
    """Append a case's measurements to the file that `EMBEDX_CONFORMANCE_OUT` names."""
    if path := os.environ.get("EMBEDX_CONFORMANCE_OUT"):
        with Path(path).open("a") as file:
            file.write(json.dumps(record) + "\n")
