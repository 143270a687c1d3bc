"""Layers and poolings of one model share a forward pass that computes what each of them computes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.encoders.test_transformers import bert, vit  # noqa: F401

from embedx.core.errors import EncoderError
from embedx.core.specs import EncoderSpec, PreprocessSpec
from embedx.encoders.joining import forward_of, join_encoders
from embedx.encoders.registry import open_encoder
from embedx.inference.pipeline import Embedder
from embedx.inference.runtimes import Execution, open_runtime

SMALL = PreprocessSpec(resize=64, crop=64)


pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def saved(tmp_path, family: str, name: str) -> str:
    import timm
    import torch
    from torchvision import models

    torch.manual_seed(0)
    model = (timm.create_model if family == "timm" else models.get_model)(name).eval()
    torch.save(model.state_dict(), tmp_path / f"{name}.pth")
    return str(tmp_path / f"{name}.pth")


def run(encoder: Any) -> np.ndarray:
    """Its module's vectors of the canaries."""
    import torch

    inputs = encoder.collate(encoder.prepare(encoder.canaries()).items)
    with torch.no_grad():
        return encoder.build()(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()


def assert_joined(specs: list[EncoderSpec]) -> None:
    encoders = [open_encoder(spec) for spec in specs]
    assert len({forward_of(encoder) for encoder in encoders}) == 1 and forward_of(encoders[0]) is not None
    joined = join_encoders(encoders)
    assert joined.card.dim == sum(encoder.card.dim for encoder in encoders)
    joined.build()  # compares itself with each encoder's own module: see below for proof


@pytest.mark.parametrize(
    ("family", "name", "outputs"),
    [
        (
            "torchvision",
            "squeezenet1_1",
            [("features.5", None), ("features.5", "max"), ("features.8", None), (None, None)],
        ),
        ("torchvision", "mobilenet_v3_small", [("features.3", None), ("classifier.1", None), (None, None)]),
        ("timm", "mobilenetv2_050", [("blocks.2", None), ("blocks.4", "max")]),
        ("timm", "mobilenetv2_050", [(None, "avg"), (None, "max")]),
        ("timm", "mobilenetv2_050", [("2", None), ("-1", "max")]),
        ("timm", "test_vit", [("1", "cls"), ("-1", "avg"), ("1", "avg")]),
    ],
)
def test_image_layers(tmp_path, family, name, outputs):
    weights = saved(tmp_path, family, name)
    how: dict[str, Any] = {"weights": weights, **({} if name == "test_vit" else {"preprocess": SMALL})}
    assert_joined([EncoderSpec(family, name, layer=layer, pooling=pooling, **how) for layer, pooling in outputs])


def test_transformers_texts(bert):  # noqa: F811
    outputs = [(None, None), ("-2", "mean"), ("-1,-2", "max"), (None, "cls")]
    assert_joined([EncoderSpec("transformers", str(bert), layer=layer, pooling=pooling) for layer, pooling in outputs])


def test_transformers_images(vit):  # noqa: F811
    outputs = [(None, None), ("-2", "avg"), ("-1", "cls")]
    assert_joined([EncoderSpec("transformers", str(vit), layer=layer, pooling=pooling) for layer, pooling in outputs])


def test_other_weights_or_preprocessing_share_nothing(tmp_path):
    weights = saved(tmp_path, "torchvision", "squeezenet1_1")
    one = open_encoder(EncoderSpec("torchvision", "squeezenet1_1", weights=weights, layer="features.3"))
    other = EncoderSpec("torchvision", "squeezenet1_1", weights=weights, layer="features.5", preprocess=SMALL)
    assert forward_of(one) != forward_of(open_encoder(other))
    assert one.preparation != open_encoder(other).preparation


def test_a_pass_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    import torch

    weights = saved(tmp_path, "torchvision", "squeezenet1_1")
    specs = [
        EncoderSpec("torchvision", "squeezenet1_1", weights=weights, layer=layer, preprocess=SMALL)
        for layer in ("features.3", "features.5")
    ]
    encoders = [open_encoder(spec) for spec in specs]
    build = type(encoders[0]).build_with

    class Off(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, pixels):
            return self.module(pixels) * 1.01

    monkeypatch.setattr(type(encoders[0]), "build_with", lambda self, others: Off(build(self, others)))
    with pytest.raises(EncoderError, match="other vectors"):
        join_encoders(encoders).build()


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_runtimes_yield_each_encoders_vectors(tmp_path, runtime):
    weights = saved(tmp_path, "torchvision", "squeezenet1_1")
    encoders = [
        open_encoder(EncoderSpec("torchvision", "squeezenet1_1", weights=weights, layer=layer, preprocess=SMALL))
        for layer in ("features.3", "features.12")
    ]
    joined = join_encoders(encoders)
    opened = open_runtime(joined, Execution("fp32", runtime, "cpu", 2)).runtime
    embedder = Embedder(joined, opened, 2, [encoder.card for encoder in encoders])
    images = joined.canaries()
    for place, encoder in enumerate(encoders):
        found = embedder.embed(len(images), lambda start, stop: images[start:stop], output=place)
        wanted = run(encoder)
        assert found.vectors.shape == wanted.shape
        np.testing.assert_allclose(found.vectors, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    embedder.close()
