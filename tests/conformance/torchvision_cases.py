"""Encoders of torchvision against torchvision: its model, its weights' own transforms, the input of its classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.specs import EncoderSpec
from tests.conformance.support import Case, Made, as_users_open, gem, real_weights, save_state_dict, settle


def classifier_input(name: str, classifier: str) -> Case:
    """A model without its last linear layer: what users get by a hook on it."""

    def make(folder: Path) -> Made:
        model, preprocess = build(name)

        def recipe(files: list[Any]) -> np.ndarray:
            seen = []
            handle = model.get_submodule(classifier).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
            run(model, preprocess, files)
            handle.remove()
            return np.concatenate([vectors.numpy() for vectors in seen])

        return Made(EncoderSpec("torchvision", name, weights=str(save_state_dict(model, folder))), recipe)

    return Case(f"torchvision:{name}", make)


def node(name: str, layer: str, pool: Callable[[Any], Any], pooling: str | None = None) -> Case:
    """A node of the graph, taken by torchvision's feature extractor and pooled by hand."""

    def make(folder: Path) -> Made:
        from torchvision.models.feature_extraction import create_feature_extractor

        model, preprocess = build(name)
        path = save_state_dict(model, folder)
        extractor = create_feature_extractor(model, return_nodes=[layer])

        def recipe(files: list[Any]) -> np.ndarray:
            return np.concatenate([pool(output[layer]).numpy() for output in run(extractor, preprocess, files)])

        return Made(EncoderSpec("torchvision", name, weights=str(path), layer=layer, pooling=pooling), recipe)

    return Case(f"torchvision:{name} --layer {layer}" + (f" --pooling {pooling}" if pooling else ""), make)


def build(name: str) -> tuple[Any, Callable[[Any], Any]]:
    """Return a model as torchvision builds it around its own weights, training heads included, and their transforms."""
    import torch
    from torchvision import models

    torch.manual_seed(0)
    how = {"transform_input": True, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    preprocess = models.get_model_weights(name).DEFAULT.transforms()
    model = models.get_model(name, weights=None, **how)
    return settle(model, preprocess), preprocess


def run(model: Any, preprocess: Callable[[Any], Any], files: list[Any]) -> list[Any]:
    """Return the model's output for each file, one at a time."""
    import torch

    with torch.no_grad():
        return [model(preprocess(as_users_open(data))[None]) for data in files]


def squeezenet(folder: Path) -> Made:
    import torch
    from torchvision import models

    path = real_weights("squeezenet1_0.pth")
    model = models.squeezenet1_0(weights=None).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    preprocess = models.SqueezeNet1_0_Weights.DEFAULT.transforms()

    def recipe(files: list[Any]) -> np.ndarray:
        return np.concatenate([maps.mean((2, 3)).numpy() for maps in run(model.features, preprocess, files)])

    return Made(EncoderSpec("torchvision", "squeezenet1_0", weights=str(path)), recipe)


CASES = [
    Case("torchvision:squeezenet1_0", squeezenet, real=True),
    classifier_input("alexnet", "classifier.6"),
    classifier_input("convnext_tiny", "classifier.2"),
    classifier_input("densenet121", "classifier"),
    classifier_input("efficientnet_b0", "classifier.1"),
    classifier_input("googlenet", "fc"),
    classifier_input("inception_v3", "fc"),
    classifier_input("maxvit_t", "classifier.5"),
    classifier_input("mnasnet0_5", "classifier.1"),
    classifier_input("mobilenet_v2", "classifier.1"),
    classifier_input("mobilenet_v3_small", "classifier.3"),
    classifier_input("regnet_y_400mf", "fc"),
    classifier_input("resnet18", "fc"),
    classifier_input("resnet50", "fc"),
    classifier_input("resnext50_32x4d", "fc"),
    classifier_input("shufflenet_v2_x0_5", "fc"),
    classifier_input("swin_t", "head"),
    classifier_input("swin_v2_t", "head"),
    classifier_input("vgg16", "classifier.6"),
    classifier_input("vgg19", "classifier.6"),
    classifier_input("vit_b_32", "heads.head"),
    node("resnet50", "layer3", lambda maps: maps.mean((2, 3))),
    node("resnet50", "layer4", gem, "gem"),
    node("squeezenet1_1", "features.12", lambda maps: maps.amax((2, 3)), "max"),
    node("mobilenet_v3_small", "features.12", lambda maps: maps.flatten(1), "flatten"),
    node("swin_t", "features.5", lambda maps: maps.mean((1, 2))),
    node("vit_b_32", "encoder.layers.encoder_layer_6", lambda tokens: tokens[:, 0]),
    node("vit_b_32", "encoder.ln", lambda tokens: tokens[:, 1:].mean(1), "mean"),
    node("vgg16", "classifier.1", lambda vectors: vectors),
]
