"""The torch runtime: lower precision without its pooling, images in channels_last, batches that do not fit."""

import numpy as np
import pytest
import torch
from torch import nn

from embedx.core.errors import EncoderError
from embedx.encoders.image_module import PixelsToVectors
from embedx.encoders.registry import open_encoder, parse_ref
from embedx.inference.gates import measure_fidelity, passes_gate
from embedx.inference.torch import TorchRuntime, open_torch

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
    with pytest.raises(EncoderError, match="one item alone"):
        TorchRuntime(Small(0), "fp32", "cpu").forward(pixels(4))
