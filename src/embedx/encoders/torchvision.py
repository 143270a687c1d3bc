"""Encoders of `torchvision:<name>`: every classification model, without its classifier."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedx.core.digests import file_sha256
from embedx.core.errors import UnknownEncoderError, UsageError
from embedx.core.paths import cached_json, remember_json
from embedx.core.specs import EncoderSpec
from embedx.encoders.vision import ImageEncoder, ImageFeatures, ImageTransform, canonical_pooling, open_image_encoder

if TYPE_CHECKING:
    from torch import nn

    from embedx.encoders.image_layers import TokenLayout

# Heads that exist for training only; published weights carry them.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


def open_encoder(spec: EncoderSpec) -> ImageEncoder:
    """Open a torchvision classification model as an encoder.

    The vector is the input of the last linear layer; of SqueezeNet, which has none, the average of its last
    map. With a layer, any node of the model's graph, it is that node's output, pooled. Preprocessing is that of
    the weights: the published ones that the file is (known by its hash), else the model's default weights.

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
    canonical_pooling(spec.pooling)
    return open_image_encoder(spec, ["torchvision"], load_features, load_together)


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


def list_layers(spec: EncoderSpec) -> list[str]:
    """Return the names that `layer` may have: the nodes of the model's graph and the modules around them."""
    key = ["torchvision", version("torchvision"), spec.name, spec.model_args]
    layers: list[str] | None = cached_json("layers", key)
    if layers is None:
        from torchvision import models

        layers = _layers(_build(spec, models.get_model_weights(spec.name).DEFAULT)[0])
        remember_json("layers", key, layers)
    return layers


def load_features(spec: EncoderSpec) -> ImageFeatures:
    """Build the model with its weights, cut off at the vector. Imports torch."""
    path, published = _weights(spec)
    transform = _transform(published).with_overrides(spec.preprocess)
    model, model_args = _build(spec, published)
    own = set(model.state_dict())
    cut, layer = _cut_at_vector(model) if spec.layer is None else (_cut_at_layer(model, spec), spec.layer)
    _fit(cut, own, path, spec)
    module, pooling = _pooled(cut, model, transform.crop, spec)
    return ImageFeatures(
        module=module,
        transform=transform,
        architecture=spec.ref,
        model_args=model_args,
        layer=layer,
        pooling=pooling,
        weights_file=path,
    )


def load_together(specs: Sequence[EncoderSpec]) -> nn.Module:
    """Build one model for several layers and poolings; yields their vectors side by side. Imports torch."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    from embedx.encoders.image_layers import SideBySide, Wanted

    first = specs[0]
    path, published = _weights(first)
    model, _ = _build(first, published)
    own, last = set(model.state_dict()), ""
    if any(spec.layer is None for spec in specs):
        _cut_at_vector(model)
        last = get_graph_node_names(model)[1][-1]
    for spec in specs:
        _check_layer(model, spec)
    layers = {spec.layer or last: f"node{number}" for number, spec in enumerate(specs)}
    cut = create_feature_extractor(model, layers)
    _fit(cut, own, path, first)
    wanted = [Wanted(layers[spec.layer or last], canonical_pooling(spec.pooling), _what(spec)) for spec in specs]
    size = _transform(published).with_overrides(first.preprocess).crop
    return SideBySide(cut, size, wanted, _token_layout(model)).eval()


def _weights(spec: EncoderSpec) -> tuple[Path, Any]:
    """Return the file of the weights, and as which of torchvision's it has to be treated."""
    import torch
    from torchvision import models

    from embedx.encoders.checkpoints import fetch_once

    choices = models.get_model_weights(spec.name)
    if spec.weights is None:
        url = choices.DEFAULT.url
        path = fetch_once(url, Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1], spec.ref)
    else:
        path = Path(spec.weights)
    return path, _published_as(path, choices) or choices.DEFAULT


def _fit(cut: nn.Module, own: set[str], path: Path, spec: EncoderSpec) -> None:
    """Load a file into what is left of a model whose tensors were `own`."""
    from embedx.encoders.checkpoints import fit_state_dict, read_state_dict

    unused = [*_AUXILIARY, *(own - set(cut.state_dict()))]
    state = {_current_name(name): tensor for name, tensor in read_state_dict(path).items()}
    fit_state_dict(cut, state, unused, f"{path} for {spec.ref}")


def _build(spec: EncoderSpec, published: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model in eval mode, without weights, and the arguments that fix its graph."""
    from torchvision import models

    model_args = {**_graph_arguments(spec.name, published), **spec.model_args}
    silent = {"aux_logits": False, "init_weights": False} if spec.name in ("inception_v3", "googlenet") else {}
    try:
        return models.get_model(spec.name, weights=None, **{**model_args, **silent}).eval(), model_args
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"torchvision cannot build {spec.name} with {model_args}: {error}", "Check model_args"
        ) from None


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


def _current_name(name: str) -> str:
    # Published files are older than the code. DenseNet's are from before the ban on dots in module names: norm.1 is
    # norm1 today; ViT's from before its MLP became a Sequential.
    name = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)
    return re.sub(r"(encoder_layer_\d+\.mlp)\.linear_([12])\.", lambda m: f"{m[1]}.{(int(m[2]) - 1) * 3}.", name)


def _cut_at_vector(model: nn.Module) -> tuple[nn.Module, str]:
    from torch import nn
    from torchvision.models import SqueezeNet

    if isinstance(model, SqueezeNet):
        model.classifier = nn.AdaptiveAvgPool2d(1)
        return model, "features"
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, child = last.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, f"input of {last}"


def _cut_at_layer(model: nn.Module, spec: EncoderSpec) -> nn.Module:
    # Symbolic tracing follows every classification model of torchvision, Swin and MaxViT too, and finds what is
    # no module: `flatten`, `add_1`.
    from torchvision.models.feature_extraction import create_feature_extractor

    _check_layer(model, spec)
    return create_feature_extractor(model, {str(spec.layer): "node"})


def _check_layer(model: nn.Module, spec: EncoderSpec) -> None:
    layers = _layers(model)
    if spec.layer is not None and spec.layer not in layers:
        near = difflib.get_close_matches(spec.layer, layers, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"The last ones are {', '.join(layers[-5:])}"
        raise UsageError(f"{spec.ref} has no layer {spec.layer!r}", hint)


def _layers(model: nn.Module) -> list[str]:
    from torchvision.models.feature_extraction import get_graph_node_names

    parts = [node.split(".") for node in get_graph_node_names(model)[1]]
    return list(dict.fromkeys(".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)))


def _pooled(cut: nn.Module, model: nn.Module, size: tuple[int, int], spec: EncoderSpec) -> tuple[nn.Module, str]:
    from torchvision.models import SqueezeNet

    from embedx.encoders.image_layers import pool_layer

    if spec.layer is None:
        return cut, "avg" if isinstance(model, SqueezeNet) else "none"
    return pool_layer(cut, size, canonical_pooling(spec.pooling), _token_layout(model), _what(spec))


def _token_layout(model: nn.Module) -> TokenLayout:
    from torchvision.models import VisionTransformer

    from embedx.encoders.image_layers import TokenLayout

    if isinstance(model, VisionTransformer):
        return TokenLayout((model.image_size // model.patch_size) ** 2, prefix=1, has_class=True, default="cls")
    return TokenLayout()


def _what(spec: EncoderSpec) -> str:
    return f"layer {spec.layer} of {spec.ref}"
