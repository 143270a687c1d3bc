"""The embedding loop: failed items cost no other item anything, whatever the encoder does."""

import threading
import time

import numpy as np
import pytest

from embedx.core.contracts import Broken, EncoderCard, Forwarded, Prepared
from embedx.core.errors import TooLargeError
from embedx.core.meter import Meter, current_meter, metered
from embedx.inference.gates import measure_fidelity, passes_gate
from embedx.inference.pipeline import Embedder


class FakeEncoder:
    """Numbers as items: vector = (item, item squared); negative ones fail to prepare, 13 gives NaN."""

    def __init__(self, modality):
        self.card = EncoderCard("fake", "fake", modality, 2, "f", {}, {}, False, 1.0, 1)

    def prepare(self, items):
        failures = {p: i for p, i in enumerate(items) if isinstance(i, Broken)}
        failures |= {
            p: Broken("prepare", "Negative", "below zero") for p, i in enumerate(items) if p not in failures and i < 0
        }
        good = [p for p in range(len(items)) if p not in failures]
        return Prepared([items[p] for p in good], np.array(good, dtype=np.int64), failures)

    def cost(self, prepared):
        return np.array([1 + item % 7 for item in prepared.items], dtype=np.int64)

    def collate(self, entries):
        return {"x": np.array(entries, dtype=np.float32)}


class FakeRuntime:
    name, precision, parallel_requests = "fake", "fp32", 2

    def forward(self, inputs):
        x = np.where(inputs["x"] == 13, np.nan, inputs["x"])
        return np.stack([x, x**2], axis=1).astype(np.float32)

    def batch_budget(self, modality):
        return 10


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("count", [0, 1, 5, 700])
def test_every_item_ends_embedded_or_failed(modality, count):
    items = [Broken("read", "Gone", "gone", True) if n % 50 == 7 else (-n if n % 30 == 4 else n) for n in range(count)]
    embedder = Embedder(FakeEncoder(modality), FakeRuntime(), 2)
    result = embedder.embed(count, lambda start, stop: items[start:stop])
    bad = {n for n in range(count) if n % 50 == 7 or n % 30 == 4 or n == 13}
    assert set(result.failures) == bad
    assert result.positions.tolist() == [n for n in range(count) if n not in bad]
    assert np.array_equal(result.vectors[:, 0], result.positions.astype(np.float32))
    if count > 13:
        assert result.failures[13].error == "NotFinite"
    embedder.close()


@pytest.mark.parametrize(("side", "at_most"), [(4, 2 * 256), (1024, 2 * 21)])
def test_images_held_decoded_are_bounded_in_number_and_in_bytes(side, at_most):
    """Prepared and not yet forwarded: two windows, of 256 images or of 64 MiB."""
    held, most, lock = 0, 0, threading.Lock()

    class Squares(FakeEncoder):
        def prepare(self, items):
            nonlocal held, most
            with lock:
                held += len(items)
                most = max(most, held)
            square = np.broadcast_to(np.uint8(1), (3, side, side))
            return Prepared([square for _ in items], np.arange(len(items)), {})

        def cost(self, prepared):
            return np.ones(len(prepared.items), dtype=np.int64)

        def collate(self, entries):
            nonlocal held
            with lock:
                held -= len(entries)
            return {"x": np.ones(len(entries), dtype=np.float32)}

    embedder = Embedder(Squares("image"), FakeRuntime(), 2)
    result = embedder.embed(2000, lambda start, stop: list(range(start, stop)))
    embedder.close()
    assert len(result.vectors) == 2000
    assert at_most / 2 < most <= at_most


def test_an_encoder_of_another_dim_is_an_error():
    class Wrong(FakeRuntime):
        def forward(self, inputs):
            return np.zeros((len(inputs["x"]), 3), dtype=np.float32)

    with pytest.raises(ValueError, match="shape"):
        Embedder(FakeEncoder("text"), Wrong(), 1).embed(3, lambda start, stop: [1, 2, 3][start:stop])


def test_a_runtime_may_fail_single_items_whatever_their_rows_hold():
    class Choosy(FakeRuntime):
        def forward(self, inputs):
            refused = np.flatnonzero(inputs["x"] % 5 == 0).tolist()
            return Forwarded(super().forward(inputs), {row: Broken("forward", "Refused", "by five") for row in refused})

    embedder = Embedder(FakeEncoder("text"), Choosy(), 2)
    result = embedder.embed(40, lambda start, stop: list(range(start, stop)))
    embedder.close()
    assert {n: broken.error for n, broken in result.failures.items()} == {
        **{n: "Refused" for n in range(0, 40, 5)},
        13: "NotFinite",
    }
    assert result.positions.tolist() == [n for n in range(40) if n % 5 and n != 13]
    assert np.array_equal(result.vectors[:, 0], result.positions.astype(np.float32))


def test_an_item_that_does_not_fit_the_device_fails_alone():
    class Narrow(FakeRuntime):
        def forward(self, inputs):
            if 7 in inputs["x"]:
                raise TooLargeError("one item alone does not fit the device's memory")
            return super().forward(inputs)

    embedder = Embedder(FakeEncoder("text"), Narrow(), 2)
    result = embedder.embed(40, lambda start, stop: list(range(start, stop)))
    embedder.close()
    assert {n: (broken.error, broken.retryable) for n, broken in result.failures.items()} == {
        7: ("TooLargeError", True),
        13: ("NotFinite", False),
    }
    assert result.positions.tolist() == [n for n in range(40) if n not in (7, 13)]
    assert np.array_equal(result.vectors[:, 0], result.positions.astype(np.float32))


def test_after_an_error_no_further_batch_is_begun():
    class Failing(FakeRuntime):
        def forward(self, inputs):
            current_meter().take_request()  # that of the caller, in the forward threads too
            time.sleep(0.05)
            raise ConnectionError("gone")

    embedder = Embedder(FakeEncoder("text"), Failing(), 1)
    with metered(Meter()) as meter, pytest.raises(ConnectionError):
        embedder.embed(1000, lambda start, stop: [6] * (stop - start))
    time.sleep(0.5)  # a worker goes on with other tasks and does not close its embedder
    embedder.close()
    assert 1 <= meter.sums()["requests"] < 50  # of 1,000 batches


def test_gates():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(50, 32)) * 0.01 + rng.normal(size=32)
    assert passes_gate(measure_fidelity(reference + 1e-7, reference), "fp32")
    noisy = reference + rng.normal(size=reference.shape) * 0.002
    fidelity = measure_fidelity(noisy, reference)
    assert fidelity.raw_min > 0.9999 and not passes_gate(fidelity, "bf16"), "raw cosines hide what centring shows"
    one = reference[:1]
    assert passes_gate(measure_fidelity(one, one), "fp32")
    zeros = np.zeros_like(reference)
    assert measure_fidelity(zeros, reference).raw_min == 0.0, "a device that computes nothing"
    assert measure_fidelity(zeros, zeros).raw_min == 1.0
