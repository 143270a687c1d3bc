"""Layers of image encoders: found by name or number, pooled as their shape asks, fingerprinted by what takes part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec, PreprocessSpec
from embedx.encoders.registry import list_layers, open_encoder

SMALL = PreprocessSpec(resize=64, crop=64)


pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.fixture
def saved(tmp_path):
    """Save a seeded random model's weights, changed on the way; returns model and file."""
    import timm
    import torch
    from torchvision import models

    def save(family: str, name: str, change=lambda state: state, **how: Any) -> tuple[Any, str]:
        torch.manual_seed(0)
        model = (timm.create_model if family == "timm" else models.get_model)(name, **how).eval()
        path = tmp_path / "weights.pth"
        torch.save(change(model.state_dict()), path)
        return model, str(path)

    return save


def opened(family: str, name: str, path: str | None, **how: Any):
    return open_encoder(EncoderSpec(family, name, weights=path, **how))


def pixels(encoder) -> Any:
    import torch

    torch.manual_seed(1)
    return torch.randint(0, 256, (2, *encoder.card.input["size"]), dtype=torch.uint8)


def vectors(encoder) -> Any:
    built = encoder.build()
    assert not any(part.training for part in built.modules())
    result = built(pixels(encoder))
    assert result.shape == (2, encoder.card.dim)
    return result


def normalised(encoder) -> Any:
    import torch

    mean, std = (torch.tensor(encoder.card.identity["preprocessing"][key]).view(3, 1, 1) for key in ("mean", "std"))
    return (pixels(encoder) / 255 - mean) / std


def hooked(model, layer: str, images) -> Any:
    import torch

    seen = []
    model.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    with torch.no_grad():
        model(images)
    return seen[0]


def same(ours, theirs) -> None:
    import torch

    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


POOLED = {
    None: lambda maps: maps.mean((2, 3)),
    "mean": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: maps.amax((2, 3)),
    "avgmax": lambda maps: (maps.mean((2, 3)) + maps.amax((2, 3))) / 2,
    "gem": lambda maps: (maps.clamp(min=1e-6) ** 3).mean((2, 3)) ** (1 / 3),
    "flatten": lambda maps: maps.flatten(1),
}


@pytest.mark.parametrize("pooling", POOLED)
def test_maps_are_pooled(pooling, saved):
    model, path = saved("torchvision", "resnet18")
    encoder = opened("torchvision", "resnet18", path, layer="layer3", pooling=pooling, preprocess=SMALL)
    same(vectors(encoder), POOLED[pooling](hooked(model, "layer3", normalised(encoder))))


@pytest.mark.parametrize(("layer", "pooling"), [("features.3", None), ("features.3.0.attn", "max"), ("permute", "max")])
def test_maps_with_their_channels_last(layer, pooling, saved):
    model, path = saved("torchvision", "swin_t")
    encoder = opened("torchvision", "swin_t", path, layer=layer, pooling=pooling, preprocess=SMALL)
    maps = hooked(model, "norm" if layer == "permute" else layer, normalised(encoder))
    same(vectors(encoder), maps.amax((1, 2)) if pooling else maps.mean((1, 2)))


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        (None, lambda tokens: tokens[:, 0]),
        ("token", lambda tokens: tokens[:, 0]),
        ("avg", lambda tokens: tokens[:, 1:].mean(1)),
        ("gem", lambda tokens: (tokens[:, 1:].clamp(min=1e-6) ** 3).mean(1) ** (1 / 3)),
        ("flatten", lambda tokens: tokens.flatten(1)),
    ],
)
def test_tokens_are_pooled_without_the_class_token(pooling, pool, saved):
    model, path = saved("timm", "vit_tiny_patch16_224", img_size=64)
    how = {"model_args": {"img_size": 64}, "pooling": pooling}
    encoder = opened("timm", "vit_tiny_patch16_224", path, layer="blocks.3", **how)
    same(vectors(encoder), pool(hooked(model, "blocks.3", normalised(encoder))))
    numbered = opened("timm", "vit_tiny_patch16_224", path, layer="-9", **how)
    assert numbered.card.identity["layer"] == "3"
    same(vectors(numbered), vectors(encoder))


def test_unpooled_features_of_timm(saved):
    import torch

    model, path = saved("timm", "test_resnet")
    encoder = opened("timm", "test_resnet", path, pooling="max")
    with torch.no_grad():
        same(vectors(encoder), model.forward_features(normalised(encoder)).amax((2, 3)))
    assert encoder.card.fingerprint != opened("timm", "test_resnet", path).card.fingerprint


@pytest.mark.parametrize("layer", ["blocks.1", "1"])
def test_only_tensors_that_take_part_are_fingerprinted(layer, saved):
    def fingerprint(change=lambda state: state) -> str:
        return opened("timm", "test_vit", saved("timm", "test_vit", change)[1], layer=layer).card.fingerprint

    def scaled(name: str):
        return lambda state: state | {name: state[name] * 1.5}

    original = fingerprint()
    assert fingerprint(scaled("blocks.2.mlp.fc1.weight")) == original
    assert fingerprint(scaled("norm.weight")) == original
    assert fingerprint(scaled("blocks.1.mlp.fc1.weight")) != original
    assert fingerprint(scaled("cls_token")) != original


def test_statistics_of_later_layers_take_no_part(saved):
    def fingerprint(change=lambda state: state) -> str:
        return opened("timm", "test_resnet", saved("timm", "test_resnet", change)[1], layer="layer2").card.fingerprint

    def shifted(name: str):
        return lambda state: state | {name: state[name] + 1}

    assert fingerprint(shifted("layer3.0.bn1.running_mean")) == fingerprint()
    assert fingerprint(shifted("layer2.0.bn1.running_mean")) != fingerprint()


def test_one_pooling_has_one_fingerprint(saved):
    path = saved("timm", "test_resnet")[1]
    prints = {
        opened("timm", "test_resnet", path, layer="layer2", pooling=p).card.fingerprint for p in (None, "avg", "mean")
    }
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("family", "name", "how", "part"),
    [
        ("torchvision", "resnet18", {"layer": "layr3"}, "Did you mean"),
        ("torchvision", "resnet18", {"pooling": "avg"}, "nothing to pool"),
        ("torchvision", "resnet18", {"layer": "flatten", "pooling": "avg"}, "a vector already"),
        ("torchvision", "resnet18", {"layer": "layer3", "pooling": "median"}, "avg, max, avgmax, gem, flatten, cls"),
        ("torchvision", "resnet18", {"layer": "layer3", "pooling": "cls"}, "no class token"),
        ("timm", "test_vit", {"layer": "block.0"}, "Did you mean blocks.0"),
        ("timm", "test_vit", {"layer": "99"}, "numbered blocks are 0 to 5"),
        ("timm", "test_resnet", {"pooling": "token"}, "no class token"),
        ("timm", "test_vit", {"layer": "blocks.0.attn.attn_drop"}, "takes no part"),
    ],
)
def test_layers_that_cannot_be_had(family, name, how, part, saved):
    path = saved(family, name)[1]
    with pytest.raises(UsageError) as caught:
        opened(family, name, path, **how)
    assert part in f"{caught.value.message} {caught.value.remedy}" and caught.value.remedy


def test_layers_are_listed():
    numbered = list_layers(EncoderSpec("timm", "test_vit"))
    assert numbered[:6] == list("012345") and "blocks.5.mlp" in numbered
    nodes = list_layers(EncoderSpec("torchvision", "resnet18"))
    assert {"layer3", "layer3.1.add", "flatten"} <= set(nodes)
    assert list_layers(EncoderSpec("minilm")) == []


def test_files_of_the_project_that_published_them_are_converted_by_timm(saved):
    import torch

    name = "vit_small_patch14_dinov2"
    small = {"img_size": 56}

    def as_published(state: dict[str, Any]) -> dict[str, Any]:
        # DINOv2's own files carry the token that masks patches in training.
        return state | {"mask_token": torch.zeros(1, 384)}

    own = opened("timm", name, saved("timm", name, **small)[1], model_args=small).card.fingerprint
    theirs = opened("timm", name, saved("timm", name, as_published, **small)[1], model_args=small).card.fingerprint
    assert theirs == own
    with pytest.raises(EncoderError, match="do not fit"):
        opened("timm", name, saved("timm", "test_vit")[1], model_args=small)


def test_the_command_shows_an_encoder_and_its_layers(embedx, saved):
    path = saved("timm", "test_vit")[1]
    shown = embedx.json("encoders", "show", "timm:test_vit", "--weights", path, "--layer", "2")["encoder"]
    assert shown["dim"] == 64 and shown["identity"]["layer"] == "2" and "blocks.2" in shown["layers"]
    text = embedx("encoders", "show", "timm:test_vit", "--weights", path).stdout
    assert "3 x 160 x 160 pixels" in text and "GFLOPs per image" in text and str(Path(path)) in text
    assert "more in --json" in text and len(text.splitlines()) < 15
