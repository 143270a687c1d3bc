"""The torch runtime: lower precision without its pooling, images in channels_last, batches that do not fit."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from embedx.core.errors import EncoderError, TooLargeError
from embedx.encoders.image_module import PixelsToVectors
from embedx.encoders.registry import open_encoder, parse_ref
from embedx.inference import torch as torch_runtime
from embedx.inference.gates import measure_fidelity, passes_gate
from embedx.inference.torch import (
    TorchRuntime,
    cast_to_bf16,
    check_device,
    device_is_there,
    on_device,
    open_torch,
    pack_where_it_pays,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


class Photographs:
    """An encoder as far as `open_torch` needs one: a small CNN with random weights."""

    def build(self):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return PixelsToVectors(nn.Sequential(*layers), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def pixels(count):
    return {"pixels": np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)}


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_of_a_text_encoder_passes_its_gate(device):
    encoder = open_encoder(parse_ref("minilm"))
    inputs = encoder.collate(encoder.prepare(["a cat", "two dogs in a garden", "what is the time? " * 9]).items)
    exact, fast = (open_torch(encoder, precision, 2, device) for precision in ("fp32", "bf16"))
    vectors, reference = fast.forward(inputs), exact.forward(inputs)
    assert vectors.dtype == np.float32
    assert not np.array_equal(vectors, reference), "bf16 was not used"
    assert passes_gate(measure_fidelity(vectors, reference), "bf16")


def test_only_the_backbone_is_cast():
    encoder = open_encoder(parse_ref("minilm"))
    module = encoder.build()
    module.backbone.to(torch.bfloat16)
    seen = []
    for part in module.rest:
        part.register_forward_pre_hook(lambda _, given: seen.append(given[0]["token_embeddings"].dtype))
    module(*(torch.from_numpy(a) for a in encoder.collate(encoder.prepare(["a cat"]).items).values()))
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_images_are_the_module_s_own(device, precision):
    runtime = open_torch(Photographs(), precision, 2, device)
    with torch.no_grad():
        reference = Photographs().build()(torch.from_numpy(pixels(5)["pixels"])).numpy()
    assert np.abs(runtime.forward(pixels(5)) - reference).max() < (1e-6 if precision == "fp32" else 2e-2)


class Small(nn.Module):
    """A module for which more than a few items at a time do not fit."""

    def __init__(self, most):
        super().__init__()
        self.most = most
        self.sizes = []

    def forward(self, pixels):
        self.sizes.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels.float().mean((2, 3))


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered():
    module = Small(3)
    runtime = TorchRuntime(module, "fp32", "cpu")
    expected = pixels(16)["pixels"].astype(np.float32).mean((2, 3))
    for _ in range(2):
        assert np.allclose(runtime.forward(pixels(16)), expected)
    assert module.sizes == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2] + [2] * 8


def test_one_item_that_does_not_fit_is_an_error():
    with pytest.raises(TooLargeError, match="one item alone"):
        TorchRuntime(Small(0), "fp32", "cpu").forward(pixels(4))


class Shared(nn.Module):
    """A module of which two batches at a time do not fit; each waits for the other the first time."""

    def __init__(self):
        super().__init__()
        self.both = threading.Barrier(2)
        self.calls = 0

    def forward(self, pixels):
        self.calls += 1
        if self.calls <= 2:
            self.both.wait(60)
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        return pixels.float().mean((2, 3))


def test_what_the_other_stream_had_no_room_for_is_tried_alone(monkeypatch):
    monkeypatch.setitem(torch_runtime.DEVICES, "cpu", replace(torch_runtime.DEVICES["cpu"], streams=2))
    runtime = TorchRuntime(Shared(), "fp32", "cpu")
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(runtime.forward, [pixels(1)] * 2))
    assert np.allclose(found, pixels(1)["pixels"].astype(np.float32).mean((2, 3)))


def test_an_encoder_that_does_not_fit(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch_runtime, "on_device", full)
    with pytest.raises(TooLargeError, match="minilm in fp32 does not fit") as raised:
        open_torch(open_encoder(parse_ref("minilm")), "fp32", 1, "cpu")
    assert "--precision bf16" in raised.value.remedy


def test_far_tokens_keep_their_places_in_bf16():
    """Rotary frequencies of 8 bits are off by whole turns after a thousand tokens."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaModel(LlamaConfig(vocab_size=200, max_position_embeddings=2048, **sizes)).eval()
    for layer in model.layers:  # attention that looks closely
        layer.self_attn.q_proj.weight.data *= 10
        layer.self_attn.k_proj.weight.data *= 10
    ids = torch.randint(0, 200, (2, 1500))

    def cosine(cast):
        lower = copy.deepcopy(model)
        cast(lower)
        with torch.no_grad():
            vectors, exact = (each(input_ids=ids).last_hidden_state[:, -1].float() for each in (lower, model))
        return nn.functional.cosine_similarity(vectors, exact).min().item()

    assert cosine(cast_to_bf16) > 0.99 > 0.97 > cosine(lambda lower: lower.to(torch.bfloat16))


class Stopwatch:
    """Gives the times that it was told to, in turn."""

    def __init__(self, *seconds):
        self.seconds = iter(seconds)

    def __call__(self, call):
        call()
        return next(self.seconds)


@pytest.mark.parametrize(
    ("long_and_short", "kept"),
    [((2.0, 2.0, 1.0, 1.0), True), ((1.0, 2.0, 2.0, 1.0), False), ((2.0, 1.0, 1.0, 2.0), False)],
)
def test_texts_are_packed_where_it_pays(monkeypatch, long_and_short, kept):
    monkeypatch.setattr("embedx.inference.torch.best_of", Stopwatch(*long_and_short))
    encoder = open_encoder(parse_ref("minilm"))
    module = encoder.build()
    runtime = on_device(module, "fp32", "cpu")
    inputs = encoder.collate(encoder.prepare(["a cat", "two dogs in a garden", "what is the time? " * 9]).items)
    reference = runtime.forward(inputs)
    pack_where_it_pays(encoder, module, runtime)
    assert runtime.way == ("torch fp32, packed" if kept else "torch fp32")
    vectors = runtime.forward(inputs)
    assert np.array_equal(vectors, reference) != kept
    assert passes_gate(measure_fidelity(vectors, reference), "fp32")


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_what_packing_breaks_stays_padded(monkeypatch, fault):
    monkeypatch.setattr("embedx.inference.torch.best_of", Stopwatch(2.0, 2.0, 1.0, 1.0))
    encoder = open_encoder(parse_ref("minilm"))
    module = encoder.build()
    runtime = on_device(module, "fp32", "cpu")

    def attention(module, query, key, value, *_, **__):
        if fault == "raises":
            raise NotImplementedError("softcap")
        return value.transpose(1, 2), None

    monkeypatch.setattr("embedx.encoders.packing._attention", attention)
    inputs = encoder.collate(encoder.prepare(["a cat", "two dogs in a garden"]).items)
    reference = runtime.forward(inputs)
    pack_where_it_pays(encoder, module, runtime)
    assert not runtime.is_packed
    assert np.array_equal(runtime.forward(inputs), reference)


class Moody(nn.Module):
    """A module that another device computes wrongly: from the second batch on it gives other vectors."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def forward(self, input_ids, attention_mask):
        self.batches += 1
        vectors = torch.nn.functional.one_hot(input_ids[:, 1] % 50, 50).float()
        return vectors.roll(self.batches - 1, 1)


def test_a_device_is_compared_with_the_cpu():
    encoder = open_encoder(parse_ref("minilm"))
    check_device(encoder, encoder.build(), "cpu")
    with pytest.raises(EncoderError, match="other vectors of minilm than the CPU"):
        check_device(encoder, Moody(), "cpu")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(device):
    if device_is_there(device):
        pytest.skip(f"there is {device}")
    with pytest.raises(EncoderError, match=f"no {device.upper()} device"):
        open_torch(open_encoder(parse_ref("minilm")), "fp32", 1, device)


def test_memory_of_mps_runs_out_by_another_error():
    class Apple(Small):
        def forward(self, pixels):
            try:
                return super().forward(pixels)
            except torch.OutOfMemoryError:
                raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)") from None

    module = Apple(3)
    expected = pixels(5)["pixels"].astype(np.float32).mean((2, 3))
    assert np.allclose(TorchRuntime(module, "fp32", "cpu").forward(pixels(5)), expected)
    assert module.sizes == [5, 2, 1, 2]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    class Broken(nn.Module):
        def forward(self, pixels):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        TorchRuntime(Broken(), "fp32", "cpu").forward(pixels(5))
