"""Encoders of `torchvision:<name>`: every classification model, without its classifier."""

from __future__ import annotations

import difflib
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedx.core.digests import file_sha256
from embedx.core.errors import EncoderError, UnknownEncoderError, UsageError
from embedx.core.paths import cached_json, remember_json
from embedx.core.specs import EncoderSpec
from embedx.encoders.vision import ImageEncoder, ImageFeatures, ImageTransform, open_image_encoder

if TYPE_CHECKING:
    from torch import nn

POOLINGS = ("avg", "max", "flatten")

# Heads that exist for training only; published weights carry them.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


def open_encoder(spec: EncoderSpec) -> ImageEncoder:
    """Open a torchvision classification model as an encoder.

    The vector is the input of the last linear layer; of SqueezeNet, which has none, the average of its last
    map. Preprocessing is that of the weights: the published ones that the file is (known by its hash), else
    the model's default weights.

    Raises:
        UnknownEncoderError: torchvision has no such model.
        EncoderError: the weights are missing or do not fit.
        UsageError: a layer or pooling that is not supported.
    """
    known = _names()
    if spec.name not in known:
        near = difflib.get_close_matches(spec.name.lower(), known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`embedx encoders` lists them all"
        raise UnknownEncoderError(f"torchvision has no classification model {spec.name!r}", hint)
    if spec.pooling is not None and spec.layer is None:
        raise UsageError(f"{spec.ref} already ends in a vector: --pooling has nothing to pool", "Name a --layer too")
    if spec.pooling not in (None, *POOLINGS):
        raise UsageError(f"--pooling {spec.pooling!r} is unknown", f"Pass one of: {', '.join(POOLINGS)}")
    return open_image_encoder(spec, ["torchvision"], load_features)


def list_encoders() -> list[dict[str, Any]]:
    """Return `{ref, family, modality, dim}` of every model, without building one; dim is None."""
    return [
        {"ref": f"torchvision:{name}", "family": "torchvision", "modality": "image", "dim": None} for name in _names()
    ]


def _names() -> list[str]:
    key = ["torchvision", version("torchvision")]
    names: list[str] | None = cached_json("names", key)
    if names is None:
        from torchvision import models

        names = models.list_models(module=models)
        remember_json("names", key, names)
    return names


def load_features(spec: EncoderSpec) -> ImageFeatures:
    """Build the model with its weights, cut off at the vector. Imports torch."""
    import torch
    from torchvision import models

    from embedx.encoders.checkpoints import fetch_once, fit_state_dict, read_state_dict
    from embedx.encoders.image_module import PooledNode

    choices = models.get_model_weights(spec.name)
    if spec.weights is None:
        url = choices.DEFAULT.url
        path = fetch_once(url, Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1], spec.ref)
    else:
        path = Path(spec.weights)
    published = _published_as(path, choices) or choices.DEFAULT
    model_args = {**_graph_arguments(spec.name, published), **spec.model_args}
    silent = {"aux_logits": False, "init_weights": False} if spec.name in ("inception_v3", "googlenet") else {}
    try:
        model = models.get_model(spec.name, weights=None, **{**model_args, **silent}).eval()
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"torchvision cannot build {spec.name} with {model_args}: {error}", "Check model_args"
        ) from None
    own = set(model.state_dict())
    module, layer, pooling = _cut_at_vector(model) if spec.layer is None else _cut_at_layer(model, spec)
    unused = [*_AUXILIARY, *(own - set(module.state_dict()))]
    state = read_state_dict(path)
    if spec.name.startswith("densenet"):
        state = {_densenet_name(name): tensor for name, tensor in state.items()}
    fit_state_dict(module, state, unused, f"{path} for {spec.ref}")
    if spec.layer is not None:
        module = PooledNode(module, pooling)
    return ImageFeatures(
        module=module,
        transform=_transform(published).with_overrides(spec.preprocess),
        architecture=spec.ref,
        model_args=model_args,
        layer=layer,
        pooling=pooling,
        weights_file=path,
    )


def _published_as(path: Path, choices: Any) -> Any | None:
    # torchvision names its files by their sha256, so that a file tells its preprocessing under any name.
    sha256 = file_sha256(path)
    for weights in choices:
        found = re.search(r"-([a-f0-9]{8,})\.", weights.url)
        if found and sha256.startswith(found[1]):
            return weights
    return None


def _transform(weights: Any) -> ImageTransform:
    preset = weights.transforms()
    resize, crop = preset.resize_size[0], preset.crop_size[0]
    return ImageTransform(
        resize=(resize, resize),
        crop=(crop, crop),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _graph_arguments(name: str, weights: Any) -> dict[str, Any]:
    # What torchvision's builders set when they are given published weights, which a local file needs too.
    if name in ("inception_v3", "googlenet"):
        return {"transform_input": True}
    if name.startswith("vit_"):
        return {"image_size": weights.meta["min_size"][0]}
    if name.startswith("maxvit"):
        return {"input_size": list(weights.meta["min_size"])}
    return {}


def _densenet_name(name: str) -> str:
    # The published files are older than the ban on dots in module names: norm.1 is norm1 today.
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)


def _cut_at_vector(model: nn.Module) -> tuple[nn.Module, str, str]:
    from torch import nn
    from torchvision.models import SqueezeNet

    if isinstance(model, SqueezeNet):
        model.classifier = nn.AdaptiveAvgPool2d(1)
        return model, "features", "avg"
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, child = last.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, f"input of {last}", "none"


def _cut_at_layer(model: nn.Module, spec: EncoderSpec) -> tuple[nn.Module, str, str]:
    from torchvision.models import SwinTransformer
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    layer = str(spec.layer)
    nodes = get_graph_node_names(model)[1]
    parts = [node.split(".") for node in nodes]
    layers = list(dict.fromkeys(".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)))
    if layer not in layers:
        near = difflib.get_close_matches(layer, layers, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"The last ones are {', '.join(layers[-5:])}"
        raise UsageError(f"{spec.ref} has no layer {layer!r}", hint)
    if isinstance(model, SwinTransformer):
        raise EncoderError(
            f"--layer is not supported for {spec.ref} yet: its maps are not (n, channels, height, width)",
            "Leave --layer out to get the pooled vector",
        )
    return create_feature_extractor(model, {layer: "node"}), layer, spec.pooling or "avg"
