"""Encoders of `timm:<name>`: any timm model, its pooled features before the classifier."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedx.core.errors import EncoderError, UnknownEncoderError, UsageError
from embedx.core.paths import cached_json, remember_json
from embedx.core.specs import EncoderSpec
from embedx.encoders.vision import ImageEncoder, ImageFeatures, ImageTransform, canonical_pooling, open_image_encoder

if TYPE_CHECKING:
    from torch import nn


def open_encoder(spec: EncoderSpec) -> ImageEncoder:
    """Open a timm model as an encoder; the vector is what `num_classes=0` yields.

    With a pooling and no layer, it is the model's unpooled features (timm's `forward_features`), pooled so. A layer
    is the name of a module, or the number of a block or stage, as timm's `forward_intermediates` counts them: `6`,
    or `-2` for the last but one; its maps or tokens are pooled.

    Preprocessing is that of the model's `pretrained_cfg`. The name may carry timm's tag of the published weights,
    `mobilenetv2_100.ra_in1k`, which chooses weights and preprocessing.

    Raises:
        UnknownEncoderError: timm has no such model, or no such tag of it.
        EncoderError: the weights are missing or do not fit.
        UsageError: a layer or pooling that the model does not have, or model_args it does not know.
    """
    known = _names()
    base = spec.name.partition(".")[0]
    if base not in known:
        near = difflib.get_close_matches(base.lower(), known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`embedx encoders` lists them all"
        raise UnknownEncoderError(f"timm has no model {base!r}", hint)
    canonical_pooling(spec.pooling)
    return open_image_encoder(spec, ["timm"], load_features, load_together)


def list_encoders() -> list[dict[str, Any]]:
    """Return `{ref, family, modality, dim}` of every architecture, without building one; dim is None."""
    return [{"ref": f"timm:{name}", "family": "timm", "modality": "image", "dim": None} for name in _names()]


def _names() -> list[str]:
    key = ["timm", version("timm")]
    names: list[str] | None = cached_json("names", key)
    if names is None:
        import timm

        names = timm.list_models()
        remember_json("names", key, names)
    return names


def list_layers(spec: EncoderSpec) -> list[str]:
    """Return the names that `layer` may have: numbers of blocks or stages, then modules."""
    key = ["timm", version("timm"), spec.name, spec.model_args]
    layers: list[str] | None = cached_json("layers", key)
    if layers is None:
        model = _create(spec)
        layers = [*map(str, range(_n_numbered(model))), *(name for name, _ in model.named_modules() if name)]
        remember_json("layers", key, layers)
    return layers


def load_features(spec: EncoderSpec) -> ImageFeatures:
    """Build the model with its weights and without a classifier. Imports torch."""
    model, path, licence = _load_model(spec)
    transform = _transform(model, spec).with_overrides(spec.preprocess)
    module, layer, pooling = _cut(model, transform.crop, spec)
    return ImageFeatures(
        module=module,
        transform=transform,
        architecture=f"timm:{spec.name.partition('.')[0]}",
        model_args=spec.model_args,
        layer=layer,
        pooling=pooling,
        weights_file=path,
        licence=licence,
    )


def load_together(specs: Sequence[EncoderSpec]) -> nn.Module:
    """Build one model for several layers and poolings; yields their vectors side by side. Imports torch.

    Raises:
        EncoderError: one of the vectors is the model's own, or some layers are named and others numbered.
    """
    from embedx.encoders.image_layers import SideBySide, UpToModules, Wanted, drop_unreached
    from embedx.encoders.timm_layers import BeforeHead, Intermediates, token_layout

    first = specs[0]
    model = _load_model(first)[0]
    layers = [_layer_name(model, spec) for spec in specs]
    if any(spec.layer is None and spec.pooling is None for spec in specs):
        raise EncoderError(f"the own vector of {first.ref} has no layer", "It runs apart")
    extractor: nn.Module
    if set(layers) == {"features"}:
        extractor, nodes = BeforeHead(model), ["node"] * len(specs)
    elif all(isinstance(layer, int) for layer in layers):
        extractor, nodes = Intermediates(model, [int(layer) for layer in layers]), list(map(str, layers))
    elif all(isinstance(layer, str) and layer != "features" for layer in layers):
        extractor, nodes = UpToModules(model, [str(layer) for layer in layers]), list(map(str, layers))
    else:
        raise EncoderError(f"numbered and named layers of {first.ref} share no forward pass", "They run apart")
    wanted = [
        Wanted(node, canonical_pooling(spec.pooling), f"layer {layer} of {spec.ref}")
        for node, spec, layer in zip(nodes, specs, layers)
    ]
    size = _transform(model, first).with_overrides(first.preprocess).crop
    module = SideBySide(extractor, size, wanted, token_layout(model))
    drop_unreached(module, size, first.ref)
    return module.eval()


def _load_model(spec: EncoderSpec) -> tuple[nn.Module, Path, str]:
    """Return the model in eval mode, the file of its weights, and their licence where it is known."""
    config = _pretrained_config(spec)
    if spec.weights is None:
        # timm converts what it publishes itself, so it also loads it.
        path = _published_file(config, spec)
        model = _create(spec, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    else:
        path = Path(spec.weights)
        model = _create(spec)
        _fit(model, path, spec)
    return model.eval(), path, (config.license or "") if spec.weights is None else ""


def _create(spec: EncoderSpec, **how: Any) -> Any:
    import timm

    try:
        return timm.create_model(spec.name, **how, **{**spec.model_args, "num_classes": 0})
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        given = f" with {spec.model_args}" if spec.model_args else ""
        raise UsageError(f"timm cannot build {spec.name}{given}: {reason}", "Check the name and model_args") from error


def _fit(model: nn.Module, path: Path, spec: EncoderSpec) -> None:
    """Load a local file, in timm's own names or in those of the project that published it."""
    from embedx.encoders.checkpoints import fit_state_dict, read_state_dict

    classifier = model.pretrained_cfg.get("classifier") or ()
    unused = [f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier)]
    state = read_state_dict(path)
    what = f"{path} for {spec.ref}"
    # What timm itself passes published files through, for it also hosts files of other projects as they are.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        fit_state_dict(model, state, unused, what)
    except EncoderError:
        if convert is None:
            raise
        try:
            converted = convert(state, model)
        except Exception:  # written for what their projects publish, filters fail in any way on other files
            converted = state
        fit_state_dict(model, converted, unused, what)


def _cut(model: nn.Module, size: tuple[int, int], spec: EncoderSpec) -> tuple[nn.Module, str, str]:
    """Return the module that yields the vectors, with the layer and pooling that it has."""
    from embedx.encoders.image_layers import drop_unreached, pool_layer
    from embedx.encoders.timm_layers import BeforeHead, token_layout

    if spec.layer is None and spec.pooling is None:
        return model, "pre-logits", "its own"
    extractor, layer = (BeforeHead(model), "features") if spec.layer is None else _up_to_layer(model, spec)
    pooling = canonical_pooling(spec.pooling)
    module, pooled = pool_layer(extractor, size, pooling, token_layout(model), f"layer {layer} of {spec.ref}")
    drop_unreached(module, size, spec.ref)
    return module, layer, pooled


def _up_to_layer(model: nn.Module, spec: EncoderSpec) -> tuple[nn.Module, str]:
    from embedx.encoders.image_layers import UpToModule
    from embedx.encoders.timm_layers import Intermediate

    layer = _layer_name(model, spec)
    return (Intermediate(model, layer) if isinstance(layer, int) else UpToModule(model, layer)), str(layer)


def _layer_name(model: nn.Module, spec: EncoderSpec) -> str | int:
    """Return a layer's module or number, from 0; `features` where only a pooling was asked for."""
    if spec.layer is None:
        return "features"
    layer = spec.layer
    names = [name for name, _ in model.named_modules() if name]
    if layer in names:
        return layer
    numbered = _n_numbered(model)
    if re.fullmatch(r"-?\d+", layer) and -numbered <= int(layer) < numbered:
        return int(layer) % numbered
    near = difflib.get_close_matches(layer, names, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Its numbered blocks are 0 to {numbered - 1}"
    raise UsageError(f"{spec.ref} has no layer {layer!r}", f"{hint}; `embedx encoders show {spec.ref}` lists them")


def _n_numbered(model: nn.Module) -> int:
    # One feature per block or stage: equal to the number of forward_intermediates in all of timm 1.0.31's families.
    return len(model.feature_info) if hasattr(model, "forward_intermediates") else 0


def _pretrained_config(spec: EncoderSpec) -> Any:
    import timm

    base, _, tag = spec.name.partition(".")
    try:
        return timm.get_pretrained_cfg(spec.name, allow_unregistered=not tag)
    except RuntimeError:
        tags = timm.list_pretrained(f"{base}.*")
        hint = (
            f"Its weights are {', '.join(tags)}" if tags else "timm publishes none: leave the tag out, pass --weights"
        )
        raise UnknownEncoderError(f"timm has no weights {tag!r} of {base}", hint) from None


def _published_file(config: Any, spec: EncoderSpec) -> Path:
    """Find timm's published weights in the libraries' own caches, or download them."""
    import torch

    from embedx.encoders.checkpoints import fetch_from_hub, fetch_once

    if config is None or not (config.hf_hub_id or config.url):
        raise EncoderError(f"timm publishes no weights of {spec.ref}", "Pass your own with --weights FILE")
    if not config.hf_hub_id:
        target = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rsplit("/", 1)[-1]
        return fetch_once(config.url, target, spec.ref)
    name = config.hf_hub_filename or "pytorch_model.bin"
    safe = "model.safetensors" if name == "pytorch_model.bin" else f"{Path(name).stem}.safetensors"
    return fetch_from_hub(config.hf_hub_id, list(dict.fromkeys((safe, name))), spec.ref)


def _transform(model: Any, spec: EncoderSpec) -> ImageTransform:
    from timm.data import resolve_model_data_config

    size = spec.model_args.get("img_size")
    given = {} if size is None else {"input_size": (3, size, size) if isinstance(size, int) else (3, *size)}
    config = resolve_model_data_config(model, args=given)
    channels, height, width = config["input_size"]
    if channels != 3 or len(config["mean"]) != 3:
        raise EncoderError(f"{spec.ref} reads {channels} channels, and images have three", "Choose another model")
    if config["crop_mode"] not in ("center", "squash"):
        raise EncoderError(
            f"timm's crop mode {config['crop_mode']!r} of {spec.ref} is not supported yet",
            "Choose another model",
        )
    return ImageTransform(
        resize=(math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])),
        crop=(height, width),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        squash=config["crop_mode"] == "squash",
    )
