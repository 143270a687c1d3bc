"""Encoders of `timm:<name>`: any timm model, its pooled features before the classifier."""

from __future__ import annotations

import difflib
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from embedx.core.errors import EncoderError, UnknownEncoderError, UsageError
from embedx.core.paths import cached_json, remember_json
from embedx.core.specs import EncoderSpec
from embedx.encoders.vision import ImageEncoder, ImageFeatures, ImageTransform, open_image_encoder


def open_encoder(spec: EncoderSpec) -> ImageEncoder:
    """Open a timm model as an encoder; the vector is what `num_classes=0` yields.

    Preprocessing is that of the model's `pretrained_cfg`. The name may carry timm's tag of the published
    weights, `mobilenetv2_100.ra_in1k`, which chooses weights and preprocessing.

    Raises:
        UnknownEncoderError: timm has no such model, or no such tag of it.
        EncoderError: the weights are missing or do not fit.
        UsageError: a layer or pooling, which are not supported for timm yet, or model_args it does not know.
    """
    known = _names()
    base = spec.name.partition(".")[0]
    if base not in known:
        near = difflib.get_close_matches(base.lower(), known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`embedx encoders` lists them all"
        raise UnknownEncoderError(f"timm has no model {base!r}", hint)
    if spec.layer is not None:
        raise UsageError(f"--layer is not supported for {spec.ref} yet", "Leave it out to get the pooled features")
    if spec.pooling is not None:
        raise UsageError(
            f"--pooling is not supported for {spec.ref} yet",
            f'Set timm\'s own in an encoder file: model_args = {{ global_pool = "{spec.pooling}" }}',
        )
    return open_image_encoder(spec, ["timm"], load_features)


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


def load_features(spec: EncoderSpec) -> ImageFeatures:
    """Build the model with its weights and without a classifier. Imports torch."""
    from embedx.encoders.checkpoints import fit_state_dict, read_state_dict

    config = _pretrained_config(spec)
    if spec.weights is None:
        # timm converts what it publishes itself, so it also loads it.
        path = _published_file(config, spec)
        model = _create(spec, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    else:
        path = Path(spec.weights)
        model = _create(spec)
        classifier = model.pretrained_cfg.get("classifier") or ()
        unused = [f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier)]
        fit_state_dict(model, read_state_dict(path), unused, f"{path} for {spec.ref}")
    return ImageFeatures(
        module=model.eval(),
        transform=_transform(model, spec).with_overrides(spec.preprocess),
        architecture=f"timm:{spec.name.partition('.')[0]}",
        model_args=spec.model_args,
        layer="pre-logits",
        pooling="its own",
        weights_file=path,
        licence=(config.license or "") if spec.weights is None else "",
    )


def _create(spec: EncoderSpec, **how: Any) -> Any:
    import timm

    try:
        return timm.create_model(spec.name, **how, **{**spec.model_args, "num_classes": 0})
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        given = f" with {spec.model_args}" if spec.model_args else ""
        raise UsageError(f"timm cannot build {spec.name}{given}: {reason}", "Check the name and model_args") from error


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

    from embedx.encoders.checkpoints import fetch_once, is_reachable, not_here

    if config is None or not (config.hf_hub_id or config.url):
        raise EncoderError(f"timm publishes no weights of {spec.ref}", "Pass your own with --weights FILE")
    if not config.hf_hub_id:
        target = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rsplit("/", 1)[-1]
        return fetch_once(config.url, target, spec.ref)
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    name = config.hf_hub_filename or "pytorch_model.bin"
    safe = "model.safetensors" if name == "pytorch_model.bin" else f"{Path(name).stem}.safetensors"
    names = list(dict.fromkeys((safe, name)))
    for candidate in names:
        found = try_to_load_from_cache(config.hf_hub_id, candidate)
        if isinstance(found, str):
            return Path(found)
    url = hf_hub_url(config.hf_hub_id, names[0])
    if not is_reachable(url):
        raise not_here(spec.ref, url)
    for candidate in names:
        try:
            return Path(hf_hub_download(config.hf_hub_id, candidate))
        except EntryNotFoundError:
            continue
        except OSError as error:
            raise not_here(spec.ref, url, str(error)) from error
    raise not_here(spec.ref, url)


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
