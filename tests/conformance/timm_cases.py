"""Encoders of timm against timm: its model and transforms, `forward_head(pre_logits=True)`, its pooling functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.specs import EncoderSpec, PreprocessSpec
from tests.conformance.support import Case, Made, as_users_open, gem, real_weights, save_state_dict, settle

Extract = Callable[[Any, Any], Any]
"""(model, images (n, 3, height, width)) -> (n, dim)."""


def pre_logits(model: Any, images: Any) -> Any:
    return model.forward_head(model.forward_features(images), pre_logits=True)


def pooled_tokens(pooling: str, of: Extract = lambda model, images: model.forward_features(images)) -> Extract:
    from timm.layers.pool1d import global_pool_nlc

    def extract(model: Any, images: Any) -> Any:
        return global_pool_nlc(of(model, images), pooling, num_prefix_tokens=model.num_prefix_tokens)

    return extract


def pooled_maps(pooling: str) -> Extract:
    from timm.layers import select_adaptive_pool2d

    return lambda model, images: select_adaptive_pool2d(model.forward_features(images), pooling).flatten(1)


def intermediate(number: int) -> Extract:
    def extract(model: Any, images: Any) -> Any:
        (maps,) = model.forward_intermediates(images, indices=[number], intermediates_only=True)
        return maps.mean((2, 3))

    return extract


def hooked(layer: str, pool: Callable[[Any], Any]) -> Extract:
    def extract(model: Any, images: Any) -> Any:
        seen = []
        handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output.clone()))
        model(images)
        handle.remove()
        return pool(seen[0])

    return extract


def random(
    name: str,
    extract: Extract = pre_logits,
    layer: str | None = None,
    pooling: str | None = None,
    img_size: int | None = None,
) -> Case:
    """A seeded random model with timm's own preprocessing."""
    model_args = {"img_size": img_size} if img_size else {}

    def make(folder: Path) -> Made:
        import timm
        import torch

        torch.manual_seed(0)
        model = timm.create_model(name, **model_args)
        config = timm.data.resolve_data_config(args=model_args, model=model)
        preprocess = timm.data.create_transform(**config, is_training=False)
        settle(model, preprocess)
        path = save_state_dict(model, folder)
        spec = EncoderSpec("timm", name, weights=str(path), layer=layer, pooling=pooling, model_args=model_args)
        return Made(spec, lambda files: run(model, preprocess, files, extract))

    options = [f"--{key} {value}" for key, value in (("layer", layer), ("pooling", pooling)) if value]
    shown = [f"timm:{name}", *options, *(f"({key} = {value})" for key, value in model_args.items())]
    return Case(" ".join(shown), make)


def run(model: Any, preprocess: Callable[[Any], Any], files: list[Any], extract: Extract) -> np.ndarray:
    import torch

    with torch.no_grad():
        vectors = [extract(model, preprocess(as_users_open(data))[None]) for data in files]
        return torch.cat(vectors).numpy()


def mobilenet(folder: Path) -> Made:
    """Weights converted from another library: they want its padding and its scale of pixels."""
    import timm
    import torch

    path = real_weights("mobilenetv2_100_same.pth")
    half = (0.5, 0.5, 0.5)
    model = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    config = timm.data.resolve_model_data_config(model) | {"mean": half, "std": half}
    preprocess = timm.data.create_transform(**config, is_training=False)
    spec = EncoderSpec(
        "timm",
        "mobilenetv2_100",
        weights=str(path),
        model_args={"pad_type": "same"},
        preprocess=PreprocessSpec(mean=half, std=half),
    )
    return Made(spec, lambda files: run(model, preprocess, files, pre_logits))


CASES = [
    Case("timm:mobilenetv2_100", mobilenet, real=True),
    random("convnext_atto"),
    random("deit_tiny_distilled_patch16_224"),
    random("efficientnet_lite0"),
    random("eva02_tiny_patch14_224"),
    random("mixer_s32_224"),
    random("mobilenetv4_conv_small"),
    random("regnetx_002"),
    random("resnet26d"),
    random("swin_s3_tiny_224"),
    random("test_byobnet.r160_in1k"),
    random("vit_small_patch14_reg4_dinov2", pooled_tokens("avg"), pooling="avg", img_size=224),
    random("vit_tiny_patch16_224"),
    random("vit_tiny_patch16_224", intermediate(6), layer="6", pooling="avg"),
    random("vit_tiny_patch16_224", hooked("blocks.9", lambda tokens: tokens[:, 0]), layer="blocks.9"),
    random("vit_tiny_patch16_224", pooled_tokens("max"), pooling="max"),
    random("resnet18", intermediate(-2), layer="-2"),
    random("resnet18", hooked("layer3.1", gem), layer="layer3.1", pooling="gem"),
    random("resnet18", pooled_maps("avgmax"), pooling="avgmax"),
    random("swin_s3_tiny_224", hooked("layers.2", lambda maps: maps.mean((1, 2))), layer="layers.2"),
]
