"""The trial of bf16 on a sample: what is compared, and with what."""

import numpy as np
import pytest

from embedx.core.contracts import Broken
from embedx.core.errors import TooLargeError
from embedx.inference.gates import measure_fidelity, passes_gate
from embedx.inference.pipeline import NOT_FINITE, Embedded
from embedx.steps import trial
from tests.steps.test_workers import job

VECTORS = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
GONE = Broken("read", "Gone", "gone", True)


def embedded(failures):
    good = np.array([place for place in range(10) if place not in failures])
    return Embedded(VECTORS[good], good, failures, {})


def test_an_item_that_only_the_fast_way_loses_fails_the_gate():
    vectors, reference = trial._matched(embedded({4: NOT_FINITE}), embedded({}))
    assert len(vectors) == 10 and not vectors[4].any() and np.array_equal(reference, VECTORS)
    assert not passes_gate(measure_fidelity(vectors, reference), "bf16")


@pytest.mark.parametrize(
    ("fast", "exact"),
    [({4: GONE}, {}), ({}, {4: GONE}), ({4: NOT_FINITE}, {4: NOT_FINITE}), ({1: GONE}, {4: GONE, 7: NOT_FINITE})],
)
def test_what_one_of_two_could_not_read_says_nothing(fast, exact):
    """As many failures in both need not be of the same items: rows are compared by their positions."""
    vectors, reference = trial._matched(embedded(fast), embedded(exact))
    assert len(vectors) == 10 - len({*fast, *exact}) and np.array_equal(vectors, reference)
    assert passes_gate(measure_fidelity(vectors, reference), "fp32")


def test_the_reference_is_computed_elsewhere_where_it_does_not_fit(tmp_path):
    opened = []

    def open_at(precision, device):
        opened.append((precision, device))
        if device != "cpu":
            raise TooLargeError("it does not fit")
        return "on the CPU"

    assert trial._open_reference(job(tmp_path), open_at) == "on the CPU"
    assert opened == [("fp32", "auto"), ("fp32", "cpu")]
