"""The checks of `embedx conformance`: each takes the subject, returns a detail, raises where the contract breaks."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from embedx.core.contracts import Broken, EncoderCard, Prepared
from embedx.core.digests import fingerprint
from embedx.core.errors import EncoderError
from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
from embedx.inference.gates import measure_fidelity, passes_gate
from embedx.inference.pipeline import Embedded, Embedder
from embedx.steps.conformance_items import LONG_TEXT
from embedx.steps.conformance_subject import NoVectorsError, Subject

__all__ = ["CHECKS", "NoVectorsError", "SkippedError"]


class SkippedError(Exception):
    """A check does not apply here."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def check_card(subject: Subject) -> str:
    """The card is complete, JSON, and its fingerprint is that of its identity."""
    card = subject.encoder.card
    _require(isinstance(card, EncoderCard), f"card is a {type(card).__name__}, not an EncoderCard")
    _require(card.modality in ("image", "text"), f"modality {card.modality!r} is neither image nor text")
    _require(type(card.dim) is int and card.dim > 0, f"dim {card.dim!r} is no positive int")
    _require(bool(card.identity), "identity is empty: it must hold everything that changes the vectors")
    own = fingerprint(card.identity)
    _require(card.fingerprint == own, "fingerprint is not core.digests.fingerprint(identity)")
    _require(bool(card.ref) and card.ref.partition(":")[0] == card.family, f"ref {card.ref!r} is not of {card.family}")
    _require(math.isfinite(card.flops) and card.flops > 0, f"flops {card.flops} must be above 0: shards are cut by it")
    again = EncoderCard.from_dict(json.loads(json.dumps(card.to_dict())))
    _require(again.to_dict() == json.loads(json.dumps(card.to_dict())), "the card does not survive JSON")
    return f"{card.modality}, {card.dim}-d, {card.fingerprint[:12]}"


def check_spec(subject: Subject) -> str:
    """The card's spec, through JSON and without pickle, opens the same encoder again."""
    card = subject.encoder.card
    again = open_encoder(EncoderSpec.from_dict(json.loads(json.dumps(card.spec)))).card
    _require(again.fingerprint == card.fingerprint, "the card's spec opens an encoder of another fingerprint")
    return "opens the same encoder"


def check_process(subject: Subject) -> str:
    """A new process, with other hash seeds, opens the same encoder and has the same canaries."""
    card = subject.encoder.card
    done = subprocess.run(
        [sys.executable, "-m", "embedx.steps.conformance_process"],
        input=json.dumps(card.spec),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
    )
    _require(done.returncode == 0, f"a new process cannot open it: {done.stderr.strip()[-300:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    _require(told["fingerprint"] == card.fingerprint, f"a new process has fingerprint {told['fingerprint'][:12]}")
    own = canaries_digest(subject.encoder.canaries())
    _require(told["canaries"] == own, "a new process has other canaries")
    return "same fingerprint and canaries in a new process"


def check_canaries(subject: Subject) -> str:
    """There are several canaries, always the same ones, and every one has a vector of its own."""
    canaries = subject.encoder.canaries()
    _require(len(canaries) >= 2, f"{len(canaries)} canaries: at least two are needed to notice a change")
    _require(canaries_digest(canaries) == canaries_digest(subject.encoder.canaries()), "they differ between two calls")
    first = len(subject.items) - len(canaries)
    failed = [broken.message for position, broken in subject.reference.failures.items() if position >= first]
    _require(not failed, f"{len(failed)} canaries fail, the first one: {failed[:1]}")
    vectors = subject.rows(range(first, len(subject.items)))
    _require(len(np.unique(vectors, axis=0)) > 1, "all canaries have one vector")
    return f"{len(canaries)} canaries"


def canaries_digest(canaries: Sequence[Any]) -> str:
    """Return what identifies canaries: texts as they are, images by their pixels."""
    return fingerprint(
        [
            item if isinstance(item, str) else [item.mode, list(item.size), fingerprint(item.tobytes().hex())]
            for item in canaries
        ]
    )


def check_prepare(subject: Subject) -> str:
    """`prepare` accounts for every item, once, in order; also for items without content, and for no items."""
    count = len(subject.items)
    prepared = subject.encoder.prepare(subject.items)
    _check_prepared(prepared, count)
    odd = [*subject.items[:1], *_bad_items(subject), *subject.items[1:2]]
    _check_prepared(subject.encoder.prepare(odd), len(odd))
    _check_prepared(subject.encoder.prepare([]), 0)
    return f"{len(prepared.positions)} of {count} items prepared"


UNREAD = Broken("read", "Unreadable", "no such item")


def _bad_items(subject: Subject) -> list[Any]:
    """Return items without content, or that failed before: they may fail, and must not be lost."""
    return [UNREAD, "", " ", "?!", "\ud800"] if subject.encoder.card.modality == "text" else [UNREAD]


def _check_prepared(prepared: Prepared, count: int) -> None:
    _require(isinstance(prepared, Prepared), f"prepare returns a {type(prepared).__name__}, not a Prepared")
    positions = np.asarray(prepared.positions)
    _require(positions.ndim == 1 and positions.dtype == np.int64, f"positions must be int64, not {positions.dtype}")
    _require(len(prepared.items) == len(positions), f"{len(prepared.items)} entries at {len(positions)} positions")
    _require(bool((np.diff(positions) > 0).all()), "positions are not ascending")
    both = sorted([*positions.tolist(), *prepared.failures])
    _require(both == list(range(count)), f"positions and failures are {both[:8]}..., not each of {count} items once")
    wrong = [failure for failure in prepared.failures.values() if not isinstance(failure, Broken)]
    _require(not wrong, f"a failure is {wrong[:1]}, not a Broken")


def check_failures(subject: Subject) -> str:
    """A failed item is a value, and costs its neighbours nothing."""
    good = subject.reference.positions.tolist()[:2]
    mixed = [subject.items[good[0]], *_bad_items(subject), subject.items[good[-1]]]
    result = subject.embed(mixed)
    _require(result.failures.get(1) == UNREAD, "a Broken among the items does not come back as that failure")
    _require({0, len(mixed) - 1} <= set(result.positions.tolist()), "the neighbours of a failed item fail too")
    _judge(result.vectors[[0, -1]], subject.rows([good[0], good[-1]]), "vectors beside a failed item")
    return "failed items are values"


def check_cost(subject: Subject) -> str:
    """`cost` is one whole number per prepared item."""
    prepared = subject.encoder.prepare(subject.items)
    costs = np.asarray(subject.encoder.cost(prepared))
    _require(costs.shape == (len(prepared.positions),), f"cost has shape {costs.shape}")
    _require(costs.dtype.kind in "iu" and bool((costs >= 0).all()), f"costs must be whole numbers, not {costs.dtype}")
    return f"{costs.min()} to {costs.max()}"


def check_collate(subject: Subject) -> str:
    """`collate` gives named arrays, of as many rows as entries where a torch module takes them."""
    entries = subject.encoder.prepare(subject.items).items
    inputs = subject.encoder.collate(entries[:3])
    _require(isinstance(inputs, dict) and bool(inputs), "collate must return a dict of named arrays")
    for name, array in inputs.items():
        _require(isinstance(name, str) and isinstance(array, np.ndarray), f"input {name!r} is no array")
        if not subject.encoder.card.direct:
            _require(array.shape[:1] == (min(3, len(entries)),), f"input {name} has shape {array.shape} for 3 entries")
    return ", ".join(f"{name} {array.dtype}" for name, array in inputs.items())


def check_threads(subject: Subject) -> str:
    """`prepare` gives the same from several threads at once."""
    expected = _arrays(subject, subject.items)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: _arrays(subject, subject.items), range(8)):
            same = all(np.array_equal(found[name], array) for name, array in expected.items())
            _require(same, "prepare in four threads gives other arrays than in one")
    return "4 threads, 8 times"


def _arrays(subject: Subject, items: Sequence[Any]) -> dict[str, np.ndarray]:
    return subject.encoder.collate(subject.encoder.prepare(items).items)


def check_vectors(subject: Subject) -> str:
    """Vectors are float32, finite, of the card's length, and differ where items differ."""
    card, vectors = subject.encoder.card, subject.reference.vectors
    invalid = [broken for broken in subject.reference.failures.values() if broken.error == "NotFinite"]
    _require(not invalid, f"{len(invalid)} vectors are not finite")
    _require(vectors.dtype == np.float32 and vectors.shape[1] == card.dim, f"vectors are {vectors.dtype}")
    lengths = np.linalg.norm(vectors, axis=1)
    _require(bool((lengths > 0).all()), "a vector has length 0")
    if card.normalized:
        _require(bool(np.allclose(lengths, 1, atol=1e-3)), "the card promises length 1")
    distinct = len(np.unique(vectors, axis=0))
    _require(distinct > len(vectors) // 2, f"only {distinct} of {len(vectors)} different items have different vectors")
    failed = f", {len(subject.reference.failures)} items fail by name" if subject.reference.failures else ""
    return f"{len(vectors)} vectors{failed}"


def check_order(subject: Subject) -> str:
    """A vector does not depend on the order of the items."""
    _ = subject.reference  # nothing to compare with where there is none
    backwards = subject.embed(subject.items[::-1])
    _same_items(subject, [len(subject.items) - 1 - position for position in backwards.positions.tolist()][::-1])
    return _judge(backwards.vectors[::-1], subject.reference.vectors, "vectors in reversed order")


def check_neighbours(subject: Subject) -> str:
    """A vector does not depend on the other items of the batch."""
    _ = subject.reference
    alone = [subject.embed([item]) for item in subject.items]
    _same_items(subject, [position for position, result in enumerate(alone) if len(result.vectors)])
    vectors = np.concatenate([result.vectors for result in alone])
    return _judge(vectors, subject.reference.vectors, "vectors of items alone in their batch")


def _same_items(subject: Subject, positions: list[int]) -> None:
    _require(positions == subject.reference.positions.tolist(), "other items fail than all together in their order")


def _judge(vectors: np.ndarray, reference: np.ndarray, what: str) -> str:
    fidelity = measure_fidelity(vectors, reference)
    _require(passes_gate(fidelity, "fp32"), f"{what} miss the fp32 gate, {fidelity.describe()}")
    return fidelity.describe()


def check_windows(subject: Subject) -> str:
    """Windows of a text go on one from the other, hold every word, and are read whole; a text that fits is one."""
    encoder = subject.encoder
    cut = getattr(encoder, "windows", None)
    if cut is None:
        raise SkippedError("it has no windows: --long chunk is refused")
    texts = [*(item for item in subject.items if isinstance(item, str)), LONG_TEXT]
    found = cut(texts)
    _require(len(found) == len(texts), f"{len(found)} lists of windows for {len(texts)} texts")
    for text, spans in zip(texts, found):
        _check_spans(text, spans)
        is_read_whole = not encoder.prepare([text]).truncated
        _require(not is_read_whole or spans == [(0, len(text))], f"{text[:40]!r} fits, but is cut to {spans[:3]}")
        prepared = encoder.prepare([text[start:stop] for start, stop in spans])
        _require(not prepared.truncated, f"{prepared.truncated} of {len(spans)} windows of {text[:40]!r} are truncated")
        _require(not prepared.failures or len(spans) == 1, f"a window of {text[:40]!r} fails: {prepared.failures}")
    with ThreadPoolExecutor(4) as pool:
        _require(
            all(again == found for again in pool.map(lambda _: cut(texts), range(4))), "four threads cut elsewhere"
        )
    return f"{sum(map(len, found))} of {len(texts)} texts, {len(found[-1])} of the longest"


def _check_spans(text: str, spans: Sequence[tuple[int, int]]) -> None:
    shown = repr(text[:40])
    _require(bool(spans), f"{shown} has no window")
    _require(all(0 <= start < stop <= len(text) for start, stop in spans), f"a window of {shown} is empty or outside")
    pairs = list(itertools.pairwise(spans))
    _require(all(a[0] < b[0] and a[1] < b[1] for a, b in pairs), f"a window of {shown} does not go on from the last")
    gaps = [text[a[1] : b[0]] for a, b in pairs] + [text[: spans[0][0]], text[spans[-1][1] :]]
    lost = "".join(character for gap in gaps for character in gap if character.isalnum())
    _require(not lost, f"{len(lost)} letters of {shown} lie in no window, such as {lost[:20]!r}")


def check_openvino(subject: Subject) -> str:
    """Openvino gives the vectors that torch gives."""
    return _check_runtime(subject, "openvino", "cpu")


def check_cuda(subject: Subject) -> str:
    """A GPU gives the vectors that the CPU gives."""
    return _check_runtime(subject, "torch", "cuda")


def _check_runtime(subject: Subject, runtime: str, device: str) -> str:
    if subject.encoder.card.direct:
        raise SkippedError("the encoder computes by itself")
    _ = subject.reference
    try:
        embedder: Embedder = subject.embedder(runtime, device)
    except EncoderError as error:
        raise SkippedError(f"{error.message}; `--runtime auto` uses another") from None
    result: Embedded = subject.embed(subject.items, embedder)
    _same_items(subject, result.positions.tolist())
    return _judge(result.vectors, subject.reference.vectors, f"vectors on {runtime} {device}")


CHECKS: dict[str, Callable[[Subject], str]] = {
    "card": check_card,
    "spec": check_spec,
    "process": check_process,
    "prepare": check_prepare,
    "cost": check_cost,
    "collate": check_collate,
    "threads": check_threads,
    "vectors": check_vectors,
    "canaries": check_canaries,
    "failures": check_failures,
    "order": check_order,
    "neighbours": check_neighbours,
    "windows": check_windows,
    "openvino": check_openvino,
    "cuda": check_cuda,
}
"""Name -> check, in the order they run."""
