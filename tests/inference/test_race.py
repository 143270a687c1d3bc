"""Openvino is used where it is not slower than torch: measured at conversion, remembered, said."""

import json

import numpy as np
import pytest

from embedx.core.machine import cpu_name
from embedx.encoders.registry import open_encoder, parse_ref
from embedx.inference import openvino
from embedx.inference.runtimes import Execution, open_runtime


@pytest.fixture
def minilm(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path))
    return open_encoder(parse_ref("minilm"))


def test_both_are_timed_once_and_the_faster_one_is_used(minilm, tmp_path, monkeypatch):
    assert open_runtime(minilm, Execution("fp32", threads=2)).runtime.name in ("openvino", "torch")
    (record,) = tmp_path.glob("openvino/*/seconds.json")
    seconds = json.loads(record.read_text())[cpu_name()]
    assert set(seconds["fp32"]) == {"openvino", "torch"} and min(seconds["fp32"].values()) > 0
    monkeypatch.setattr(openvino, "_race", lambda *_: pytest.fail("timed again"))

    for even in ({"openvino": 1.1, "torch": 1.0}, {"openvino": 0.0008, "torch": 0.0001}):
        record.write_text(json.dumps({cpu_name(): {"fp32": even}}))
        assert open_runtime(minilm, Execution("fp32", threads=2)).runtime.name == "openvino"

    record.write_text(json.dumps({cpu_name(): {"fp32": {"openvino": 3.0, "torch": 1.5}}}))
    opened = open_runtime(minilm, Execution("fp32", threads=2))
    assert (opened.runtime.name, opened.note[:24]) == ("torch", "torch instead of openvin")
    assert "2.0 times as fast" in opened.note
    assert open_runtime(minilm, Execution("fp32", runtime="openvino", threads=2)).runtime.name == "openvino"

    monkeypatch.setattr(openvino, "cpu_name", lambda: "another machine with the same folder")
    assert open_runtime(minilm, Execution("fp32", threads=2)).runtime.name == "openvino"


def test_timing_leaves_the_converted_model_as_it_was(minilm):
    """Torch casts its module to bf16 in the race; what was saved before must be the exact weights."""
    inputs = minilm.collate(minilm.prepare(["a cat", "two dogs"]).items)
    fast = open_runtime(minilm, Execution("fp32", runtime="openvino", threads=2)).runtime
    exact = open_runtime(minilm, Execution("fp32", runtime="torch", threads=2)).runtime
    assert np.abs(fast.forward(inputs) - exact.forward(inputs)).max() < 1e-5


def test_a_torch_that_cannot_compute_a_precision_costs_nothing(minilm, tmp_path, monkeypatch):
    from embedx.inference import torch as torch_runtime

    original = torch_runtime.on_device

    def without_bf16(module, precision, device):
        if precision == "bf16":
            raise RuntimeError("not implemented for 'BFloat16'")
        return original(module, precision, device)

    monkeypatch.setattr(torch_runtime, "on_device", without_bf16)
    assert open_runtime(minilm, Execution("fp32", runtime="openvino", threads=2)).runtime.name == "openvino"
    (record,) = tmp_path.glob("openvino/*/seconds.json")
    assert set(json.loads(record.read_text())[cpu_name()]) == {"fp32"}
